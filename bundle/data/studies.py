"""Patients of a BIDS data set as a flat folder of scans, which programs list that do not know BIDS."""

import os
from pathlib import Path

from bundle.data.bids import find_case, list_cases
from bundle.errors import InputError, warn
from bundle.files import check_writable


def link_studies(dataset_dir: str | Path, folder: str | Path) -> list[Path]:
    """Makes `folder` hold a link sub-X.nii.gz to the latest FLAIR before the outcome of each patient that has one.

    A program that follows the link arrives in the patient's folder, where `bundle.data.bids.find_case` finds all else.
    Links to scans that are gone are removed; other files in the folder stay.

    Args:
        dataset_dir: a BIDS data set; without a patient in it there are no links.
        folder: made if it is not there.

    Returns:
        The links, by patient.

    Raises:
        InputError: the folder cannot be written.
    """
    root, folder = Path(os.path.abspath(str(dataset_dir))), Path(str(folder))
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for link in list(folder.iterdir()):
        if link.is_symlink() and not link.exists():
            link.unlink()
    try:
        cases = list_cases(root)
    except InputError as error:  # scans may still be uploaded
        warn(str(error))
        return []
    links = []
    for name in cases:
        try:
            volumes = find_case(name, root, arm="unknown").volumes
        except InputError as error:
            warn(str(error))
            continue
        scan = volumes.get("flair_w048") or volumes.get("flair_w000")
        if scan is not None:
            link = folder / f"{name}{'.nii.gz' if scan.name.endswith('.gz') else '.nii'}"
            if not (link.is_symlink() and link.resolve() == scan.resolve()):
                link.unlink(missing_ok=True)
                link.symlink_to(scan)
            links.append(link)
    return links
