from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from bundle.simulation.anatomy import AFFINE, SHAPE, _spline_basis, _template_voxels, doubled, draw_anatomy
from bundle.simulation.labels import BRAINSTEM, LEFT, RIGHT
from bundle.simulation.template import load_template
from bundle.simulation.territories import NUM_TERRITORIES, TERRITORIES


@pytest.fixture(scope="module")
def anatomies():
    return [draw_anatomy(np.random.default_rng(seed)) for seed in range(3)]


def test_without_deformation_a_voxel_reads_the_template_at_its_own_place():
    still = SimpleNamespace(normal=lambda mean, deviation, size: np.full(size, float(mean)))
    voxel = np.array([17, 201, 3])
    world_mm = AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]
    np.testing.assert_allclose(
        _template_voxels(still)[(slice(None), *voxel)], world_mm - load_template().origin_mm, atol=1e-4
    )


def test_splines_are_a_partition_of_unity():
    np.testing.assert_allclose(_spline_basis(192, 7).sum(1), 1, atol=1e-12)
    assert _spline_basis(192, 7).shape[1] == 7 + 3


def test_doubling_is_linear_interpolation():
    coarse = np.random.default_rng(0).random((10, 12, 3)).astype(np.float32)
    expected = ndimage.zoom(coarse, (2, 2, 1), order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(doubled(coarse), expected, atol=1e-6)


def test_the_same_seed_gives_the_same_brain_and_another_seed_another(anatomies):
    again = draw_anatomy(np.random.default_rng(0))
    for name in ("brain", "tissue", "labels", "territory", "susceptibility", "ventricle_mm", "right"):
        np.testing.assert_array_equal(getattr(again, name), getattr(anatomies[0], name))
    assert (again.brain != anatomies[1].brain).mean() > 0.01


def test_tissue_fractions_add_up_to_one_in_the_brain_and_to_none_outside(anatomies):
    for anatomy in anatomies:
        np.testing.assert_allclose(anatomy.tissue.sum(0), anatomy.brain, atol=1e-5)


def test_the_brain_lies_within_the_field_of_view(anatomies):
    for anatomy in anatomies:
        across = anatomy.brain.any(axis=2)
        assert not (across[[0, -1]].any() or across[:, [0, -1]].any())
        assert anatomy.brain.any(axis=(0, 1)).all()


def test_labels_agree_with_tissue_and_side(anatomies):
    x_mm = np.arange(SHAPE[0]) + AFFINE[0, 3]
    for anatomy in anatomies:
        white, grey, fluid = anatomy.tissue
        for names, fraction in (("white", white), ("cortex", grey), ("ventricle", fluid)):
            inside = np.isin(anatomy.labels, (LEFT[names], RIGHT[names]))
            assert fraction[inside].mean() > 0.7, names
        for side, sign in ((LEFT, -1), (RIGHT, 1)):
            places = x_mm[np.nonzero(np.isin(anatomy.labels, list(side.values())))[0]]
            assert sign * places.mean() > 20
        assert set(np.unique(anatomy.labels)) == {0, BRAINSTEM, *LEFT.values(), *RIGHT.values()}


def test_lateral_ventricles_are_of_human_size(anatomies):
    for anatomy in anatomies:
        volume_ml = np.isin(anatomy.labels, (LEFT["ventricle"], RIGHT["ventricle"])).sum() * 3 / 1000
        assert 8 < volume_ml < 40


def test_the_cortex_is_folded(anatomies):
    """Fluid reaches between 4 and 15 mm under the surface of the hemispheres, as it does not in the template."""
    depth = load_template().depth_mm
    template_fluid = load_template().tissue[2][(depth > 4) & (depth < 15)].mean()
    for anatomy in anatomies:
        inner = ndimage.distance_transform_edt(anatomy.brain, sampling=(1, 1, 30))
        assert anatomy.tissue[2][(inner > 4) & (inner < 15)].mean() > template_fluid + 0.02


def test_territories_hold_every_place_where_lesions_start(anatomies):
    for anatomy in anatomies:
        members = np.concatenate(anatomy.members)
        np.testing.assert_array_equal(np.sort(members), np.flatnonzero(anatomy.susceptibility))
        assert len(anatomy.members) == NUM_TERRITORIES
        assert min(len(m) for m in anatomy.members) > 200
        assert not anatomy.susceptibility[~anatomy.parenchyma].any()


def test_territories_lie_where_their_names_say(anatomies):
    for anatomy in anatomies:
        places = {name: np.array(np.unravel_index(m, SHAPE)) for name, m in zip(TERRITORIES, anatomy.members)}
        middle = {name: AFFINE[:3, :3] @ p.mean(1) + AFFINE[:3, 3] for name, p in places.items()}
        for side, sign in (("left", -1), ("right", 1)):
            assert all(sign * m[0] > 2 for name, m in middle.items() if name.startswith(side))
            front, middle_part, back = (
                middle[f"{side} periventricular {lobe}"][1] for lobe in ("frontal", "parietal", "occipital")
            )
            assert front > middle_part + 15 > back + 30
        ventricle_mm = {name: anatomy.ventricle_mm.ravel()[m].mean() for name, m in zip(TERRITORIES, anatomy.members)}
        assert max(v for name, v in ventricle_mm.items() if "periventricular" in name) < 10
        assert ventricle_mm["left juxtacortical"] > ventricle_mm["left deep white matter"] > 8


def test_the_distance_to_the_ventricles_rules_the_white_matter():
    template = load_template()
    distance = template.ventricle_distance_mm
    assert distance[np.isin(template.labels, (LEFT["ventricle"], RIGHT["ventricle"]))].max() == 0
    assert distance.max() > 60
