"""What all scripts do: check their options, print errors in one line, read configuration files."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fire

from bundle.errors import InputError, report_in_one_line
from bundle.options import advice, parsed_options

if TYPE_CHECKING:
    from monai.bundle import ConfigParser


def run(
    component: Callable[..., Any] | Mapping[str, Callable[..., Any]], arguments: Sequence[str] | None = None
) -> None:
    """Runs a function, or one of several by its name, with the command line's arguments, and prints what it returns.

    Fire alone would call the function first and complain of an unknown option afterwards.

    Args:
        component: the function, or functions by the name of their command.
        arguments: of the command line; those of this process if not given.

    Raises:
        InputError: an unknown option or command.
    """
    report_in_one_line()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    chosen, rest = component, arguments
    if isinstance(component, Mapping) and arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name not in component:
            raise InputError(f"unknown command {name}", f"known commands: {', '.join(component)}")
        chosen = component[name]
    if callable(chosen):
        known = list(inspect.signature(chosen).parameters)
        for name, _ in parsed_options(rest):
            if name not in (*known, *(f"no{other}" for other in known), "help", "h"):
                raise InputError(f"unknown option --{name}", advice(name, known))
    fire.Fire(dict(component) if isinstance(component, Mapping) else component, command=arguments)


def read_configs(files: str | Path | Sequence[str | Path]) -> "ConfigParser":
    """A configuration, with overlays that replace its entries.

    Args:
        files: the configuration, or it and its overlays in order.

    Raises:
        InputError: a file is missing or cannot be parsed.
    """
    from monai.bundle import ConfigParser  # here, as most scripts do without it

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
