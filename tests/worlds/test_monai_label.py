"""MONAI Label's own server with the bundle as it is distributed, asked over HTTP as its clients ask it."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from conftest import ROOT, inference_config

from bundle.arms import AS_RECORDED, CLASSES
from bundle.data.bids import find_case
from scripts.make_bundle import NAME, write_bundle

ENVIRONMENT = ROOT / ".environments" / "monai_label"
PYTHON = ENVIRONMENT / "bin" / "python"
REASON = "MONAI Label is not installed; `make test-worlds` installs it, or prints why it cannot"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ENVIRONMENT / "installed").is_file(), reason=REASON)]
FEW = {"num_members": 1}
SHORT = {"max_epochs": 40, "epoch_length": 1, "batch_size": 1, "val_split": 0.5}
PAGE = ROOT / "docs" / "how-to" / "monai-label.md"
TRAIN = """
import json, sys
from monailabel.interfaces.utils.app import app_instance
app_instance(app_dir=sys.argv[1], studies=sys.argv[2], conf={}).train(json.loads(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def server(trial, tmp_path_factory):
    """A server of the unzipped bundle on loopback, with the patients of a simulated trial."""
    folder = tmp_path_factory.mktemp("monai_label")
    with zipfile.ZipFile(write_bundle(folder)) as archive:
        archive.extractall(folder)
    studies = shutil.copytree(trial, folder / "trial")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app, url = folder / NAME / "monai_label", f"http://127.0.0.1:{port}"
    arguments = ["start_server", "--app", app, "--studies", studies, "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [PYTHON, "-m", "monailabel.main", *arguments],
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                requests.get(f"{url}/info/", timeout=60)
                break
            except requests.ConnectionError:
                time.sleep(0.5)
        yield SimpleNamespace(
            url=url, app=app, studies=studies, work=studies / "derivatives/monai_label", folder=folder
        )
        requests.delete(f"{url}/train/", timeout=60)
    finally:
        process.terminate()
        process.wait()


def environment(folder):
    settings = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    return os.environ | settings | {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}


def ask(server, image, upload=None, **params):
    """Status and JSON of a request for a forecast."""
    answer = requests.post(
        f"{server.url}/infer/{NAME}",
        params={"image": image, "output": "json"},
        data={"params": json.dumps(params)},
        files={"file": (Path(upload).name, Path(upload).read_bytes())} if upload else None,
        timeout=300,
    )
    return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def answer(server):
    status, reply = ask(server, "sub-0001", **FEW)
    assert status == 200, reply
    return reply


def test_the_server_offers_arms_members_and_the_name_of_what_it_returns(server):
    info = requests.get(f"{server.url}/info/", timeout=60).json()
    model = info["models"][NAME]
    assert info["labels"] == ["NET2 probability"] and model["labels"] == {"NET2 probability": 1}
    assert model["config"]["arm"] == [AS_RECORDED, *CLASSES] and model["config"]["num_members"] == 20
    assert model["dimension"] == 3 and NAME in info["trainers"]


def test_the_datastore_lists_the_patients_and_hands_out_their_scan(server):
    objects = requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]
    assert sorted(objects) == [f"sub-{number:04d}" for number in range(1, 13)]
    scan = requests.get(f"{server.url}/datastore/image?image=sub-0001", timeout=60).content
    assert scan == find_case("sub-0001", server.studies).volumes["flair_w048"].read_bytes()


def test_the_forecast_is_that_of_the_command(server, answer, tmp_path):
    settings = FEW | {"dataset_dir": str(server.studies), "case": "sub-0001", "progress": False, "device": "cpu"}
    inference_config(**settings, output_dir=str(tmp_path)).get_parsed_content("inference")
    (report,) = tmp_path.rglob("*_forecast.json")
    expected, forecast = json.loads(report.read_text()), answer["forecast"]
    assert forecast["weights_sha256"] == expected["weights_sha256"] and forecast["inputs"] == expected["inputs"]
    assert forecast["p_active"] == pytest.approx(expected["p_active"], abs=2e-4)
    heatmaps = [
        nib.load(path).get_fdata() for path in (*tmp_path.rglob("*_probseg.nii.gz"), answer["files"]["heatmap"])
    ]
    np.testing.assert_allclose(*heatmaps, atol=1e-4)


def test_the_reply_carries_forecast_warnings_and_paths_and_each_request_has_a_folder(server, answer):
    assert set(answer["files"]) == {"heatmap", "mask", "report", "page"} and answer["warnings"] == []
    before = {path: Path(path).read_bytes() for path in answer["files"].values()}
    assert answer["forecast"] == json.loads(before[answer["files"]["report"]])
    status, again = ask(server, "sub-0001", **FEW)
    assert status == 200 and not set(again["files"].values()) & set(before)
    assert {path: Path(path).read_bytes() for path in before} == before


def test_the_arm_is_as_recorded_unless_the_request_names_one(server, answer):
    recorded = CLASSES[find_case("sub-0001", server.studies).arm]
    assert answer["forecast"]["arm"] == recorded
    other = next(arm for arm in CLASSES if arm != recorded)
    for arm, expected in {other: other, AS_RECORDED: recorded}.items():
        status, reply = ask(server, "sub-0001", arm=arm, **FEW)
        assert (status, reply["forecast"]["arm"]) == (200, expected)


def test_masks_are_found_for_a_path_and_missed_aloud_for_a_folder_copied_alone(server, answer, tmp_path):
    status, by_path = ask(server, str(find_case("sub-0001", server.studies).volumes["flair_w000"]), **FEW)
    assert status == 200 and by_path["forecast"]["inputs"] == answer["forecast"]["inputs"]
    assert "t2_w048" in by_path["forecast"]["inputs"]["used"]
    copied = shutil.copytree(server.studies / "sub-0001", tmp_path / "sub-0001")
    status, reply = ask(server, str(copied), **FEW)
    assert status == 200 and any("masks and treatment unknown" in line for line in reply["warnings"])


def test_an_uploaded_flair_is_forecast_with_what_is_known(server):
    scan = find_case("sub-0001", server.studies).volumes["flair_w000"]
    status, reply = ask(server, "", upload=scan, arm="placebo", **FEW)
    assert status == 200, reply
    assert reply["forecast"]["inputs"]["used"] == ["flair_w000"] and reply["forecast"]["arm"] == "placebo"
    assert reply["warnings"] == ["a single FLAIR, taken as that of w000; unknown: second visit, masks"]
    assert nib.load(reply["files"]["heatmap"]).shape == nib.load(scan).shape


@pytest.mark.parametrize(
    "image, params, status, line",
    [
        ("sub-0001", {"arm": "aspirin"}, 400, "sub-0001: unknown treatment arm 'aspirin'; use one of placebo, .*"),
        ("sub-0001", {"num_members": "many"}, 400, "num_members=many is not a whole number .*"),
        ("sub-0001", {"model_filename": "other.pt"}, 400, "no weights other.pt; .*"),
        ("sub-9999", {}, 404, "sub-9999: no such patient; known: sub-0001, .*"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered_with_the_one_line(server, image, params, status, line):
    assert (reply := ask(server, image, **params))[0] == status
    assert re.fullmatch(line, reply[1]["detail"]), reply


@pytest.mark.parametrize("name, line", [("scan.nii.gz", "unreadable"), ("scan.txt", "not inside a folder sub-")])
def test_an_upload_that_is_no_scan_is_answered_with_the_one_line(server, tmp_path, name, line):
    (tmp_path / name).write_text("no scan")
    status, reply = ask(server, "", upload=tmp_path / name)
    assert status == 400 and line in reply["detail"] and "\n" not in reply["detail"]


def test_the_client_of_the_how_to_gets_the_heatmap_on_the_grid_of_the_scan(server, tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    for shown, used in {"http://127.0.0.1:8000": server.url, '"num_members": 20': '"num_members": 1'}.items():
        assert shown in code
        code = code.replace(shown, used)
    command = [PYTHON, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heatmap, scan = (
        nib.load(tmp_path / "sub-0001_heatmap.nii.gz"),
        nib.load(find_case("sub-0001", server.studies).volumes["flair_w048"]),
    )
    assert heatmap.shape == scan.shape and 0 < heatmap.get_fdata().max() <= 1
    np.testing.assert_allclose(heatmap.affine, scan.affine, atol=1e-4)
    written = max(server.work.glob("forecasts/*/sub-0001/*_probseg.nii.gz"), key=os.path.getmtime)
    np.testing.assert_allclose(heatmap.get_fdata(), nib.load(written).get_fdata(), atol=1e-6)
    assert (tmp_path / "sub-0001_forecast.png").is_file()


def submit(server, case, mask):
    """Submits a final label, as a client does."""
    files, place = {"label": (Path(mask).name, Path(mask).read_bytes())}, {"image": case, "tag": "final"}
    put = requests.put(f"{server.url}/datastore/label", params=place, files=files, data={"params": "{}"}, timeout=60)
    assert put.status_code == 200, put.text


def train(server, until, **params):
    """Starts training and waits for a line of its output; returns the lines so far."""
    lines, last = "", time.monotonic() + 300
    while (started := requests.post(f"{server.url}/train/{NAME}", json=params, timeout=60)).status_code == 429:
        assert time.monotonic() < last, "the training before has not ended"
        time.sleep(0.5)
    assert started.status_code == 200, started.text
    while time.monotonic() < last:
        task = requests.get(f"{server.url}/train/", timeout=60).json()
        lines = "\n".join(task.get("details", []))
        if re.search(until, lines):
            return lines
        assert task["status"] in ("SUBMITTED", "RUNNING"), lines
        time.sleep(0.5)
    raise AssertionError(lines)


def test_training_starts_stops_and_resumes_on_the_labels_submitted(server):
    assert "error: no labelled patients for training" in train(server, "error: .*", **SHORT)
    cases = [find_case(f"sub-{number:04d}", server.studies) for number in range(1, 13)]
    active = [case for case in cases if nib.load(case.volumes["net2_w096"]).get_fdata().any()]
    emptied, kept = active[0], active[1]
    mask = nib.load(emptied.volumes["net2_w096"])
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), server.folder / "empty.nii.gz")
    submit(server, emptied.id, server.folder / "empty.nii.gz")
    submit(server, kept.id, kept.volumes["net2_w096"])
    train(server, r"stage2: epoch 1 of 40", **SHORT)
    stopped = requests.delete(f"{server.url}/train/", timeout=60).json()
    assert stopped["status"] == "STOPPED"
    lines = train(server, r"stage2: epoch [2-9] of 40", **SHORT)
    assert re.search(r"stage2: resumed after epoch [1-9] of 40", lines)
    requests.delete(f"{server.url}/train/", timeout=60)
    state = torch.load(server.work / "training/stage2_last.pt", weights_only=True)
    assert state["settings"]["patients"].startswith("1 (")
    for case, has_lesions in ((emptied, False), (kept, True)):
        (cached,) = (server.work / "training/cache").glob(f"{case.id}_*.pt")
        assert bool((torch.load(cached, weights_only=True)["masks"][-1] > 0).any()) == has_lesions


def test_several_processes_train_together(server):
    """MONAI Label writes its settings into a configuration and starts torchrun with multi_gpu_train.json over it."""
    for number in (1, 2):
        case = find_case(f"sub-{number:04d}", server.studies)
        submit(server, case.id, case.volumes["net2_w096"])
    out = server.folder / "multi"
    request = {"model": NAME, "device": "cpu", "gpus": "0,1", "force_multi_gpu": True, "output_dir": str(out)}
    request |= SHORT | {"max_epochs": 1, "batch_size": 2}
    command = [PYTHON, "-c", TRAIN, server.app, server.studies, json.dumps(request)]
    done = subprocess.run(command, env=environment(server.folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stage2: epoch 1 of 1" in done.stdout + done.stderr
    assert torch.load(out / "stage2_last.pt", weights_only=True)["epoch"] == 1
