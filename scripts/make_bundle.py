"""python -m scripts.make_bundle [--out_dir dist]"""

import subprocess
import zipfile
from pathlib import Path

from bundle import __version__
from bundle.errors import InputError
from bundle.files import check_writable, written_whole
from scripts.command import run

ROOT = Path(__file__).parent.parent
NAME = "ms_net2_forecast"
CONTENT = (
    *("bundle", "configs", "docs", "models", "monai_label", "scripts"),
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml"),
)
DATE = (1980, 1, 1, 0, 0, 0)  # the same files give the same zip


def main(out_dir: str = "dist") -> None:
    """Writes <out_dir>/ms_net2_forecast_v<version>.zip, the bundle as MONAI's programs take it.

    It holds the folder ms_net2_forecast with the files that git tracks, as they are now.

    Args:
        out_dir: made if it is not there.
    """
    print(write_bundle(Path(str(out_dir))))


def write_bundle(folder: Path) -> Path:
    """The zip that `main` writes.

    Raises:
        InputError: this is no clone of the repository, or the folder cannot be written.
    """
    listed = subprocess.run(["git", "ls-files", "-z", "--", *CONTENT], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    if not names:
        raise InputError("git lists no files of the bundle", "run it in a clone of the repository", file=ROOT)
    check_writable(folder)
    path = folder / f"{NAME}_v{__version__}.zip"
    with written_whole(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(f"{NAME}/{name}", DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (ROOT / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return path


if __name__ == "__main__":
    run(main)
