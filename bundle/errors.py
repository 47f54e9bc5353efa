"""Errors a user can mend, told in one line."""

import sys
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        problem: what is wrong, in a few words.
        mend: what the user can do about it.
        case: participant id, e.g. "sub-0001"; the only thing of a patient that may be told.
        file: the file at fault.
    """

    def __init__(self, problem: str, mend: str, *, case: str = "", file: str | Path = "") -> None:
        place = "".join([f"{case}: " if case else "", f"{file}: " if str(file) else ""])
        super().__init__(f"{place}{problem}; {mend}")


def report_in_one_line() -> None:
    """From now on an `InputError` that ends the program prints its one line instead of a traceback; exit code 1 stays.

    Configs call this in `initialize`; programs that embed the bundle do not, and receive the exception itself.
    """
    previous = sys.excepthook

    def hook(kind, error, traceback):
        cause = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            previous(kind, error, traceback)
        else:
            print(f"error: {cause}", file=sys.stderr)

    sys.excepthook = hook
