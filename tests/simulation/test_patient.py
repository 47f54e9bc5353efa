import numpy as np
import pytest
from scipy import ndimage

from bundle.arms import ARMS
from bundle.simulation.acquisition import diffuse_extent
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.disease import patient_history
from bundle.simulation.drawing import SMOULDERING
from bundle.simulation.events import assigned_arm
from bundle.simulation.patient import simulate_patient
from bundle.simulation.protocol import PRESETS, WEEKS_PER_MONTH, Protocol
from bundle.simulation.territories import TERRITORIES

NEIGHBOURS_26 = np.ones((3, 3, 3))
SEED = 21


@pytest.fixture(scope="module")
def simulated_patients():
    """Three patients with lesions in both intervals and one smouldering, and one with none in either."""

    def active(index: int) -> bool:
        history = patient_history(SEED, index)
        counts = [history.count(assigned_arm(SEED, index), i) for i in range(2)]
        return min(counts) >= 2 and max(counts) <= 12 and len(history.smouldering) > 0

    def quiet(index: int) -> bool:
        return not any(patient_history(SEED, index).count(assigned_arm(SEED, index), i) for i in range(2))

    chosen = [i for i in range(300) if active(i)][:3] + [i for i in range(300) if quiet(i)][:1]
    return {index: simulate_patient(SEED, index) for index in chosen}


def events(patient, visit: str) -> list[dict]:
    return patient.truth["arms"][ARMS[patient.arm]][f"net2_{visit}"]


def test_lesions_add_up(simulated_patients):
    for patient in simulated_patients.values():
        before, new, after = (patient.masks[k] for k in (("w000", "T2lesion"), ("w048", "NET2"), ("w048", "T2lesion")))
        np.testing.assert_array_equal(after, before | new)
        assert not (before & new).any()
        assert not (after & patient.masks["w096", "NET2"]).any()


def test_all_lesions_lie_in_the_parenchyma(simulated_patients):
    for patient in simulated_patients.values():
        for mask in patient.masks.values():
            assert not (mask & ~patient.anatomy.parenchyma).any()


def test_the_written_masks_are_the_potential_outcome_of_the_assigned_arm(simulated_patients):
    """Components of the mask and events of the sidecar pair up one to one: centroids and volumes agree."""
    for patient in simulated_patients.values():
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


def test_counts_in_the_sidecar_are_those_of_the_history(simulated_patients):
    for index, patient in simulated_patients.items():
        history = patient_history(SEED, index)
        assert patient.truth["frailty"] == history.frailty
        assert patient.truth["num_gd_w000"] == len(history.gd)
        assert patient.truth["num_t2_w000"] == history.num_old
        assert sum(patient.truth["territories_w000"].values()) == history.num_old
        for arm, name in enumerate(ARMS):
            for interval, visit in enumerate(("w048", "w096")):
                stated = patient.truth["arms"][name]
                assert len(stated[f"net2_{visit}"]) == history.count(arm, interval)
                assert stated[f"expected_net2_{visit}"] == history.expected(arm, interval, Protocol())


def test_arms_share_the_lesions_of_the_first_interval(simulated_patients):
    for patient in simulated_patients.values():
        lists = [
            [(e["centroid_mm"], e["volume_mm3"]) for e in arm["net2_w048"]] for arm in patient.truth["arms"].values()
        ]
        longest = max(lists, key=len)
        assert all(one == longest[: len(one)] for one in lists)


def test_gadolinium_marks_the_most_recent_lesions(simulated_patients):
    for patient in simulated_patients.values():
        onset = patient.history.months[0] * WEEKS_PER_MONTH - Protocol().gd_weeks
        assert not (patient.masks["w000", "Gdlesion"] & ~patient.masks["w000", "T2lesion"]).any()
        assert ndimage.label(patient.masks["w000", "Gdlesion"], NEIGHBOURS_26)[1] == patient.truth["num_gd_w000"]
        recent = [e for e in events(patient, "w048") if e["week"] > onset]
        enhancing = patient.masks["w048", "Gdlesion"]
        assert not (enhancing & ~patient.masks["w048", "NET2"]).any()
        assert enhancing.sum() * 3 == sum(e["volume_mm3"] for e in recent)


def test_events_that_enlarge_touch_an_old_lesion_and_new_ones_have_a_territory(simulated_patients):
    for patient in simulated_patients.values():
        parts, _ = ndimage.label(patient.masks["w048", "NET2"], NEIGHBOURS_26)
        old = ndimage.binary_dilation(patient.masks["w000", "T2lesion"], NEIGHBOURS_26)
        listed = events(patient, "w048")
        assert len(set(np.unique(parts[old])) - {0}) == sum(e["enlarging"] for e in listed)
        for event in listed + events(patient, "w096"):
            assert event["enlarging"] == (event["territory"] is None)
            if event["territory"]:
                start = tuple(np.rint(np.linalg.solve(AFFINE[:3, :3], event["start_mm"] - AFFINE[:3, 3])).astype(int))
                assert TERRITORIES[patient.anatomy.territory[start] - 1] == event["territory"]


def in_units_of_white_matter(patient, visit: str) -> np.ndarray:
    white = (patient.anatomy.tissue[0] > 0.97) & (diffuse_extent(patient.anatomy) == 0) & (patient.status["w048"] == 0)
    return patient.flair[visit] / np.median(patient.flair[visit][white])


def test_new_lesions_are_brighter_than_they_were(simulated_patients):
    for patient in simulated_patients.values():
        new = patient.masks["w048", "NET2"]
        if new.sum() > 20:
            before, after = (np.median(in_units_of_white_matter(patient, v)[new]) for v in ("w000", "w048"))
            assert after > before + 0.15


def test_smouldering_lesions_can_be_told_by_their_brightness(simulated_patients):
    seen = 0
    for patient in simulated_patients.values():
        signal = in_units_of_white_matter(patient, "w000")
        inner = ndimage.binary_erosion(
            patient.status["w000"] == SMOULDERING, ndimage.generate_binary_structure(3, 1) & (np.arange(3) == 1)
        )
        other = (patient.status["w000"] > 0) & (patient.status["w000"] != SMOULDERING)
        if inner.sum() > 20 and other.sum() > 20:
            seen += 1
            assert np.median(signal[inner]) > np.quantile(signal[other], 0.9)
    assert seen


def test_the_diffuse_signal_of_the_sidecar_is_in_the_image(simulated_patients):
    for patient in simulated_patients.values():
        white = (patient.anatomy.tissue[0] > 0.97) & (patient.status["w048"] == 0)
        near = ndimage.binary_dilation(patient.status["w048"] > 0, NEIGHBOURS_26, iterations=2)
        extent = diffuse_extent(patient.anatomy)
        inside = white & ~near & (extent > 0.95)
        measured = np.mean([np.median(in_units_of_white_matter(patient, v)[inside]) for v in ("w000", "w048")]) - 1
        assert measured == pytest.approx(patient.truth["diffuse"], abs=0.05)  # what the bias field leaves


def test_ventricles_grow_from_visit_to_visit(simulated_patients):
    for patient in simulated_patients.values():
        shell = (patient.anatomy.ventricle_mm > 0) & (patient.anatomy.ventricle_mm <= 1) & (patient.status["w048"] == 0)
        shell &= patient.anatomy.tissue[0] > 0.6
        first, last = (in_units_of_white_matter(patient, v)[shell].mean() for v in ("w000", "w096"))
        assert last < first


def test_careless_readers_change_the_masks_but_not_the_truth():
    """Of the same seed, so all else is the same."""
    careless = next(
        i
        for i in range(60)
        if (h := patient_history(2, i, PRESETS["clinic"])).num_old > 30 and h.count(assigned_arm(2, i), 1)
    )
    patient = simulate_patient(2, careless, PRESETS["clinic"])
    assert {len(v) for v in patient.truth["arms"].values()} == {7}
    np.testing.assert_array_equal(
        patient.status["w048"] > 0, (patient.status["w000"] > 0) | (patient.status["w048"] > 0)
    )
    assert ndimage.label(patient.masks["w096", "NET2"], NEIGHBOURS_26)[1] == len(events(patient, "w096"))


def test_further_futures_are_draws_like_the_outcome_and_change_nothing_else():
    """Their counts have the mean of the sidecar, and their lesions lie where the outcome's may: outside old ones."""
    index = next(
        i for i in range(99) if 4 < patient_history(5, i).expected(assigned_arm(5, i), 1, PRESETS["trial"]) < 9
    )
    patient, plain = simulate_patient(5, index, futures=20), simulate_patient(5, index)
    assert patient.truth == plain.truth and not plain.futures
    assert all(np.array_equal(patient.flair[visit], plain.flair[visit]) for visit in patient.flair)
    mean = patient.truth["arms"][ARMS[patient.arm]]["expected_net2_w096"]
    counts = [ndimage.label(future, NEIGHBOURS_26)[1] for future in patient.futures]
    assert abs(np.mean(counts) - mean) < 3.5 * np.sqrt(mean / 20)
    assert not any((future & (patient.status["w048"] > 0)).any() for future in patient.futures)
    assert len({future.tobytes() for future in patient.futures}) == 20


def test_a_patient_depends_on_seed_and_index_only(simulated_patients):
    index, patient = next(iter(simulated_patients.items()))
    again = simulate_patient(SEED, index)
    assert again.truth == patient.truth
    for visit in patient.flair:
        np.testing.assert_array_equal(again.flair[visit], patient.flair[visit])
    assert patient_history(SEED, index).frailty != patient_history(SEED + 1, index).frailty
    assert patient_history(SEED, index).frailty != patient_history(SEED, index + 1).frailty
