"""Configuration files as the scripts read them."""

from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from bundle.errors import InputError


def read_configs(files: str | Path | Sequence[str | Path]) -> ConfigParser:
    """A configuration, with overlays that replace its entries.

    Args:
        files: the configuration, or it and its overlays in order.

    Raises:
        InputError: a file is missing or cannot be parsed.
    """
    config = ConfigParser()
    files = [files] if isinstance(files, str | Path) else list(files)
    for file in files:
        if not Path(file).is_file():
            raise InputError("no such configuration", "correct --config_file", file=file)
    try:
        config.read_config([str(file) for file in files])
    except ValueError as error:  # of json and yaml alike
        raise InputError(f"cannot be parsed: {error}", "correct the file", file=", ".join(map(str, files))) from error
    return config
