import json
import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.data.datalist import SPLITS, balanced_subset, labelled_items, load_split, make_datalist, with_outcome
from bundle.errors import InputError


@pytest.fixture
def trial(tmp_path):
    """A data set of empty files: n patients of each given arm."""

    def make(**arms):
        lines = ["participant_id\ttreatment_arm"]
        for arm, count in arms.items():
            for _ in range(count):
                case = f"sub-{len(lines):04d}"
                lines.append(f"{case}\t{arm}")
                for visit in ("w000", "w048"):
                    path = tmp_path / case / f"ses-{visit}" / "anat" / f"{case}_ses-{visit}_FLAIR.nii.gz"
                    path.parent.mkdir(parents=True)
                    path.touch()
        (tmp_path / "participants.tsv").write_text("\n".join(lines))
        return tmp_path

    return make


def arms_of(items):
    return Counter(item["arm"] for item in items)


def test_each_patient_is_in_one_split_and_each_arm_in_proportion(trial):
    counts = dict(zip(ARMS, (41, 30, 34, 66, 24, 72)))
    datalist = make_datalist(trial(**counts))
    assert {split: len(datalist[split]) for split in SPLITS} == {"training": 213, "validation": 27, "test": 27}
    cases = [item["case"] for split in SPLITS for item in datalist[split]]
    assert len(set(cases)) == len(cases) == 267
    for arm, count in counts.items():
        for split in ("validation", "test"):
            assert abs(arms_of(datalist[split])[arm] - count / 10) < 1


def test_the_seed_rules_the_split(trial):
    root = trial(placebo=40, avonex=40)
    assert make_datalist(root, seed=3) == make_datalist(root, seed=3)
    assert make_datalist(root, seed=3)["test"] != make_datalist(root, seed=4)["test"]


@pytest.mark.parametrize("sizes", [(1, 0, 0), (2, 0, 0), (1, 1, 1), (7, 1, 1), (16, 2, 2)])
def test_few_patients(trial, sizes):
    datalist = make_datalist(trial(placebo=sum(sizes)))
    assert tuple(len(datalist[split]) for split in SPLITS) == sizes


def test_activity_is_a_voxel_of_net2_at_w096(make_patient):
    patients = [make_patient(f"sub-{number}") for number in range(4)]
    patients[1].write("net2_w096", patients[1].read("net2_w096") * 0)
    patients[2].path("net2_w096").unlink()
    patients[3].path("flair_w000").unlink()
    datalist = make_datalist(patients[0].folder.parent)
    items = {item["case"]: item for split in SPLITS for item in datalist[split]}
    assert {case: item["active"] for case, item in items.items()} == {"sub-0": True, "sub-1": False, "sub-2": None}
    assert datalist["left_out"] == ["sub-3"]
    assert items["sub-0"] == {"image": "sub-0", "case": "sub-0", "arm": "unknown", "active": True}
    assert [item["case"] for item in with_outcome(list(items.values()))] == [c for c in items if c != "sub-2"]


def test_a_split_is_read_from_the_file_that_is_made_once(trial, capsys):
    root = trial(placebo=20)
    items = load_split(root, "validation")
    assert items == [
        i | {"image": str(root / i["case"]), "dataset_dir": str(root)} for i in make_datalist(root)["validation"]
    ]
    datalist = json.loads((root / "datalist.json").read_text())
    datalist["test"] = datalist["test"][:1]
    (root / "datalist.json").write_text(json.dumps(datalist))
    assert len(load_split(root, "test", root / "datalist.json")) == 1
    capsys.readouterr()
    assert len(load_split(root, "test")) == 1
    warning = f"warning: {root}/datalist.json: 1 patients were added later; scripts.make_datalist renews it\n"
    assert capsys.readouterr().err == warning


def test_a_path_with_two_dots_is_the_same_data_set(trial):
    root = trial(placebo=3)
    (root.parent / "beside").mkdir()
    assert load_split(root.parent / "beside" / ".." / root.name, "all") == load_split(root, "all")


def test_what_is_no_datalist_is_reported(trial, tmp_path):
    root = trial(placebo=3)
    with pytest.raises(InputError, match="datalist.json: no datalist with 'tests' in it; make it with scripts"):
        load_split(root, "tests")
    with pytest.raises(InputError, match="absent.json: no datalist"):
        load_split(root, "test", tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"test": [')
    with pytest.raises(InputError, match="half.json: no datalist"):
        load_split(root, "test", tmp_path / "half.json")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "the item 3 has no image or no case"),
        ({"case": "sub-0001"}, "has no image or no case"),
        ({"image": ["sub-0001"], "case": "sub-0001"}, "has no image or no case"),
        ({"image": "sub-0001", "case": "sub-0001", "arm": "2"}, "sub-0001: .*unknown treatment arm '2'.*correct the"),
        ({"image": "sub-0001", "case": "sub-0001", "active": "yes"}, "sub-0001: .*active is 'yes'; write true"),
        ({"image": "../sub-0001", "case": "sub-0001"}, "sub-0001: .*'../sub-0001' lies outside the data set"),
        ({"image": "/elsewhere/sub-0001", "case": "sub-0001"}, "lies outside the data set"),
    ],
)
def test_a_wrong_item_is_one_line(trial, item, message):
    root = trial(placebo=3)
    (root / "datalist.json").write_text(json.dumps({"training": [item], "validation": [], "test": []}))
    with pytest.raises(InputError, match=f"datalist.json: .*{message}|{message}") as error:
        load_split(root, "all")
    assert "datalist.json" in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", '{"test": 3}', "[" * 100_000, "\0"])
def test_json_that_is_no_datalist_is_one_line(trial, content):
    root = trial(placebo=3)
    (root / "datalist.json").write_text(content)
    with pytest.raises(InputError, match="datalist.json: no datalist with 'test' in it"):
        load_split(root, "test")


@pytest.mark.parametrize(
    "settings",
    [{"validation": 1}, {"test": -0.1}, {"validation": 0.5, "test": 0.5}, {"seed": 1.5}, {"validation": "x"}],
)
def test_settings_out_of_range(trial, settings):
    with pytest.raises(InputError, match="correct --(validation|test|seed)"):
        make_datalist(trial(placebo=3), **settings)


def test_activity_is_stratified_and_fractions_can_be_set(trial, monkeypatch):
    """Of 60 patients of one arm the 6 who are active are in every split in proportion."""
    root = trial(placebo=60)
    monkeypatch.setattr("bundle.data.datalist._active", lambda case: int(case.id[4:]) % 10 == 0)
    datalist = make_datalist(root, validation=1 / 3, test=1 / 6)
    assert {split: len(datalist[split]) for split in SPLITS} == {"training": 30, "validation": 20, "test": 10}
    assert [sum(item["active"] for item in datalist[split]) for split in SPLITS] == [3, 2, 1]
    none = make_datalist(root, validation=0, test=0)
    assert [len(none[split]) for split in SPLITS] == [60, 0, 0]


def test_sessions_of_other_names_are_found(trial):
    root = trial(placebo=3)
    for path in root.glob("sub-*/ses-w000"):
        path.rename(path.with_name("ses-1"))
    for path in root.glob("sub-*/ses-1/anat/*"):
        path.rename(path.with_name(path.name.replace("w000", "1")))
    assert len(make_datalist(root)["left_out"]) == 3
    assert len(make_datalist(root, visits={"w000": "ses-1"})["left_out"]) == 0


def items_of(active, inactive, unknown=0):
    kinds = [True] * active + [False] * inactive + [None] * unknown
    return [{"case": f"sub-{index:03d}", "active": kind} for index, kind in enumerate(kinds)]


@pytest.mark.parametrize(("active", "inactive"), [(30, 70), (70, 30), (50, 50)])
def test_the_subset_is_balanced_and_its_weights_restore_the_population(active, inactive):
    items = items_of(active, inactive, unknown=5)
    subset = balanced_subset(items, seed=1)
    kept = Counter(item["active"] for item in subset)
    assert kept == {True: min(active, inactive), False: min(active, inactive)}
    assert len({item["case"] for item in subset}) == len(subset)
    weights = np.array([item["weight"] for item in subset])
    fraction = sum(weights[[item["active"] for item in subset]]) / weights.sum()
    assert weights.mean() == pytest.approx(1) and fraction == pytest.approx(active / (active + inactive))
    assert subset == balanced_subset(items, seed=1)
    if active != inactive:
        assert subset != balanced_subset(items, seed=2)


def test_a_weighted_loss_has_the_population_mean():
    """Each inactive patient's loss is its number; over many draws the weighted mean is the mean of all 100."""
    items = items_of(20, 80)
    means = [
        np.mean([item["weight"] * int(item["case"][4:]) for item in balanced_subset(items, seed)])
        for seed in range(400)
    ]
    assert np.mean(means) == pytest.approx(49.5, abs=4 * np.std(means) / 20)


def test_only_one_kind_is_kept_whole():
    assert [item["weight"] for item in balanced_subset(items_of(0, 3))] == [1, 1, 1]


def test_images_and_labels_of_a_labelling_program_become_items(make_patient, tmp_path):
    patient = make_patient("sub-0001")
    (patient.folder.parent / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-0001\tavonex\n")
    empty = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(0 * patient.read("net2_w096"), patient.affine), empty)
    image = patient.path("flair_w048")
    labels = (patient.path("net2_w096"), empty)
    active, inactive = labelled_items([{"image": str(image), "label": str(label)} for label in labels])
    assert active == {
        "image": str(patient.folder),
        "dataset_dir": str(patient.folder.parent),
        "case": "sub-0001",
        "arm": "avonex",
        "active": True,
        "outcome": str(labels[0]),
    }
    assert inactive == active | {"active": False, "outcome": str(empty)}
    with pytest.raises(InputError, match="not inside a folder sub-"):
        labelled_items([{"image": shutil.copy(image, tmp_path / "scan.nii.gz"), "label": str(empty)}])
