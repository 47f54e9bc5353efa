"""python -m scripts.prepare SOURCE --out DIR: from a folder of DICOM or NIfTI to a data set that inference reads."""

import sys
from pathlib import Path

from bundle.data.preparation.cohort import prepare_dataset
from bundle.errors import Guard
from scripts.command import run

CONFIG = Path(__file__).parents[1] / "configs" / "segment.json"


def main(
    source: str,
    out: str,
    table: str | None = None,
    workers: int | None = None,
    key: str | None = None,
    segment: bool = False,
) -> None:
    """Prepares scans for the forecast: corrects bias, registers the visits of each patient, checks and documents them.

    Args:
        source: folder with the exported scans: DICOM, NIfTI in any orientation, or BIDS with any session names.
        out: folder of the data set; a run that was stopped goes on there, and patients that are done are left alone.
        table: tab- or comma-separated text that says what cannot be guessed, with some of the columns path, patient,
            participant_id, date, visit, kind, treatment_arm.
        workers: patients prepared at the same time; one a core if not given.
        key: file to write, outside `out`, that says which patient of the source has which label.
        segment: mark lesions in the FLAIR of visits without lesion masks (docs/how-to/segment.md).
    """
    prepared, failures = prepare_dataset(source, out, table=table, workers=workers, key=key)
    total = len(prepared) + len(failures)
    line = f"prepared {len(prepared)} of {total} patient{'s' * (total != 1)}"
    print(f"{line}: {out}/derivatives/preparation/patients.html")
    if segment and prepared:
        _segment(out)
    if failures:
        sys.exit(f"{len(failures)} not prepared")


def _segment(out: str) -> None:
    from bundle.outputs.run import forecast_items  # here, as the workers of the preparation do without torch
    from bundle.segmentation.run import run_segmentation
    from scripts.command import read_configs

    config = read_configs(CONFIG)
    config["bundle_root"], config["dataset_dir"] = str(CONFIG.parents[1]), out
    segmenter, weights, lesions = (config.get_parsed_content(name) for name in ("segmenter", "weights", "lesions"))
    run_segmentation(forecast_items(out), segmenter, weights, Guard(), lesions)


if __name__ == "__main__":
    run(main)
