import os

import nibabel as nib
import pytest
import torch

from bundle.data.cache import CachedCases, cached_dataset, fill_cache
from bundle.data.grid import SlabGrid
from bundle.data.transforms import LoadCased
from bundle.errors import InputError

GRID = SlabGrid((2, 2, 3), (24, 28, 15))


@pytest.fixture
def items(make_patient):
    patients = [make_patient(f"sub-{number}") for number in range(3)]
    return [{"image": str(p.folder), "case": p.id, "arm": "avonex", "active": True, "weight": 0.5} for p in patients]


@pytest.fixture
def decoded(monkeypatch):
    """The NIfTI files read so far."""
    files, load = [], nib.load

    def counting(path, **options):
        files.append(path)
        return load(path, **options)

    monkeypatch.setattr(nib, "load", counting)
    return files


def test_an_item_is_what_loading_gives(items, tmp_path):
    item = cached_dataset(items, GRID, tmp_path / "cache")[1]
    loaded = LoadCased(grid=GRID, with_outcome=True)({"image": items[1]["image"], "arm": "avonex"})
    for key in ("image", "target"):
        assert type(item[key]) is torch.Tensor
        torch.testing.assert_close(item[key], loaded[key].as_tensor(), atol=5e-4, rtol=0)
    assert {key: item[key] for key in ("arm", "active", "weight", "case")} == {
        "arm": 2, "active": True, "weight": 0.5, "case": "sub-1",
    }  # fmt: skip


def test_each_file_is_decoded_once_and_never_again(items, tmp_path, decoded):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    first = [dataset[index] for index in range(3)]
    assert len(decoded) == len(set(decoded)) == 3 * 10  # 9 volumes and the brain of w048
    again = cached_dataset(items, GRID, tmp_path / "cache")  # as another start of the program has it
    for before, index in zip(first, range(3)):
        assert all(torch.equal(again[index][key], before[key]) for key in ("image", "target"))
    assert len(decoded) == 30


def test_labels_are_not_cached(items, tmp_path, decoded):
    cached_dataset(items, GRID, tmp_path / "cache")[0]
    count = len(decoded)
    other = [{"image": items[0]["image"], "arm": "placebo", "active": False}]
    item = cached_dataset(other, GRID, tmp_path / "cache")[0]
    assert (item["arm"], item["active"], item["weight"]) == (0, False, 1)
    assert (item["image"][7] == 0).all() and len(decoded) == count


@pytest.mark.parametrize(
    "options",
    [
        {"grid": SlabGrid((2, 2, 3), (24, 28, 13))},
        {"grid": GRID, "drop_visits": ["w048"]},
    ],
)
def test_another_recipe_is_loaded_anew(items, tmp_path, decoded, options):
    cached_dataset(items, GRID, tmp_path / "cache")[0]
    count = len(decoded)
    item = cached_dataset(items, cache_dir=tmp_path / "cache", **options)[0]
    assert len(decoded) > count
    assert (item["image"][3:7] == 0).all() == ("drop_visits" in options)


def test_a_changed_scan_is_loaded_anew(items, tmp_path, make_patient):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    before = dataset[0]
    patient = make_patient("sub-0")
    patient.write("gd_w048", patient.read("gd_w048") * 0)
    os.utime(patient.path("gd_w048"), ns=(0, 0))
    after = dataset[0]
    assert (after["image"][5] == -1).all() and not (before["image"][5] == -1).all()


def test_filling_in_several_processes_leaves_nothing_to_decode(items, tmp_path, decoded):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    fill_cache(dataset, workers=2)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".pt"] * 3
    assert len([dataset[index] for index in range(3)]) == 3 and not decoded


def test_a_run_killed_while_writing_leaves_no_half_file(items, tmp_path, monkeypatch):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")

    def dies(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            dataset[0]
    assert not list((tmp_path / "cache").iterdir())
    assert dataset[0]["case"] == "sub-0"


def test_a_spoilt_patient_is_named_and_the_others_are_cached(items, tmp_path, make_patient):
    make_patient("sub-1").path("flair_w000").unlink()
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    with pytest.raises(InputError, match="^sub-1: .*no FLAIR of w000; put it there$"):
        dataset[1]
    with pytest.raises(InputError, match="^1 of 3 patients cannot be read, the first: sub-1: .*; repair them"):
        fill_cache(dataset, workers=2)
    assert {path.name[:5] for path in (tmp_path / "cache").iterdir()} == {"sub-0", "sub-2"}


def test_a_cache_that_cannot_be_written_is_told(items, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written; choose another cache folder"):
        CachedCases(items, LoadCased(grid=GRID, with_outcome=True), tmp_path / "file")
