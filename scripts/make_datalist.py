"""python -m scripts.make_datalist --dataset_dir DIR [--out FILE] [--seed N]"""

from pathlib import Path

import fire

from bundle.data.datalist import SPLITS, make_datalist, write_datalist
from bundle.errors import report_in_one_line


def main(dataset_dir: str, out: str | None = None, seed: int = 0) -> None:
    """Splits a BIDS data set into training, validation and test (80 / 10 / 10 %, stratified by arm).

    Args:
        dataset_dir: the data set.
        out: the datalist to write; <dataset_dir>/datalist.json if not given.
        seed: of the split.
    """
    datalist = make_datalist(dataset_dir, seed)
    path = Path(out) if out else Path(dataset_dir) / "datalist.json"
    write_datalist(datalist, path)
    counts = ", ".join(f"{len(datalist[split])} {split}" for split in SPLITS)
    print(f"{path}: {counts}, {len(datalist['left_out'])} left out for want of a FLAIR")


if __name__ == "__main__":
    report_in_one_line()
    fire.Fire(main)
