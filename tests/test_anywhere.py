"""The zipped bundle in another place, in an environment that has its requirements but not the package."""

import json
import os
import subprocess
import sys
import sysconfig

import pytest
from monai.bundle import download

from scripts.make_bundle import NAME, write_bundle

pytestmark = pytest.mark.slow

LOAD = """
import torch
from monai.bundle import load
for kind in ("train", "inference"):
    network = load({name!r}, bundle_dir={folder!r}, workflow_type=kind, source="github", device="cpu")
    stored = torch.load({folder!r} + "/{name}/models/model.pt", weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value.half(), stored[name].half()), name
    print(kind, len(stored))
"""
CREATE = """
import logging, os, sys
from monai.bundle import create_workflow
hook, filters = sys.excepthook, [[*handler.filters] for handler in logging.getLogger().handlers]
settings = dict(dataset_dir={trial!r}, output_dir={out!r}, logging_file=False)
for file, kind in (("train", "train"), ("inference", "infer")):
    workflow = create_workflow(config_file={root!r} + f"/configs/{{file}}.json", workflow_type=kind, **settings)
    assert workflow.check_properties() == [], workflow.check_properties()
    assert workflow.bundle_root == {root!r}, workflow.bundle_root
assert sys.excepthook is hook
assert [[*handler.filters] for handler in logging.getLogger().handlers] == filters
import bundle
assert os.path.dirname(os.path.dirname(bundle.__file__)) == {root!r}
try:
    create_workflow(config_file={root!r} + "/configs/inference.json", workflow_type="infer", device="nonsense")
except Exception as error:
    assert type(bundle.errors.input_error(error)).__name__ == "InputError"
else:
    raise AssertionError
print("created")
"""


# Imports MONAI once; then forks one process for each line of stdin, [folder, file of the output, arguments of Python].
SERVER = """
import json, os, runpy, sys
import monai.bundle, monai.engines
for line in sys.stdin:
    cwd, output, (flag, what, *arguments) = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, ending in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(output + ending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(cwd)
        sys.argv = [what if flag == "-m" else flag, *arguments]
        sys.path[0] = cwd if flag == "-m" else ""
        if flag == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory):
    """The root of the bundle, as MONAI downloads and unzips it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    path = write_bundle(folder / "zip")
    assert write_bundle(folder / "again").read_bytes() == path.read_bytes()
    download(name=NAME, url=path.as_uri(), bundle_dir=folder / "bundles", progress=False)
    return folder / "bundles" / NAME


def start_python(*arguments, cwd, **streams):
    """Starts Python without .pth files, through which an editable installation of this package would be seen.

    PYTHONPATH names the installed packages: its entries are searched as they are.
    """
    packages = os.pathsep.join(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    environment = os.environ | {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-S", *arguments], cwd=cwd, env=environment, stdout=pipe, text=True, **streams
    )


def python(*arguments, cwd):
    """Runs Python in a process of its own."""
    process = start_python(*arguments, cwd=cwd, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """As `python`, less the seconds in which MONAI is imported: it has been imported before."""
    folder = tmp_path_factory.mktemp("forked")
    server = start_python("-c", SERVER, cwd=folder, stdin=subprocess.PIPE)

    def run(*arguments, cwd):
        print(json.dumps([str(cwd), str(folder / "last"), arguments]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        output, errors = ((folder / f"last.{ending}").read_text() for ending in ("out", "err"))
        return subprocess.CompletedProcess(arguments, code, output, errors)

    yield run
    server.communicate()


@pytest.fixture(scope="module", autouse=True)
def not_installed(tmp_path_factory):
    """The environment has MONAI and does not have this package."""
    look = "from importlib.util import find_spec; print(bool(find_spec('monai')), bool(find_spec('bundle')))"
    found = python("-c", look, cwd=tmp_path_factory.mktemp("empty")).stdout.split()
    if found != ["True", "False"]:
        pytest.skip(f"MONAI is not installed, or the package is, as a copy: {found}")


def test_load_builds_the_networks_with_their_weights(unzipped, forked, tmp_path):
    done = forked("-c", LOAD.format(name=NAME, folder=str(unzipped.parent)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["train", "inference"]


def test_workflows_have_all_properties_and_leave_the_program_as_it_was(unzipped, trial, forked, tmp_path):
    places = {"root": str(unzipped), "trial": str(trial), "out": str(tmp_path / "out")}
    done = forked("-c", CREATE.format(**places), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "created"


@pytest.mark.parametrize("with_root", [True, False])
def test_run_works_from_any_folder(unzipped, trial, forked, tmp_path, with_root):
    run = python if with_root else forked  # one of them as a user starts it
    options = ["--bundle_root", str(unzipped)] if with_root else []
    options += ["--dataset_dir", str(trial), "--case", "sub-0001", "--output_dir", "mine", "--progress", "False"]
    config = str(unzipped / "configs" / "inference.json")
    done = run("-m", "monai.bundle", "run", "preview", "--config_file", config, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "forecast 1 of 1 case"
    assert (tmp_path / "mine" / "sub-0001" / "sub-0001_desc-preview_probseg.nii.gz").exists()


def test_bad_input_is_still_one_line(unzipped, forked, tmp_path):
    config = str(unzipped / "configs" / "inference.json")
    done = forked("-m", "monai.bundle", "run", "--config_file", config, "--dataset_dir", "nothing", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: nothing: no sub-* folder; ")


def test_commands_of_several_files_run_from_any_folder(unzipped, forked, tmp_path):
    configs = unzipped / "configs"
    files = json.loads((configs / "evaluate_args.json").read_text())["config_file"]
    options = ["--config_file", str([str(unzipped / file) for file in files]), "--bundle_root", str(unzipped)]
    options += ["--args_file", str(configs / "evaluate_args.json"), "--dataset_dir", "nothing"]
    done = forked("-m", "monai.bundle", "run", "evaluating", *options, cwd=tmp_path)
    assert done.returncode == 1 and "nothing: no sub-* folder; " in done.stderr.splitlines()[-1]


def test_the_zip_holds_what_is_needed_and_no_more(unzipped):
    top = {path.name for path in unzipped.iterdir()}
    assert {"bundle", "configs", "models", "docs", "LICENSE"} < top and "tests" not in top
    assert not [path for path in unzipped.rglob("*") if "__pycache__" in path.parts or path.suffix == ".pyc"]
    assert (unzipped / "bundle" / "outputs" / "templates" / "patient_page.html").exists()
