from types import SimpleNamespace

import numpy as np
import pytest

from bundle.simulation.anatomy import (
    AFFINE,
    BRAINSTEM,
    LEFT,
    RIGHT,
    SHAPE,
    _spline_basis,
    _template_voxels,
    draw_anatomy,
    load_template,
)


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


def test_the_same_seed_gives_the_same_brain_and_another_seed_another(anatomies):
    again = draw_anatomy(np.random.default_rng(0))
    np.testing.assert_array_equal(again.tissue, anatomies[0].tissue)
    np.testing.assert_array_equal(again.labels, anatomies[0].labels)
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
            assert fraction[inside].mean() > 0.75, names
        for side, sign in ((LEFT, -1), (RIGHT, 1)):
            places = x_mm[np.nonzero(np.isin(anatomy.labels, list(side.values())))[0]]
            assert sign * places.mean() > 20
        assert set(np.unique(anatomy.labels)) == {0, BRAINSTEM, *LEFT.values(), *RIGHT.values()}


def test_lateral_ventricles_are_of_human_size(anatomies):
    for anatomy in anatomies:
        volume_ml = np.isin(anatomy.labels, (LEFT["ventricle"], RIGHT["ventricle"])).sum() * 3 / 1000
        assert 8 < volume_ml < 40


def test_lesions_start_in_the_parenchyma_mostly_in_white_matter_near_the_ventricles(anatomies):
    for anatomy in anatomies:
        start = anatomy.susceptibility / anatomy.susceptibility.sum()
        assert start[~anatomy.parenchyma].sum() == 0
        assert 0.85 < start[np.isin(anatomy.labels, (LEFT["white"], RIGHT["white"]))].sum() < 0.95
        assert 0.04 < start[np.isin(anatomy.labels, (LEFT["cortex"], RIGHT["cortex"]))].sum() < 0.12


def test_the_distance_to_the_ventricles_rules_the_white_matter():
    template = load_template()
    distance = template.ventricle_distance_mm
    assert distance[np.isin(template.labels, (LEFT["ventricle"], RIGHT["ventricle"]))].max() == 0
    assert distance.max() > 60
