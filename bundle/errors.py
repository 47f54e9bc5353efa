"""Errors that a user can fix, printed as one line."""

import errno
import math
import sys
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from tqdm import tqdm


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        problem: what is wrong, in a few words.
        fix: what the user can do about it.
        case: participant id, e.g. "sub-0001"; nothing else about a patient may be printed.
        file: the file or folder concerned.

    `problem` and `fix` stay as attributes, for where the path of a file must not be written.
    """

    def __init__(self, problem: str, fix: str, *, case: str = "", file: str | Path | None = None) -> None:
        self.problem, self.fix = problem, fix
        self._rest = {"case": case, "file": file}
        prefix = "".join([f"{case}: " if case else "", f"{file}: " if file else ""])
        super().__init__(" ".join(f"{prefix}{problem}; {fix}".split("\n")))

    def __reduce__(self) -> tuple:  # worker processes hand errors over
        return partial(InputError, **self._rest), (self.problem, self.fix)


def input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that an exception is or, as MONAI wraps what its components raise, that caused it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def check_count(name: str, value: Any, least: int = 1, options: str | None = None) -> None:
    """Checks that a setting is a whole number of at least `least`.

    Args:
        name, value: the setting.
        least: the smallest value allowed.
        options: how it is set on the command line, by default by --name.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        problem = f"{name}={value!r} is not a whole number of at least {least}"
        raise InputError(problem, f"correct {options or f'--{name}'}")


def check_rate(name: str, value: Any) -> None:
    """Checks that a setting is a finite number above 0.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise InputError(f"{name}={value!r} is not a number above 0", f"correct --{name}")


def report_in_one_line() -> None:
    """From now on an `InputError` that ends the program prints one line instead of a traceback; exit code 1 stays.

    So do Ctrl-C (exit code 130) and a full disk. For commands; programs that embed the bundle receive the exception
    itself.
    """
    previous = sys.excepthook

    def hook(kind, error, traceback):
        found = input_error(error)
        if found is not None:
            print(f"error: {found}", file=sys.stderr)
        elif issubclass(kind, KeyboardInterrupt):
            print("\nstopped; the same command continues with what is not finished yet", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: {error.filename or 'output'}: {error.strerror}; make room and run again", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook


class Guard:
    """Prints each `InputError` as one line, counts them, and keeps them from ending the run."""

    def __init__(self) -> None:
        self.failures: list[InputError] = []

    def call(self, transform: Callable[[Any], Any], data: Any, otherwise: Any) -> Any:
        """transform(data), or `otherwise` if the data cannot be used."""
        try:
            return transform(data)
        except Exception as error:
            found = input_error(error)
            if found is None:
                raise
            self.refuse(found)
            return otherwise

    def refuse(self, error: InputError) -> None:
        """Prints an error and counts it."""
        self.failures.append(error)
        _print_line(f"error: {error}")


def warn(text: str) -> None:
    """Prints a warning about the input as one line on stderr."""
    _print_line(f"warning: {text}")


def _print_line(text: str) -> None:
    """Prints a line on stderr, beside progress bars instead of after their text."""
    tqdm.write(text, file=sys.stderr)
