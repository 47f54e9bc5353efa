import numpy as np
import pytest
from scipy import ndimage

from bundle.arms import ARMS
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.events import WEEKS, Protocol, assigned_arm
from bundle.simulation.patient import patient_history, simulate_patient

NEIGHBOURS_26 = np.ones((3, 3, 3))
SEED = 21


@pytest.fixture(scope="module")
def patients():
    """Four patients with lesions in both intervals, and one with none in either."""

    def active(index: int) -> bool:
        history = patient_history(SEED, index)
        return all(2 <= history.count(assigned_arm(SEED, index), i) <= 12 for i in range(2))

    def quiet(index: int) -> bool:
        return not any(patient_history(SEED, index).count(assigned_arm(SEED, index), i) for i in range(2))

    chosen = [i for i in range(300) if active(i)][:4] + [i for i in range(300) if quiet(i)][:1]
    return {index: simulate_patient(SEED, index) for index in chosen}


def events(patient, visit: str) -> list[dict]:
    return patient.truth["arms"][ARMS[patient.arm]][f"net2_{visit}"]


def test_lesions_add_up(patients):
    for patient in patients.values():
        before, new, after = (patient.masks[k] for k in (("w000", "T2lesion"), ("w048", "NET2"), ("w048", "T2lesion")))
        np.testing.assert_array_equal(after, before | new)
        assert not (before & new).any()
        assert not (after & patient.masks["w096", "NET2"]).any()


def test_all_lesions_lie_in_the_parenchyma(patients):
    for patient in patients.values():
        for mask in patient.masks.values():
            assert not (mask & ~patient.anatomy.parenchyma).any()


def test_the_written_masks_are_the_potential_outcome_of_the_assigned_arm(patients):
    """Components of the mask and events of the sidecar pair up one to one: centroids and volumes agree."""
    for patient in patients.values():
        for visit in ("w048", "w096"):
            parts, count = ndimage.label(patient.masks[visit, "NET2"], NEIGHBOURS_26)
            listed = events(patient, visit)
            assert count == len(listed)
            for event in listed:
                nearest = min(
                    range(1, count + 1), key=lambda i: np.linalg.norm(centroid_mm(parts == i) - event["centroid_mm"])
                )
                np.testing.assert_allclose(centroid_mm(parts == nearest), event["centroid_mm"], atol=0.01)
                assert (parts == nearest).sum() * 3 == event["volume_mm3"]


def centroid_mm(mask: np.ndarray) -> np.ndarray:
    return AFFINE[:3, :3] @ np.argwhere(mask).mean(0) + AFFINE[:3, 3]


def test_counts_in_the_sidecar_are_those_of_the_history(patients):
    for index, patient in patients.items():
        history = patient_history(SEED, index)
        assert patient.truth["frailty"] == history.frailty
        assert patient.truth["num_gd_w000"] == history.num_gd
        assert patient.truth["num_t2_w000"] == history.num_gd + history.num_t2
        for arm, name in enumerate(ARMS):
            for interval, visit in enumerate(("w048", "w096")):
                assert len(patient.truth["arms"][name][f"net2_{visit}"]) == history.count(arm, interval)


def test_arms_share_the_lesions_of_the_first_interval(patients):
    for patient in patients.values():
        lists = [
            [(e["centroid_mm"], e["volume_mm3"]) for e in arm["net2_w048"]] for arm in patient.truth["arms"].values()
        ]
        longest = max(lists, key=len)
        assert all(one == longest[: len(one)] for one in lists)


def test_gadolinium_marks_the_most_recent_lesions(patients):
    weeks = Protocol().gd_weeks
    for patient in patients.values():
        assert not (patient.masks["w000", "Gdlesion"] & ~patient.masks["w000", "T2lesion"]).any()
        assert ndimage.label(patient.masks["w000", "Gdlesion"], NEIGHBOURS_26)[1] == patient.truth["num_gd_w000"]
        recent = [e for e in events(patient, "w048") if e["week"] > WEEKS - weeks]
        enhancing = patient.masks["w048", "Gdlesion"]
        assert not (enhancing & ~patient.masks["w048", "NET2"]).any()
        assert enhancing.sum() * 3 == sum(e["volume_mm3"] for e in recent)


def test_enlarging_lesions_touch_an_old_one_and_new_ones_do_not(patients):
    for patient in patients.values():
        parts, _ = ndimage.label(patient.masks["w048", "NET2"], NEIGHBOURS_26)
        beside_old = set(
            np.unique(parts[ndimage.binary_dilation(patient.masks["w000", "T2lesion"], NEIGHBOURS_26)])
        ) - {0}
        assert len(beside_old) == sum(e["enlarging"] for e in events(patient, "w048"))


def test_new_lesions_are_brighter_than_they_were(patients):
    for patient in patients.values():
        white = (patient.anatomy.tissue[0] > 0.97) & ~patient.masks["w048", "T2lesion"]
        new = patient.masks["w048", "NET2"]
        if new.any():
            before, after = (
                np.median(patient.flair[v][new]) / np.median(patient.flair[v][white]) for v in ("w000", "w048")
            )
            assert after > before + 0.15


def test_a_patient_depends_on_seed_and_index_only(patients):
    index, patient = next(iter(patients.items()))
    again = simulate_patient(SEED, index)
    assert again.truth == patient.truth
    for visit in patient.flair:
        np.testing.assert_array_equal(again.flair[visit], patient.flair[visit])
    assert patient_history(SEED, index).frailty != patient_history(SEED + 1, index).frailty
    assert patient_history(SEED, index).frailty != patient_history(SEED, index + 1).frailty
