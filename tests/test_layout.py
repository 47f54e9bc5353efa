"""Imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"schedules", "prediction", "denoiser", "losses", "samplers", "randomness", "metrics", "slabs", "arms", "errors"}
# Lower may not import higher; modules of one rank may not import each other unless listed in WITHIN.
RANKS = [
    {"arms", "slabs", "errors", "files", "randomness", "schedules", "prediction", "metrics", "networks", "lesions", "memory"},
    {"denoiser", "samplers", "data", "simulation", "figures"},
    {"losses", "forecasting", "inference"},
    {"training", "validation", "forecasts", "outputs"},
    {"cohort"},
    {"baselines", "ceilings", "evaluation"},
    {"tables"},
    {"charts", "counterfactual"},
    {"report"},
]
WITHIN = {
    ("files", "errors"), ("networks", "arms"), ("networks", "schedules"), ("metrics", "lesions"), ("denoiser", "samplers"),
    ("simulation", "data"),
}  # fmt: skip


def modules():
    for path in sorted((ROOT / "bundle").rglob("*.py")):
        yield path, ast.parse(path.read_text())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert all(alias.name != "*" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part(module):
    return module.split(".")[1] if module.count(".") else ""


def rank(name):
    (found,) = [index for index, names in enumerate(RANKS) if name in names]
    return found


def test_no_module_imports_one_above_it():
    for path, tree in modules():
        own = path.relative_to(ROOT / "bundle").with_suffix("").parts[0]
        if own == "__init__":
            continue
        for module in imports(tree):
            if not module.startswith("bundle."):
                continue
            other = part(module)
            if other != own:
                assert rank(other) < rank(own) or (own, other) in WITHIN, f"{path.name} imports {module}"


def test_there_is_no_cycle():
    graph = {}
    for path, tree in modules():
        name = ".".join(("bundle", *path.relative_to(ROOT / "bundle").with_suffix("").parts))
        graph[name] = {module for module in imports(tree) if module.startswith("bundle.")}
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_core_never_imports_monai():
    for path, tree in modules():
        if path.stem in CORE:
            assert not any(module.split(".")[0] in ("monai", "ignite", "nibabel") for module in imports(tree)), path.name


def test_scripts_are_not_imported_by_the_package():
    for path, tree in modules():
        assert not any(module.split(".")[0] in ("scripts", "tests") for module in imports(tree)), path.name


@pytest.mark.parametrize("folder", ["bundle", "scripts", "configs", "docs"])
def test_no_path_of_a_machine(folder):
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".json", ".md"):
            text = path.read_text()
            assert not any(f"/{place}/" in text for place in ("work", "root", "tmp")), path
