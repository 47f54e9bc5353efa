"""Errors a user can mend, told in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that an exception is or, as MONAI wraps what its components raise, that caused it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def report_in_one_line() -> None:
    """From now on an `InputError` that ends the program prints its one line instead of a traceback; exit code 1 stays.

    Configs call this in `initialize`; programs that embed the bundle do not, and receive the exception itself.
    """
    previous = sys.excepthook

    def hook(kind, error, traceback):
        told = input_error(error)
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        elif told is None:
            previous(kind, error, traceback)
        else:
            print(f"error: {told}", file=sys.stderr)

    sys.excepthook = hook


class Guard:
    """Tells `InputError`s in one line each, counts them, and keeps them from ending the run."""

    def __init__(self) -> None:
        self.failures: list[InputError] = []

    def call(self, transform: Callable[[Any], Any], data: Any, otherwise: Any) -> Any:
        """transform(data), or `otherwise` if the data cannot be used."""
        try:
            return transform(data)
        except Exception as error:
            told = input_error(error)
            if told is None:
                raise
            self.failures.append(told)
            print(f"error: {told}", file=sys.stderr)
            return otherwise
