"""Imports point one way (contracts in pyproject.toml), and no path of a machine is tracked."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]


def test_imports_point_one_way(capsys):
    assert lint_imports(str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_imports_are_absolute_and_name_what_they_take():
    for path in (ROOT / "bundle").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and all(alias.name != "*" for alias in node.names), path


@pytest.mark.parametrize("folder", ["bundle", "scripts", "configs", "docs"])
def test_no_path_of_a_machine(folder):
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".json", ".md"):
            text = path.read_text()
            assert not any(f"/{place}/" in text for place in ("work", "root", "tmp")), path
