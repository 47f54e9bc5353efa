"""Options and run ids of a bundle command that no configuration file knows.

MONAI adds an override of an unknown name, e.g. `--members 5` for `--num_members 5`, to the configuration and runs as if
it had not been given.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any

from fire.parser import DefaultParseValue

from bundle.errors import InputError

_OF_COMPONENTS = ("_target_", "_disabled_", "_mode_", "_requires_", "_desc_")
_SYNONYMS = {"treatment": "arm", "patient": "case", "subject": "case", "participant": "case", "model": "weights"}
_FLAG = re.compile(r"--?[A-Za-z_]")


def check_options(arguments: Sequence[str] | None = None) -> None:
    """Refuses options of `python -m monai.bundle` that are neither MONAI's nor ids of the configuration files.

    Programs that call MONAI's Python functions are not checked.

    Args:
        arguments: program and arguments; by default those of this process.

    Raises:
        InputError: an unknown option or run id.
    """
    program, *arguments = sys.argv if arguments is None else arguments
    if not is_command(program):
        return
    import monai.bundle  # here, as scripts read their options with this module and start sooner without it

    of_monai = inspect.signature(monai.bundle.run).parameters  # run_id, config_file, ...
    options = dict(parsed_options(arguments))
    if arguments[:1] == ["run"] and arguments[1:2] and not _FLAG.match(arguments[1]):
        options["run_id"] = arguments[1]
    if options.get("args_file"):
        options = dict(monai.bundle.ConfigParser.load_config_file(options["args_file"])) | options
    if not options.get("config_file"):
        return
    config = monai.bundle.ConfigParser.load_config_files(options["config_file"])
    _check_run_id(str(options.get("run_id", "run")), config)
    for name in options:
        if name not in of_monai:
            check_id(name, config, replaced=options)


def is_command(program: str) -> bool:
    """Whether a program, the first of sys.argv, is `python -m monai.bundle`."""
    return Path(program).parts[-3:] == ("monai", "bundle", "__main__.py")


def check_id(name: str, config: Mapping[str, Any], replaced: Mapping[str, Any] | None = None) -> None:
    """Refuses an id, e.g. "network_def#channels", that names nothing in a configuration.

    Args:
        name: levels are separated by # or ::.
        config: as it is read from its files.
        replaced: ids that are given whole on the command line; what lies below them is not checked.

    Raises:
        InputError: an unknown id.
    """
    node: Any = config
    path: list[str] = []
    for key in re.split("#|::", name):
        parent = "#".join(path)
        if parent and parent in (replaced or ()):
            return
        if isinstance(node, str):
            raise InputError(f"--{name}: {parent} is {node!r} and has no parts", "set that one instead")
        known = _keys(node)
        if known is None or key == "_meta_":
            return
        if key not in known:
            raise InputError(f"unknown option --{name}", advice(key, known, parent))
        path.append(key)
        if isinstance(node, list):
            node = node[int(key)]
        elif key in node:
            node = node[key]
        else:
            return  # an argument that has its default so far


def _check_run_id(name: str, config: Mapping[str, Any]) -> None:
    if name in config:
        return
    known = [
        other
        for other, steps in config.items()
        if other not in ("imports", "initialize") and isinstance(steps, list) and steps and all(map(_is_step, steps))
    ]
    near = get_close_matches(name, known, n=1)
    raise InputError(
        f"unknown run id {name}", f"did you mean {near[0]}?" if near else f"known ones: {', '.join(known)}"
    )


def _is_step(step: Any) -> bool:
    """Whether running it does something: an expression or a component."""
    return str(step).startswith("$") or isinstance(step, Mapping) and "_target_" in step


def parsed_options(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(name, value) of options as fire reads them."""
    for position, argument in enumerate(arguments):
        if argument == "--":  # from here on options of fire itself
            return
        if not _FLAG.match(argument):
            continue
        name, has_value, value = argument.lstrip("-").partition("=")
        if not has_value:
            value = next(iter(arguments[position + 1 : position + 2]), "True")
        yield name.replace("-", "_"), DefaultParseValue(value)


def _keys(node: Any) -> list[str] | None:
    """Keys that may be set in a node of a configuration; None where any may."""
    if isinstance(node, list):
        return [str(position) for position in range(len(node))]
    if not isinstance(node, Mapping):
        return []
    if "_target_" not in node:
        return list(node)
    from monai.bundle.config_item import ComponentLocator, ConfigComponent

    name = ConfigComponent(config={"_target_": node["_target_"]}, locator=ComponentLocator()).resolve_module_name()
    parameters = inspect.signature(locate(name)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [*_OF_COMPONENTS, *(parameter.name for parameter in parameters)]


def advice(key: str, known: Sequence[str], parent: str = "") -> str:
    """What to give in the place of an unknown option below `parent`: the nearest known one, or all."""
    prefix = f"{parent}#" if parent else ""
    public = [name for name in known if name not in (*_OF_COMPONENTS, "imports", "initialize")]
    synonym = _SYNONYMS.get(key)
    near = [synonym] if synonym in public else get_close_matches(key, public, n=1)
    if near:
        return f"did you mean --{prefix}{near[0]}?"
    return f"known options: {', '.join(prefix + name for name in public)}"
