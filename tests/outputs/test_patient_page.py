"""The HTML page of a patient: what it holds, decoded from the file itself, and its two doors."""

import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY, inference_config

from bundle.arms import ARMS
from bundle.data.bids import find_case
from bundle.data.grid import SlabGrid
from bundle.errors import InputError, input_error
from bundle.outputs import patient_page as module
from bundle.outputs.page_images import FLOOR, STEP
from bundle.outputs.patient_page import LIMIT, count_lines, page_name, page_of_files
from scripts import patient_page as script

FEW = TINY | {"num_members": 2, "num_steps": 2, "progress": False}
VOID = {"meta", "input", "line"}


@pytest.fixture(scope="module")
def patient(trial):
    """The patient with most NET2 voxels at w048."""
    cases = [find_case(folder) for folder in sorted(trial.glob("sub-*"))]
    return max(cases, key=lambda case: nib.load(case.volumes["net2_w048"]).get_fdata().sum())


@pytest.fixture(scope="module")
def run(trial, tiny_weights):
    def forecast(output_dir, case, **overrides):
        files = {"weights": str(tiny_weights), "dataset_dir": str(trial), "output_dir": str(output_dir), "case": case}
        inference_config(**FEW | files | overrides).get_parsed_content("inference")
        return output_dir / case

    return forecast


@pytest.fixture(scope="module")
def single(run, patient, tmp_path_factory):
    """Folder of one forecast with its page."""
    return run(tmp_path_factory.mktemp("single"), patient.id, html=True)


@pytest.fixture(scope="module")
def compared(run, patient, tmp_path_factory):
    """Folder of the six arms with their page."""
    return run(tmp_path_factory.mktemp("compared"), patient.id, arm="all", html=True)


def page(folder):
    return (folder / page_name(folder.name)).read_text()


def data_of(text):
    (content,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', text, flags=re.S)
    return json.loads(content)


def unpacked(text, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


class Structure(HTMLParser):
    """Ids, references to ids, addresses, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.needed, self.addresses, self.tags = [], [], [], [], []
        self.feed(re.sub(r'(id="page-data">).*?(</script>)', r"\1\2", text, flags=re.S))  # slow to scan
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        for name in ("for", "aria-labelledby", "aria-describedby"):
            self.needed += given.get(name, "").split()
        self.needed += [given["href"][1:]] if given.get("href", "").startswith("#") else []
        self.addresses += [given[name] for name in ("src", "href") if name in given and not given[name].startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("made", ["single", pytest.param("compared", marks=pytest.mark.slow)])
def test_the_page_is_well_formed_names_its_controls_and_asks_nothing_of_a_network(made, request):
    text = page(request.getfixturevalue(made))
    structure = Structure(text)
    assert len(set(structure.ids)) == len(structure.ids) and set(structure.needed) <= set(structure.ids)
    assert structure.addresses == [] and "default-src 'none'" in text
    assert not re.findall(r"https?://", text)
    labelled = {given.get("for") for tag, given in structure.tags if tag == "label"}
    ranges = {given["id"] for tag, given in structure.tags if given.get("type") == "range"}
    assert ranges == {"slice", "opacity", "threshold"} and ranges <= labelled
    for tag, given in structure.tags:
        assert tag != "canvas" or (given["tabindex"] == "0" and given["aria-label"])
    assert len(text.encode()) < LIMIT and text.count("Research use only") >= 2
    assert "forecast of new or enlarging T2 lesions in the 11 months after the second scan</h1>" in text


def test_a_chance_on_the_page_is_that_of_the_file_to_the_stated_step(single, patient):
    data = data_of(page(single))
    heatmap = nib.load(single / f"{patient.id}_desc-net2_probseg.nii.gz")
    codes = unpacked(data["arms"][0]["heat"], data["shape"])
    values, affine = np.array(data["values"]), np.array(data["affine"])
    inverse, chances = np.linalg.inv(heatmap.affine), heatmap.get_fdata()
    rng = np.random.default_rng(0)
    seen = 0
    for z, row, column in np.column_stack([rng.integers(size, size=500) for size in data["shape"]]):
        (x0, y0), (step_x, step_y) = data["origin"], data["step"]
        point = affine @ [x0 - step_x * column, y0 - step_y * row, data["levels"][z], 1]  # as the script does
        i, j, k = np.round(inverse @ [*point, 1])[:3].astype(int)
        expected, stated = chances[i, j, k], values[codes[z, row, column]]
        assert stated == 0 if expected < FLOOR else abs(stated / expected - 1) <= STEP / 2 + 1e-4
        assert k == data["numbers"][z]
        seen += expected >= FLOOR
    assert seen > 20


def test_columns_run_from_the_patients_right_to_the_left_and_rows_from_front_to_back(single):
    affine = np.array(data_of(page(single))["affine"])
    assert affine[0, 0] > 0 and affine[1, 1] > 0 and affine[2, 2] > 0  # and origin - step * column runs down them
    assert "Radiological: the patient's left (L) is on the right of the image." in page(single)


def test_masks_and_visits_are_those_that_were_used(single, patient):
    data = data_of(page(single))
    assert len(data["visits"]) == 2 and all(len(visit["images"]) == data["shape"][0] for visit in data["visits"])
    old = nib.load(patient.volumes["t2_w048"]).get_fdata() > 0
    marks = unpacked(data["visits"][1]["marks"], data["shape"])
    assert 0 < (marks & 1).sum() <= old.sum()
    assert (unpacked(data["inside"], data["shape"]) & 2).any()


def test_sites_point_to_their_pixels(single, patient):
    data = data_of(page(single))
    report = json.loads((single / f"{patient.id}_desc-net2_forecast.json").read_text())
    assert len(data["arms"][0]["sites"]) == len(report["likely_sites"])
    affine = np.array(data["affine"])
    for drawn, site in zip(data["arms"][0]["sites"], report["likely_sites"]):
        voxel = [
            data["origin"][0] - data["step"][0] * drawn["column"],
            data["origin"][1] - data["step"][1] * drawn["row"],
            data["levels"][drawn["slice"]],
        ]
        assert np.abs(affine @ [*voxel, 1] - site["centre_mm"]).max() <= 1.5 + 1e-3
        assert f"Show site {drawn['rank']}</button>" in page(single)


def test_the_script_makes_the_same_page_from_the_files(single, patient, trial, tmp_path, monkeypatch, capsys):
    grid = inference_config(**FEW).get_parsed_content("grid")
    assert page_of_files(single, trial, grid).decode() == page(single)
    copy = shutil.copytree(single, tmp_path / patient.id)
    (copy / page_name(patient.id)).unlink()
    monkeypatch.setattr(script, "page_of_files", lambda *given: page_of_files(given[0], given[1], grid, given[3]))
    script.main(str(copy), str(trial))
    assert capsys.readouterr().out.strip() == str(copy / page_name(patient.id)) and page(copy) == page(single)


@pytest.mark.slow
def test_a_forecast_of_an_earlier_version_is_refused(single, trial, tmp_path):
    folder = shutil.copytree(single, tmp_path / single.name)
    file = folder / f"{single.name}_desc-net2_forecast.json"
    file.write_text(file.read_text().replace('"schema_version": "3.0"', '"schema_version": "2.0"'))
    with pytest.raises(InputError, match="has schema_version '2.0', not '3.0'; forecast the case again"):
        page_of_files(folder, trial, SlabGrid())


def test_the_arms_stand_side_by_side_with_their_differences(compared, patient, trial):
    text = page(compared)
    comparison = json.loads((compared / f"{patient.id}_desc-arms_comparison.json").read_text())
    data = data_of(text)
    names = [arm["name"] for arm in data["arms"]]
    assert names[0] == comparison["reference_arm"] and sorted(names) == sorted(ARMS)
    assert comparison["statement"] in text.replace("&#39;", "'")
    for arm, numbers in comparison["arms"].items():
        (line,) = re.findall(rf'<tr data-line="{arm}">(.*?)</tr>', text)
        assert f"{numbers['expected_lesions']['mean']:.1f}" in line and f'data-chance="{arm}"' in text
        assert ("reference" in line) == (arm == names[0])
    grid = inference_config(**FEW).get_parsed_content("grid")
    assert page_of_files(compared, trial, grid).decode() == text
    assert len(list(compared.glob("*.html"))) == 1


@pytest.mark.slow
def test_a_page_that_would_be_too_large_shows_fewer_pixels(single, patient, trial, monkeypatch):
    grid = inference_config(**FEW).get_parsed_content("grid")
    limit = len(page(single)) * 2 // 3
    monkeypatch.setattr(module, "LIMIT", limit)
    smaller = page_of_files(single, trial, grid)
    assert len(smaller) <= limit
    assert np.prod(data_of(smaller.decode())["step"]) > 1


def test_no_calibration_is_invented(single):
    assert "It is not known how often forecasts like this one come true" in page(single)


def test_text_of_the_files_cannot_become_code(single, patient, trial, tmp_path):
    copy = shutil.copytree(single, tmp_path / patient.id)
    path = copy / f"{patient.id}_desc-net2_forecast.json"
    report = json.loads(path.read_text())
    report["warnings"] = ["</script><script>alert(1)</script>"]
    report["likely_sites"] = [s | {"region": "</script><b>"} for s in report["likely_sites"]]
    path.write_text(json.dumps(report))
    text = page_of_files(copy, trial, inference_config(**FEW).get_parsed_content("grid")).decode()
    assert "<script>alert" not in text and "</script><b>" not in text and "&lt;/script&gt;" in text
    Structure(text)


@pytest.mark.parametrize("problem", ["no such folder", "no report", "no map", "broken report", "another scan"])
def test_a_folder_that_holds_no_forecast_is_one_line(problem, single, patient, trial, tmp_path):
    copy = shutil.copytree(single, tmp_path / patient.id)
    grid = inference_config(**FEW).get_parsed_content("grid")
    if problem == "no such folder":
        copy = tmp_path / "sub-9"
    elif problem == "no report":
        (copy / f"{patient.id}_desc-net2_forecast.json").unlink()
    elif problem == "no map":
        (copy / f"{patient.id}_desc-net2_probseg.nii.gz").unlink()
    elif problem == "broken report":
        (copy / f"{patient.id}_desc-net2_forecast.json").write_text("{")
    else:
        other = nib.Nifti1Image(np.zeros((5, 5, 5), np.float32), np.eye(4))
        nib.save(other, copy / f"{patient.id}_desc-net2_probseg.nii.gz")
    with pytest.raises(InputError) as caught:
        page_of_files(copy, trial, grid)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("html", "page.html"), ("calibration", "missing.json")])
def test_wrong_options_are_one_line_before_any_work(option, value, trial, tiny_weights, tmp_path):
    files = {"weights": str(tiny_weights), "dataset_dir": str(trial), "output_dir": str(tmp_path / "out")}
    with pytest.raises(Exception) as caught:
        inference_config(**FEW | files | {option: value}).get_parsed_content("inference")
    assert input_error(caught.value) is not None and not (tmp_path / "out").exists()


def test_great_counts_share_a_line():
    histogram = {str(n): 0.05 for n in range(20)}
    lines = count_lines(histogram)
    assert [label for label, *_ in lines] == [*map(str, range(12)), "12 or more"]
    assert lines[-1][1:] == ("40 %", 40.0) and count_lines({"0": 1.0}) == [("0", "100 %", 100.0)]
