import os
import shutil
from pathlib import Path

import nibabel as nib
import pytest
import torch

from bundle.data.cache import CachedCases, cached_dataset
from bundle.data.grid import SlabGrid
from bundle.data.transforms import LoadCased
from bundle.errors import InputError
from bundle.training.batches import PatientLoader

GRID = SlabGrid((6, 6, 3), (24, 28, 15))


@pytest.fixture
def items(make_patient):
    patients = [make_patient(f"sub-{number}") for number in range(3)]
    return [{"image": str(p.folder), "case": p.id, "arm": "avonex", "active": True, "weight": 0.5} for p in patients]


@pytest.fixture
def decoded(monkeypatch):
    """The NIfTI files whose voxels have been read so far."""
    files, read = [], nib.Nifti1Image.get_fdata

    def counting(image, **options):
        files.append(image.get_filename())
        return read(image, **options)

    monkeypatch.setattr(nib.Nifti1Image, "get_fdata", counting)
    return files


def test_an_item_is_what_loading_gives(items, tmp_path):
    item = cached_dataset(items, GRID, tmp_path / "cache")[1]
    loaded = LoadCased(grid=GRID, with_outcome=True)({"image": items[1]["image"], "arm": "avonex"})
    for key in ("image", "target"):
        assert type(item[key]) is torch.Tensor
        torch.testing.assert_close(item[key], loaded[key].as_tensor(), atol=5e-4, rtol=0)
    assert {key: item[key] for key in ("arm", "active", "weight", "case")} == {
        "arm": 2,
        "active": True,
        "weight": 0.5,
        "case": "sub-1",
    }


def test_each_file_is_decoded_once_and_never_again(items, tmp_path, decoded):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    first = [dataset[index] for index in range(3)]
    assert len(decoded) == len(set(decoded)) == 3 * 10  # 9 volumes and the brain of w048
    again = cached_dataset(items, GRID, tmp_path / "cache")  # as another start of the program has it
    for before, index in zip(first, range(3)):
        assert all(torch.equal(again[index][key], before[key]) for key in ("image", "target"))
    assert len(decoded) == 30


def test_what_is_kept_in_memory_is_read_once_and_without_the_cache(items, tmp_path, decoded):
    plain = cached_dataset(items, GRID, tmp_path / "plain")
    dataset = cached_dataset(items, GRID, tmp_path / "cache", keep_on="cpu")
    dataset.keep_all(num_threads=2)
    shutil.rmtree(tmp_path / "cache")
    decoded.clear()
    for index in range(len(items)):
        one, other = plain[index], dataset[index]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in ("image", "target"))
    assert PatientLoader(dataset, num_workers=2, batch_size=1).num_workers == 0


def test_patients_that_cannot_be_kept_are_one_line(items, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="device=gpu cannot be used; correct --keep_on"):
        cached_dataset(items, GRID, tmp_path / "cache", keep_on="gpu")

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    dataset = cached_dataset(items, GRID, tmp_path / "cache", keep_on="cpu")
    monkeypatch.setattr(dataset, "_read", full)
    with pytest.raises(InputError, match="3 patients do not fit in the memory of cpu; leave --keep_on out"):
        dataset.keep_all()


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
        {"grid": SlabGrid((6, 6, 3), (24, 28, 13))},
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


def test_an_unreadable_patient_is_named_and_leaves_no_file(items, tmp_path, make_patient):
    make_patient("sub-1").path("flair_w000").unlink()
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    with pytest.raises(InputError, match="^sub-1: .*no FLAIR of w000; put it there$"):
        dataset[1]
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_one_line(items, tmp_path, monkeypatch):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: .*No space left on device; make room for the cache"):
        dataset[0]


def hostile(path):
    torch.save({"flair": os.system}, path)


def of_another_grid(path):
    torch.save({"flair": torch.zeros(3, 2, 2, 2), "masks": torch.zeros(6, 2, 2, 2)}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"text"),
        lambda path: torch.save([1, 2], path),
        hostile,
        of_another_grid,
    ],
)
def test_a_damaged_cache_file_is_made_again(items, tmp_path, damage):
    dataset = cached_dataset(items, GRID, tmp_path / "cache")
    before = dataset[0]
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    damage(file)
    assert torch.equal(dataset[0]["image"], before["image"])
    assert len(file.read_bytes()) == len(content)


def test_the_sessions_are_part_of_the_key(items, tmp_path, make_patient, decoded):
    cached_dataset(items, GRID, tmp_path / "cache")[0]
    folders = [make_patient("sub-0").folder.parent / name / "sub-0" for name in ("", "derivatives/lesions")]
    for folder in folders:
        (folder / "ses-w096").rename(folder / "ses-2")
        for path in (folder / "ses-2/anat").iterdir():
            path.rename(path.with_name(path.name.replace("ses-w096", "ses-2")))
    dataset = cached_dataset(items, GRID, tmp_path / "cache", visits={"w096": "ses-2"})
    decoded.clear()
    assert dataset[0]["target"].shape == (2, *GRID.shape) and decoded


def test_a_cache_folder_that_cannot_be_written_is_reported(items, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written; choose another --output_dir or --cache_dir"):
        CachedCases(items, LoadCased(grid=GRID, with_outcome=True), tmp_path / "file")


def test_an_items_outcome_replaces_that_of_the_data_set(items, tmp_path):
    mask = nib.load(next(Path(items[0]["image"]).parent.glob("derivatives/lesions/sub-0/ses-w096/anat/*NET2*")))
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(mask.get_fdata()[::-1].astype("uint8"), mask.affine), label)
    before = cached_dataset(items[:1], GRID, tmp_path / "cache")[0]["target"][1]
    after = cached_dataset([items[0] | {"outcome": str(label)}], GRID, tmp_path / "cache")[0]["target"][1]
    assert (before > 0).any() and torch.equal(after, before.flip(0))
