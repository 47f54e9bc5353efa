"""python -m scripts.make_datalist --dataset_dir DIR [--out FILE] [--seed N] [--validation F] [--test F]"""

from pathlib import Path

from bundle.data.datalist import SPLITS, make_datalist, write_datalist
from scripts.command import run


def main(
    dataset_dir: str,
    out: str | None = None,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.1,
    visits: dict[str, str] | None = None,
) -> None:
    """Splits a BIDS data set into training, validation and test patients, stratified by arm and two-year activity.

    Args:
        dataset_dir: the data set.
        out: the datalist to write; <dataset_dir>/datalist.json if not given.
        seed: of the split.
        validation, test: fractions of the patients.
        visits: session label of each visit that is not named so, e.g. "{'w000':'ses-01','w048':'ses-02'}".
    """
    datalist = make_datalist(dataset_dir, seed, validation=validation, test=test, visits=visits)
    path = Path(str(out)) if out else Path(str(dataset_dir)) / "datalist.json"
    write_datalist(datalist, path)
    counts = ", ".join(f"{len(datalist[split])} {split}" for split in SPLITS)
    print(f"{path}: {counts}, {len(datalist['left_out'])} left out for want of a FLAIR")


if __name__ == "__main__":
    run(main)
