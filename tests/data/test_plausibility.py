"""Inputs that would be forecast wrongly: each is refused in one line or carries a warning."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bundle.data.grid import SlabGrid
from bundle.data.plausibility import Plausibility
from bundle.data.transforms import LoadCased, plain_inputs
from bundle.errors import InputError
from bundle.lesions import Volume

GRID = SlabGrid((6, 6, 3), (24, 28, 15))


def load(patient, **options):
    return LoadCased(grid=GRID, **options)({"image": patient.folder})


def tissue(seed=0):
    """Tissue of 500 with a fine pattern, and fluid of 60 in irregular clefts: it shows where and whose a scan is."""
    noise = np.random.default_rng(seed).normal(size=(2, 48, 56, 15))
    pattern, clefts = (ndimage.gaussian_filter(field, 2) for field in noise)
    return np.where(clefts > clefts.std(), 60, 500 + 40 * pattern / pattern.std())


@pytest.fixture
def textured(patient):
    """The patient with a brain that is not the same everywhere; gains and lesions as they are."""
    for visit, gain in (("w000", 1), ("w048", 1.7), ("w096", 0.6)):
        lesions = patient.read(f"t2_{visit}" if visit != "w096" else "t2_w048")
        image = np.where(lesions, 800, tissue()) * patient.read(f"brain_{visit}") * gain
        patient.write(f"flair_{visit}", image.astype(np.float32))
    return patient


def change(patient, names, function, affine=None):
    for name in names:
        changed = function(patient.read(name))
        patient.write(name, changed, patient.affine if affine is None else affine)


W000 = ("flair_w000", "t2_w000", "gd_w000", "brain_w000")
EVERY = tuple(f"{kind}_{visit}" for kind in ("flair", "t2", "gd", "brain") for visit in ("w000", "w048")) + (
    "net2_w048",
)


def test_a_sound_patient_has_no_warning_and_a_record_of_what_was_read(textured):
    loaded = load(textured)
    assert loaded["warnings"] == []
    inputs, warnings = plain_inputs(loaded)
    assert warnings == [] and inputs.pop("alignment") > 0.9
    assert inputs == {
        "used": ["flair_w000", "t2_w000", "gd_w000", "flair_w048", "t2_w048", "gd_w048", "net2_w048"],
        "missing": [],
        "estimated": [],
        "brain": "given",
        "months": {"w000": None, "w048": None},
        "slab_centre_mm": pytest.approx(7, abs=1.5),
        "session": {"w000": "ses-w000", "w048": "ses-w048"},
    }


def test_what_is_missing_or_estimated_is_recorded(textured):
    for name in ("brain_w000", "brain_w048", "brain_w096", "gd_w000", "net2_w048"):
        textured.path(name).unlink()
    (textured.folder / "sub-0001_sessions.tsv").write_text("session_id\tmonths\nses-w000\t0\nses-w048\t22.5\n")
    loaded = load(textured)
    inputs, warnings = plain_inputs(loaded)
    assert (inputs["missing"], inputs["estimated"], inputs["brain"]) == (
        ["gd_w000", "net2_w048"],
        ["brain"],
        "estimated",
    )
    assert inputs["months"] == {"w000": 0, "w048": 22.5}
    assert warnings == ["the two visits are 22.5 months apart; the map takes them as 11"]


def test_a_slab_may_be_placed_by_hand_and_far_from_most_brain_it_carries_a_warning(textured):
    found = load(textured)["inputs"]["slab_centre_mm"]
    for moved, warned in ((0, 0), (3, 0), (9, 1)):
        loaded = load(textured, slab_centre_mm=found + moved)
        middle = loaded["image"].affine[2, 3] + (GRID.size_mm[2] - GRID.spacing_mm[2]) / 2
        assert loaded["inputs"]["slab_centre_mm"] == pytest.approx(found + moved) == pytest.approx(float(middle))
        texts = [text for text in loaded["warnings"] if "where the model was not tested" in text]
        assert len(texts) == warned
    with pytest.raises(InputError, match="correct --slab_centre_mm"):
        load(textured, slab_centre_mm=found + 500)
    with pytest.raises(InputError, match="slab_centre_mm='top' is not a number"):
        load(textured, slab_centre_mm="top")


def test_a_single_visit_has_no_alignment(textured):
    inputs, _ = plain_inputs(load(textured, drop_visits=("w048",)))
    assert inputs["alignment"] is None and inputs["session"] == {"w000": "ses-w000"}
    assert inputs["used"] == ["flair_w000", "t2_w000", "gd_w000"]


def test_the_record_survives_a_data_loader(textured):
    textured.path("gd_w000").unlink()
    load_ = LoadCased(grid=GRID, drop_visits=("w048",))
    dataset = Dataset([{"image": str(textured.folder)}], load_)
    (item,) = decollate_batch(next(iter(DataLoader(dataset, batch_size=1))))
    assert plain_inputs(item) == plain_inputs(dataset[0])
    json.dumps(plain_inputs(item), allow_nan=False)


# ---- alignment


def shifted(patient, mm, axis):
    affine = patient.affine.copy()
    affine[axis, 3] += mm
    change(patient, W000, lambda data: data, affine)


def rotated(patient, degrees):
    affine = patient.affine.copy()
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([48, 56, 15]) - 1) / 2)
    change(patient, W000, lambda data: data, affine)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda patient: shifted(patient, 12, 0),
        lambda patient: shifted(patient, 12, 1),
        lambda patient: shifted(patient, 12, 2),
        lambda patient: rotated(patient, 20),
        lambda patient: change(patient, W000, lambda data: data[::-1]),
        lambda patient: change(patient, W000, lambda data: data[..., ::-1]),
        lambda patient: patient.write("flair_w000", tissue(1) * patient.read("brain_w000")),
    ],
    ids=["left", "front", "up", "rotated", "left-right", "upside-down", "another-patient"],
)
def test_visits_that_are_not_aligned_are_refused(textured, spoil):
    spoil(textured)
    message = "sub-0001: .*_FLAIR.nii.gz: w048 and w000 do not show one brain in one position .*; co-register"
    with pytest.raises(InputError, match=message):
        load(textured)


def test_a_displacement_of_a_cell_is_a_warning(textured):
    shifted(textured, 3, 2)
    limits = Plausibility(alignment_doubtful_wrong=(0.0, 0.0))
    (warning,) = load(textured, plausibility=limits)["warnings"]
    assert warning == "w048 and w000 may not be aligned: they agree better when moved up or down"


def test_a_doubtful_alignment_is_a_warning_that_states_the_figure(textured):
    limits = Plausibility(alignment_doubtful_wrong=(0.9999, 0.6))
    loaded = load(textured, plausibility=limits)
    figure = f"{loaded['inputs']['alignment']:.2f}"
    assert loaded["warnings"] == [f"w048 and w000 may not be aligned: correlation {figure}, usually above 1.00"]


def test_visits_that_hardly_overlap_are_refused_and_others_compared_where_both_are(textured):
    data = textured.read("flair_w000")
    data[:14] = 0
    textured.write("flair_w000", data)
    loaded = load(textured)
    assert loaded["inputs"]["alignment"] > 0.9
    assert len(loaded["warnings"]) == 1 and "of the slab's brain in common" in loaded["warnings"][0]
    data[:30] = 0
    textured.write("flair_w000", data)
    with pytest.raises(InputError, match="w048 and w000 have [0-9]+% of the slab's brain in common; co-register"):
        load(textured)


def test_one_image_given_for_both_visits_is_a_warning(textured):
    assert load(textured)["warnings"] == []
    textured.write("flair_w000", textured.read("flair_w048"))
    (warning,) = load(textured)["warnings"]
    assert warning == "w048 and w000 are the same image: nothing can have changed between them"


def test_the_outcome_must_be_aligned_too(textured):
    change(textured, ("flair_w096", "net2_w096"), lambda data: data[::-1])
    load(textured)
    with pytest.raises(InputError, match="ses-w096.*: w096 and w000 do not show one brain"):
        load(textured, with_outcome=True)


# ---- sizes


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1000, "voxels of 3000 x 3000 x 3000 mm are implausible for a brain scan; correct the qform or sform"),
        (10, "voxels of 30 x 30 x 30 mm are implausible for a brain scan"),
        (5, "a field of view of 720 x 840 x 225 mm is no head's; correct the voxel sizes"),
        (1.6, "a brain of [0-9]+ (ml|cm2 in cross-section) .*; correct the brain mask or the voxel sizes"),
        (0.5, "a brain of [0-9]+ cm2 in cross-section .*; correct the brain mask or the voxel sizes"),
        (0.1, "a field of view of 14.4 x 16.8 x 4.5 mm is no head's"),
    ],
)
def test_a_scaled_header_is_refused(textured, factor, message):
    change(textured, EVERY, lambda data: data, textured.affine @ np.diag([factor, factor, factor, 1]))
    with pytest.raises(InputError, match=message):
        load(textured)


def test_a_whole_brain_has_a_whole_brains_volume():
    limits = Plausibility()
    affine = np.diag([2.0, 2, 2, 1])
    x, y, z = np.indices((100, 100, 100)) - 50

    def ball(radius_mm):
        return Volume(x**2 + y**2 + z**2 < (radius_mm / 2) ** 2, affine, "mask.nii.gz")

    limits.check_brain(ball(65), "sub-1")  # 1150 ml
    hollow = ball(51)  # as high as a whole brain
    hollow.values[::2] = False
    for wrong in (ball(90), hollow, ball(47)):
        with pytest.raises(InputError, match="a brain of [0-9]+ ml .expected 500 to 2500."):
            limits.check_brain(wrong, "sub-1")


def test_too_fine_a_grid_is_refused_before_it_is_resampled(textured, monkeypatch):
    monkeypatch.setattr("bundle.data.grid._MAX_POINTS", 10_000)
    with pytest.raises(InputError, match="its voxels are too small; resample it"):
        load(textured)


# ---- content


@pytest.mark.parametrize("invert", [lambda x: x.max() - x, lambda x: np.where(x > 0, x.max() + 1 - x, 0)])
def test_an_inverted_flair_is_refused(textured, invert):
    change(textured, ("flair_w000", "flair_w048"), invert)
    with pytest.raises(InputError, match="fluid is not dark in it: inverted, or no FLAIR; give the FLAIR as"):
        load(textured)


def test_unusual_contrast_is_a_warning(textured):
    limits = Plausibility(contrast_doubtful_wrong=(100.0, 0.67))
    assert load(textured, plausibility=limits)["warnings"] == [
        f"the FLAIR of {visit} has unusual contrast: fluid is barely darker than tissue" for visit in ("w048", "w000")
    ]


def test_lesions_outside_the_brain(textured):
    outside = textured.read("t2_w000")
    outside[1:5, 1:5, 3:7] = 1  # 64 voxels beside the brain, 48 in it
    textured.write("t2_w000", outside)
    with pytest.raises(InputError, match="label-T2lesion_mask.nii.gz: 57% of its lesions lie outside the brain; check"):
        load(textured)
    outside[1:5, 1:5, 3:5] = 0
    textured.write("t2_w000", outside)
    assert load(textured)["warnings"] == ["40% of t2_w000 lies outside the brain"]


def test_more_lesions_than_any_patient_has(textured):
    brain = textured.read("brain_w048")
    textured.write("t2_w048", brain)
    with pytest.raises(InputError, match="61[0-9] ml of lesions are more than any patient has .200.; check"):
        load(textured)
    some = brain * 0
    some[16:32, 20:36, 0:15] = brain[16:32, 20:36, 0:15]
    textured.write("t2_w048", some)
    assert load(textured)["warnings"] == ["t2_w048 holds 104 ml of lesions, which is rare"]


def test_an_unknown_orientation_is_a_warning(textured):
    for name in EVERY:
        path = textured.path(name)
        image = nib.load(path)
        header = image.header.copy()
        header["sform_code"] = header["qform_code"] = 0
        data = np.asanyarray(image.dataobj)
        anonymous = nib.Nifti1Image(data, None, header)
        assert anonymous.header["sform_code"] == 0
        nib.save(anonymous, path)
    assert load(textured)["warnings"] == [
        f"the orientation of sub-0001_ses-{visit}_FLAIR.nii.gz is unknown (sform and qform codes are 0)"
        for visit in ("w000", "w048")
    ]


def test_names_of_sessions_that_do_not_exist(textured):
    load_ = LoadCased(grid=GRID, visits={"w000": "ses-01"})
    message = re.escape("no session ses-01, only ses-w000, ses-w048, ses-w096; add it, or map the names with --visits")
    with pytest.raises(InputError, match=message):
        load_({"image": textured.folder})
    before = load(textured)["image"].as_tensor()
    after = load_({"image": textured.folder, "visits": {"w000": "ses-w000"}})["image"].as_tensor()
    assert torch.equal(before, after)  # the item's mapping takes precedence
    with pytest.raises(InputError, match="is not a mapping"):
        LoadCased(visits="ses-01")


def test_memory_that_does_not_suffice_is_one_line(textured, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("bundle.data.transforms.to_slab", exhausted)
    with pytest.raises(InputError, match="sub-0001: too large for the memory; crop or resample it"):
        load(textured)
