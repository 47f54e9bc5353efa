import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch

from bundle.brightness import compress_bright
from bundle.data.bids import CONDITION
from bundle.data.grid import SlabGrid, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.transforms import CompactCased, LoadCased, RestoreNatived, expand_case
from bundle.errors import InputError

GRID = SlabGrid((6, 6, 3), (24, 28, 15))  # the patient's field of view, exactly
OPENMS = Path(__file__).parents[3] / "shared" / "openms" / "longitudinal"


def load(patient, *, grid=GRID, image=None, arm=None, **options):
    return LoadCased(grid=grid, **options)({"image": image or patient.folder, "arm": arm})


def pooled(volume):
    """(48, 56, 15) at 3 mm in plane -> (24, 28, 15) at 6 mm."""
    return volume.reshape(24, 2, 28, 2, 15).mean(axis=(1, 3))


def channel(loaded, name):
    return loaded["image"][CONDITION.index(name)].numpy()


def test_the_image_is_the_contract(patient):
    loaded = load(patient, with_outcome=True, arm="avonex")
    inside = pooled(patient.read("brain_w048")) >= 0.5
    np.testing.assert_array_equal(loaded["brain"][0].numpy(), inside)
    for name in CONDITION:
        if not name.startswith("flair"):
            np.testing.assert_array_equal(channel(loaded, name), pooled(patient.read(name)) * 2 - 1)
    first = pooled(patient.read("flair_w000").astype(float))
    low, high = np.percentile(first[inside], [1, 99.5])
    expected = np.where(inside, compress_bright((first - low) / (high - low) * 2 - 1), -1)
    np.testing.assert_allclose(channel(loaded, "flair_w000"), expected, atol=1e-5)
    assert (loaded["image"][7] == 2).all() and loaded["arm"] == 2 and loaded["case"] == "sub-0001"
    np.testing.assert_array_equal(loaded["target"][1].numpy(), pooled(patient.read("net2_w096")) * 2 - 1)
    np.testing.assert_allclose(loaded["image"].affine, [[6, 0, 0, -69], [0, 6, 0, -81], [0, 0, 3, -14], [0, 0, 0, 1]])
    assert loaded["image"].dtype == loaded["target"].dtype == torch.float32


def test_the_image_is_bit_by_bit_that_of_its_parts(patient):
    """Nothing that is checked, or done to save memory, touches a number."""
    loaded = load(patient, with_outcome=True)
    affine, file = loaded["image"].affine.numpy(), patient.affine
    inside = to_slab(patient.read("brain_w048").astype(np.float32), file, affine, GRID) >= 0.5
    flairs = {f"flair_{v}": patient.read(f"flair_{v}").astype(np.float32) for v in ("w000", "w048", "w096")}
    slabs = {name: to_slab(data, file, affine, GRID) for name, data in flairs.items()}
    low, high = np.percentile(slabs["flair_w000"][inside & (slabs["flair_w000"] > 0)], [1, 99.5])
    quartiles = [np.percentile(slab[inside & (slab > 0)], [25, 75]) for slab in slabs.values()]
    first = quartiles[0]
    for (name, slab), (q1, q3) in zip(slabs.items(), quartiles):
        same = first[0] + (slab - q1) * (first[1] - first[0]) / (q3 - q1)
        expected = np.where(inside, compress_bright((same - low) / (high - low) * 2 - 1), -1).astype(np.float32)
        found = loaded["target"][0].numpy() if name == "flair_w096" else channel(loaded, name)
        np.testing.assert_array_equal(found, expected)
    for name in ("t2_w000", "gd_w048", "net2_w048"):
        marked = mask_to_slab(patient.read(name), file, affine, GRID)
        np.testing.assert_array_equal(channel(loaded, name), np.where(marked, 1, -1))
    np.testing.assert_array_equal(loaded["native_brain"][0].numpy(), patient.read("brain_w048"))


def test_scanner_gain_and_offset_of_a_visit_do_not_show(patient):
    """The visits of this patient have gains 1, 1.7 and .6; outside the new lesion their tissue is the same."""
    loaded = load(patient, with_outcome=True)
    same = (channel(loaded, "t2_w048") < 0) & (loaded["target"][1].numpy() < 0)
    for flair in (channel(loaded, "flair_w048"), loaded["target"][0].numpy()):
        np.testing.assert_allclose(flair[same], channel(loaded, "flair_w000")[same], atol=0.02)
    patient.write("flair_w048", patient.read("flair_w048").astype(np.float32) * 3 - 500)
    again = channel(load(patient), "flair_w048")
    np.testing.assert_allclose(again, channel(loaded, "flair_w048"), atol=1e-4)


def test_a_missing_volume_is_unknown(patient):
    patient.path("gd_w000").unlink()
    patient.path("t2_w048").unlink()
    loaded = load(patient)
    for name in CONDITION:
        assert (channel(loaded, name) == 0).all() == (name in ("gd_w000", "t2_w048"))


def test_a_dropped_visit_is_unknown_and_need_not_exist(patient):
    whole = load(patient)
    for name in ("flair_w048", "t2_w048", "brain_w048"):
        patient.path(name).unlink()
    loaded = load(patient, drop_visits=("w048",))
    torch.testing.assert_close(loaded["image"][:3], whole["image"][:3])
    assert (loaded["image"][3:7] == 0).all()
    assert loaded["native_brain"].meta["filename_or_obj"] == str(patient.path("flair_w000"))


@pytest.mark.parametrize("wrong", [("w000", "w048"), ("w096",), "w048", 3, True, {"w048": 1}, [[]]])
def test_what_cannot_be_dropped(wrong):
    with pytest.raises(InputError, match="drop_visits=.* is not a list of w000 or w048"):
        LoadCased(drop_visits=wrong)


def test_any_file_of_the_patient_and_a_list_of_arms_will_do(patient):
    """What MONAI Label sends: a file as image, and a drop-down's choices as arm."""
    loaded = load(patient, image=str(patient.path("flair_w048")), arm=["ocrelizumab", "placebo"])
    torch.testing.assert_close(loaded["image"][:7], load(patient)["image"][:7])
    assert loaded["arm"] == 5 and (loaded["image"][7] == 5).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flipped", [(), (0, 1), (2,), (0, 1, 2)])
def test_the_orientation_of_the_files_does_not_matter(patient, order, flipped):
    before = load(patient, with_outcome=True)
    axes = np.array([[order[axis], -1 if axis in flipped else 1] for axis in range(3)])
    affine = patient.affine @ nib.orientations.inv_ornt_aff(axes, patient.read("flair_w048").shape)
    patient.move(affine, lambda data: nib.apply_orientation(data, axes))
    after = load(patient, with_outcome=True)
    for key in ("image", "target", "brain"):
        torch.testing.assert_close(after[key].as_tensor(), before[key].as_tensor(), atol=1e-5, rtol=0)

    pred = torch.rand(1, *GRID.shape, generator=torch.Generator().manual_seed(0))
    restored = RestoreNatived()({**after, "pred": pred})["pred"]
    there = RestoreNatived()({**before, "pred": pred})["pred"]
    np.testing.assert_allclose(restored[0].numpy(), nib.apply_orientation(there[0].numpy(), axes), atol=1e-6)
    np.testing.assert_array_equal(restored.affine, nib.load(patient.path("flair_w048")).affine)


def test_visits_on_grids_of_their_own_meet_in_the_world(patient):
    before = load(patient, with_outcome=True)
    padding = ((3, 5), (0, 2), (1, 1))
    shifted = patient.affine.copy()
    shifted[:3, 3] -= [9, 0, 3]
    for name in ("flair_w000", "t2_w000", "gd_w000", "brain_w000"):
        patient.write(name, np.pad(patient.read(name), padding), shifted)
    after = load(patient, with_outcome=True)
    torch.testing.assert_close(after["image"].as_tensor(), before["image"].as_tensor())


def test_without_a_mask_the_stripped_brain_is_found(patient):
    before = load(patient)
    for visit in ("w000", "w048", "w096"):
        patient.path(f"brain_{visit}").unlink()
    torch.testing.assert_close(load(patient)["image"].as_tensor(), before["image"].as_tensor())


def test_restoring_inverts_bit_by_bit_where_voxels_fall_on_voxels(patient):
    loaded = load(patient, grid=SlabGrid((3, 3, 3), (48, 56, 15)))
    pred = torch.rand(2, 48, 56, 15, generator=torch.Generator().manual_seed(0))
    restored = RestoreNatived()(loaded | {"pred": pred})["pred"]
    assert torch.equal(restored.as_tensor(), pred * torch.from_numpy(patient.read("brain_w048")))
    assert restored.meta["filename_or_obj"] == str(patient.path("flair_w048"))


def test_restoring_is_linear_inside_the_slab_and_zero_outside(patient):
    """A smaller slab; a ramp over it comes back as the same ramp between the outer centres of its cells."""
    grid = SlabGrid((6, 6, 3), (12, 14, 7))
    loaded = load(patient, grid=grid)
    brain = patient.read("brain_w048").astype(bool)

    def ramp(shape, affine):
        i, j, k = np.indices(shape)
        x, y, z = (affine[:3, :3] @ np.stack([i.ravel(), j.ravel(), k.ravel()])) + affine[:3, 3:]
        return (400 + x - 2 * y + z).reshape(shape), np.stack([x, y, z]).reshape(3, *shape)

    pred, centres = ramp(grid.shape, loaded["image"].affine.numpy())
    restored = RestoreNatived()(loaded | {"pred": torch.from_numpy(pred[None]).float()})["pred"][0].numpy()
    expected, place = ramp(brain.shape, patient.affine)
    low, high = (f(centres.reshape(3, -1), axis=1).reshape(3, 1, 1, 1) for f in (np.min, np.max))
    between = ((place >= low) & (place <= high)).all(axis=0) & brain
    border = np.divide(grid.spacing_mm, 2).reshape(3, 1, 1, 1)
    outside = ((place < low - border) | (place > high + border)).any(axis=0)
    np.testing.assert_allclose(restored[between], expected[between], atol=1e-3)
    assert (restored[outside | ~brain] == 0).all() and (restored[~outside & brain] > 0).all()


def test_restoring_survives_a_data_loader(patient):
    dataset = Dataset([{"image": str(patient.folder)}], LoadCased(grid=GRID))
    batch = next(iter(DataLoader(dataset, batch_size=1)))
    batch["pred"] = torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0))
    expected = RestoreNatived()({**dataset[0], "pred": batch["pred"][0]})["pred"]
    restored = RestoreNatived()(decollate_batch(batch)[0])["pred"]
    torch.testing.assert_close(restored.as_tensor(), expected.as_tensor())
    torch.testing.assert_close(restored.affine, expected.affine)


def test_compact_cases_expand_to_the_same_tensors(patient):
    patient.path("gd_w000").unlink()
    loaded = load(patient, with_outcome=True, arm="dimethyl_fumarate")
    compact = CompactCased()(loaded)
    assert {key: value.dtype for key, value in compact.items()} == {"flair": torch.float16, "masks": torch.int8}
    assert not any(hasattr(value, "affine") for value in compact.values())
    expanded = expand_case(compact, 4)
    for key in ("image", "target"):
        torch.testing.assert_close(expanded[key], loaded[key].as_tensor(), atol=5e-4, rtol=0)
    without = load(patient, arm="dimethyl_fumarate")
    assert set(expand_case(CompactCased()(without), 4)) == {"image"}


def no_flair(patient):
    patient.path("flair_w000").unlink()
    return patient.path("flair_w000"), "no FLAIR of w000; put it there"


def misnamed_flair(patient):
    path = patient.path("flair_w000")
    path.rename(path.with_name("sub-0001_ses-w000_T2flair.nii.gz"))
    ignored = (
        "ignored sub-0001/ses-w000/anat/sub-0001_ses-w000_T2flair.nii.gz: names are sub-0001_<session>_ and one of "
        "FLAIR, label-T2lesion_mask, label-Gdlesion_mask, label-NET2_mask, desc-brain_mask, in <session>/anat"
    )
    return path, f"no FLAIR of w000; put it there; {ignored}"


def no_outcome(patient):
    patient.path("flair_w096").unlink()
    return patient.path("flair_w096"), "no FLAIR of w096; put it there"


def no_outcome_mask(patient):
    patient.path("net2_w096").unlink()
    return patient.path("net2_w096"), "no outcome mask of w096; put it there"


def other_affine(patient):
    affine = patient.affine.copy()
    affine[0, 3] += 1
    return (
        patient.write("t2_w048", patient.read("t2_w048"), affine),
        "its affine is not the FLAIR's; resample it to sub-0001_ses-w048_FLAIR.nii.gz",
    )


def other_shape(patient):
    path = patient.write("brain_w048", patient.read("brain_w048")[:-1])
    return path, "shape (47, 56, 15) is not the FLAIR's (48, 56, 15); resample it to sub-0001_ses-w048_FLAIR.nii.gz"


def empty_brain(patient):
    path = patient.write("brain_w048", patient.read("brain_w048") * 0)
    return path, "the brain mask is empty; recreate or remove it"


def no_brain_found(patient):
    for visit in ("w000", "w048"):
        patient.path(f"brain_{visit}").unlink()
    speck = patient.read("flair_w048") * 0
    speck[0, 0, 0] = 100
    return patient.write("flair_w048", speck), "no brain found; add a mask in derivatives/brain"


def elsewhere(patient):
    affine = patient.affine.copy()
    affine[0, 3] += 500
    for name in ("t2_w000", "gd_w000"):
        patient.write(name, patient.read(name), affine)
    path = patient.write("flair_w000", patient.read("flair_w000"), affine)
    return path, "it does not cover the brain; co-register the visits"


@pytest.mark.parametrize(
    "spoil",
    [
        no_flair,
        misnamed_flair,
        no_outcome,
        no_outcome_mask,
        other_affine,
        other_shape,
        empty_brain,
        no_brain_found,
        elsewhere,
    ],
)
def test_an_unusable_patient_is_one_line(patient, spoil):
    path, problem = spoil(patient)
    with pytest.raises(InputError, match=f"^{re.escape(f'sub-0001: {path}: {problem}')}$"):
        load(patient, with_outcome=True)


@pytest.mark.skipif(not OPENMS.is_dir(), reason="the real scans are not here")
@pytest.mark.parametrize("number", ["01", "03"])
def test_real_scans_go_to_the_slab_and_back(tmp_path, number):
    """Two visits of a real patient: tissue of both alike, the slab full of brain, the way back onto the LPS grid."""
    source, case = OPENMS / f"patient{number}", f"sub-{number}"
    for study, visit in ((1, "w000"), (2, "w048")):
        for file, place, suffix in (
            (f"study{study}_FLAIR", tmp_path, "FLAIR"),
            ("brainmask", tmp_path / "derivatives" / "brain", "desc-brain_mask"),
        ):
            anat = place / case / f"ses-{visit}" / "anat"
            anat.mkdir(parents=True)
            (anat / f"{case}_ses-{visit}_{suffix}.nii.gz").symlink_to(source / f"{file}.nii.gz")
    loaded = LoadCased()({"image": tmp_path / case})
    brain, image = loaded["brain"][0].numpy(), loaded["image"].numpy()
    covered = brain.mean(axis=(0, 1))
    assert covered.min() > 0.4  # every slice is a large section of the brain
    assert abs(np.median(image[0][brain] - image[3][brain])) < 0.05
    flair = nib.load(source / "study2_FLAIR.nii.gz")
    restored = RestoreNatived()(loaded | {"pred": torch.ones(1, *SlabGrid().shape)})["pred"]
    assert restored.shape[1:] == flair.shape
    np.testing.assert_allclose(restored.affine, flair.affine)
    mask = nib.load(source / "brainmask.nii.gz").get_fdata() > 0
    volume_ml = restored.sum().item() * abs(np.linalg.det(flair.affine[:3, :3])) / 1000
    assert (restored[0].numpy()[~mask] == 0).all()
    assert volume_ml == pytest.approx(brain.sum() * 12 / 1000, rel=0.02)


def test_a_single_scan_is_read_as_the_first_visit_alone(patient, tmp_path):
    scan = shutil.copy(patient.path("flair_w000"), tmp_path / "scan.nii.gz")
    single = load(patient, image=scan)
    alone = load(patient, drop_visits=("w048",))
    assert single["inputs"]["used"] == ["flair_w000"] and single["inputs"]["session"] == {"w000": "ses-w000"}
    assert not single["image"][1:7].any() and np.isnan(single["inputs"]["alignment"])
    inside = single["brain"][0] & alone["brain"][0]
    np.testing.assert_allclose(single["image"][0][inside], alone["image"][0][inside], atol=0.05)  # brain estimated
    assert single["warnings"] == list(single["warnings"][:1]) and single["warnings"][0].startswith("a single FLAIR")


def test_a_folder_without_its_data_set_carries_a_warning(patient, tmp_path):
    copied = shutil.copytree(patient.folder, tmp_path / "copied" / patient.id)
    read = LoadCased(grid=GRID)
    assert "masks and treatment unknown" in read({"image": copied})["warnings"][-1]
    assert not any("unknown" in line for line in read({"image": copied, "dataset_dir": copied.parent})["warnings"])


def test_a_given_outcome_lies_on_the_scan_before_it(patient, tmp_path):
    """A labelling program shows that scan."""
    label = shutil.copy(patient.path("net2_w096"), tmp_path / "label.nii.gz")
    patient.write("flair_w096", patient.read("flair_w096")[:, :, 1:])
    with pytest.raises(InputError, match="shape .* is not the FLAIR's"):
        load(patient, with_outcome=True)
    read = LoadCased(grid=GRID, with_outcome=True)({"image": patient.folder, "outcome": label})
    np.testing.assert_array_equal(read["target"][1].numpy(), pooled(patient.read("net2_w096")) * 2 - 1)
