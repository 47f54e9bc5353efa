"""python -m scripts.patient_page CASE_FOLDER --dataset_dir DIR [--out FILE] [--calibration FILE]"""

from pathlib import Path

from bundle.files import not_writable, write_together
from bundle.outputs.patient_page import page_name, page_of_files
from scripts.command import read_configs, run

CONFIG = Path(__file__).parent.parent / "configs" / "inference.json"


def main(
    case_folder: str, dataset_dir: str = "data/trial", out: str | None = None, calibration: str | None = None
) -> None:
    """Writes the HTML page of a forecast that was made before, as `--html True` of inference would have done.

    Args:
        case_folder: the forecast of one case, e.g. forecasts/sub-01; with `--arm all` it holds all arms.
        dataset_dir: the data set with the patient's scans, from which the forecast was made.
        out: the page; <case>_desc-net2_forecast.html in the case's folder if not given.
        calibration: calibration.json of an evaluation with the same weights and settings.
    """
    folder = Path(str(case_folder))
    config = read_configs(CONFIG)
    page = page_of_files(folder, Path(str(dataset_dir)), config.get_parsed_content("grid"), calibration)
    path = folder / page_name(folder.name) if out is None else Path(str(out))
    try:
        (path,) = write_together(path.parent, {path.name: page})
    except OSError as error:
        raise not_writable(path.parent, error.strerror) from error
    print(path)


if __name__ == "__main__":
    run(main)
