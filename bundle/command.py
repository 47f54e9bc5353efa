"""What the bundle does when it is run by `python -m monai.bundle`, and only then."""

import sys

from bundle.errors import report_in_one_line
from bundle.options import check_options, is_command
from bundle.runtime import keep_freed_memory, quiet_libraries


def begin() -> None:
    """Errors in one line, options checked, libraries quiet, freed memory kept; configs call this in `initialize`.

    In a program that calls MONAI's Python functions nothing happens: sys.excepthook, logging and memory are its own.

    Raises:
        InputError: an unknown option or run id.
    """
    if is_command(sys.argv[0]):
        report_in_one_line()
        check_options()
        quiet_libraries()
        keep_freed_memory()
