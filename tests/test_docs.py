"""The documentation agrees with the repository: links, options and their defaults, commands, figures."""

import ast
import dataclasses
import inspect
import json
import re
import shlex
from pydoc import locate

import pytest
from conftest import ROOT, TINY, inference_config

from bundle import __version__

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OPTION_PAGE = ROOT / "docs" / "reference" / "configs.md"
BIDS_PAGE = ROOT / "docs" / "reference" / "bids.md"
FORECAST_PAGE = ROOT / "docs" / "reference" / "forecast.md"
CONFIGS = ("train.json", "inference.json", "evaluate.json", "counterfactual.json")
LINK = re.compile(r"\]\(([^()\s]+)\)")
COMMAND = re.compile(r"(?:torchrun|python|make)\s")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def without_code(text):
    """The text of a page outside code blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path):
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def read(config):
    return json.loads((ROOT / "configs" / config).read_text())


def is_option(name, ids):
    """Whether a user would set it: a number, a string, a path, a list of these; no component, expression or run id."""
    value = ids[name]
    leaves = value if isinstance(value, list) else [value]
    if name == "bundle_root" or any(isinstance(leaf, dict) for leaf in leaves):
        return False
    if isinstance(value, str) and value.startswith("@"):
        return is_option(value[1:], ids) if value[1:] in ids else True  # an option of the file below
    return all(not str(leaf).startswith(("$", "%")) or str(leaf).startswith("$os.path.join(") for leaf in leaves)


def shown(value):
    """A default as the reference writes it."""
    if isinstance(value, str) and value.startswith("$"):
        parts = [text or f"<{name}>" for text, name in re.findall(r"'([^']*)'|@(\w+)", value)]
        return "/".join(part for part in parts if part != "<bundle_root>")
    return value.removeprefix("@") if isinstance(value, str) else json.dumps(value)


def documented(config):
    """Default by option, of the table below the heading `## <config>` of the reference."""
    (section,) = re.findall(rf"^## {re.escape(config)}$(.*?)(?=^## |\Z)", OPTION_PAGE.read_text(), flags=re.M | re.S)
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]*)` \|", section, flags=re.M))


def commands(path):
    """The commands of the code blocks of a page, as lists of words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if COMMAND.search(line)]
    return [shlex.split(line, comments=True) for line in lines]


def options_of(words):
    """Value by name of the words `--name value` and `--name=value`."""
    options = {}
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            options[name] = value if has_value else (words + [""])[place + 1]
    return options


def config_of(options):
    """The ids of the configuration files that a command names, later files first."""
    if "args_file" in options:
        options = json.loads((ROOT / options["args_file"]).read_text()) | options
    files = options["config_file"]
    files = ast.literal_eval(files) if isinstance(files, str) and files.startswith("[") else files
    merged = {}
    for file in [files] if isinstance(files, str) else files:
        merged |= {name.removeprefix("+"): value for name, value in json.loads((ROOT / file).read_text()).items()}
    return merged


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    for target in LINK.findall(without_code(path.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def test_every_figure_is_shown():
    linked = {(path.parent / target).resolve() for path in PAGES for target in LINK.findall(path.read_text())}
    assert set((ROOT / "docs" / "figures").iterdir()) <= linked


def test_every_page_is_linked():
    linked = {
        (path.parent / target.partition("#")[0]).resolve()
        for path in PAGES
        for target in LINK.findall(path.read_text())
    }
    assert {path for path in PAGES if path.name != "README.md"} <= linked


def test_pages_that_the_code_names_exist():
    for folder in ("bundle", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text()):
                assert (ROOT / page).exists(), f"{name_of(path)} names {page}"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_is_documented_with_its_default(config):
    ids = read(config)
    options = {name: shown(value) for name, value in ids.items() if is_option(name, ids)}
    table = documented(config)
    assert {name: default for name, default in table.items() if "#" not in name} == options
    for name in set(table) - set(options):
        component, _, argument = name.partition("#")
        assert argument in inspect.signature(locate(ids[component]["_target_"])).parameters, name


@pytest.mark.slow
def test_every_key_of_a_forecast_is_documented(trial, tiny_weights, tmp_path):
    few = {"num_members": 2, "num_steps": 2, "case": "sub-0001", "progress": False}
    files = {"dataset_dir": str(trial), "weights": str(tiny_weights), "output_dir": str(tmp_path)}
    inference_config(**TINY | few | files).get_parsed_content("inference")
    (forecast,) = tmp_path.rglob("*_forecast.json")
    (section,) = re.findall(r"^## Forecast JSON$(.*?)(?=^###? )", FORECAST_PAGE.read_text(), flags=re.M | re.S)
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, flags=re.M)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == set(json.loads(forecast.read_text()))


def test_every_limit_of_an_input_is_documented():
    table = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", BIDS_PAGE.read_text(), flags=re.M)
    limits = {
        field.name: str(field.default) for field in dataclasses.fields(locate("bundle.data.plausibility.Plausibility"))
    }
    assert dict(table) == limits


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_name_what_exists(path):
    for words in commands(path):
        options = options_of(words)
        if "monai.bundle" in words and "run" in words:
            ids = config_of(options)
            assert words[words.index("run") + 1] in ids, words
            unknown = {name.split("#")[0] for name in options} - set(ids)
            assert unknown <= {"config_file", "args_file", "bundle_root", "meta_file", "nproc_per_node", "tracking"}, (
                unknown
            )
        elif script := next((word for word in words if word.startswith("scripts.")), None):
            tree = ast.parse((ROOT / f"{script.replace('.', '/')}.py").read_text())
            arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
            assert set(options) <= arguments, words
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), words


def test_citation_and_changelog_know_the_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
