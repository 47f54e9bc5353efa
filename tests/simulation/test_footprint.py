import numpy as np
import pytest

from bundle.simulation.disease import draw_disease, patient_anatomy, patient_history
from bundle.simulation.drawing import Surroundings, form_lesions
from bundle.simulation.events import Event, net2_volume_mm3
from bundle.simulation.footprint import lesion_footprint, mean_lesion_shapes
from bundle.simulation.protocol import Protocol
from bundle.simulation.territories import NUM_TERRITORIES

PROTOCOL = Protocol()


@pytest.fixture(scope="module")
def around():
    """A patient with smouldering lesions."""
    index = next(
        i for i in range(99) if len(patient_history(5, i).smouldering) > 2 and patient_history(5, i).num_old < 60
    )
    history, anatomy = patient_history(5, index), patient_anatomy(5, index)
    return Surroundings(
        anatomy, draw_disease(anatomy, history, 5, index, PROTOCOL).status_w000(), PROTOCOL.hazards
    ), history.law


def mean_voxels() -> float:
    quantiles = (np.arange(600) + 0.5) / 600
    return np.maximum(1, np.round(net2_volume_mm3(quantiles) / 3)).mean()


def test_shapes_add_up_to_the_mean_volume():
    assert sum(fraction for fraction, _ in mean_lesion_shapes()) == pytest.approx(1)
    total = sum(fraction * shape.sum() for fraction, shape in mean_lesion_shapes())
    assert total == pytest.approx(mean_voxels(), rel=1e-5)


def test_the_footprint_lies_where_lesions_may_and_adds_up_to_the_mean_volume(around):
    around, places = around
    footprint = lesion_footprint(around, *around.starts(places, PROTOCOL.enlarging))
    assert not footprint[~around.free].any() and footprint.min() >= 0
    assert footprint.sum() == pytest.approx(mean_voxels(), rel=0.03)


@pytest.mark.slow
def test_the_footprint_covers_what_lesions_cover(around):
    """Brute force, grown as the simulator does: eight sets of voxels of equal expected volume, least to most likely."""
    around, places = around
    footprint = lesion_footprint(around, *around.starts(places, PROTOCOL.enlarging))
    group = np.empty(footprint.size, int)
    order = np.argsort(footprint, axis=None)
    group[order] = np.minimum(8 * footprint.ravel()[order].cumsum(dtype=float) / footprint.sum(dtype=float), 7)
    rng, drawn = np.random.default_rng(0), []
    for k in range(1500):
        event = Event(int(rng.choice(NUM_TERRITORIES, p=places)), bool(rng.random() < PROTOCOL.enlarging))
        (lesion,) = form_lesions(around, [event], [np.random.SeedSequence(9, spawn_key=(k,))])
        drawn.append(np.bincount(group[np.ravel_multi_index(lesion, footprint.shape)], minlength=8))
    expected, error = np.bincount(group, footprint.ravel()), np.std(drawn, 0) / np.sqrt(len(drawn))
    assert (abs(np.mean(drawn, 0) - expected) < 0.2 * expected + 3 * error).all()
