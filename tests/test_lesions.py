import numpy as np
import pytest

from bundle.lesions import LesionRule, Volume, fraction_marking, lesion_table, region_of, voxel_volume_mm3

SLAB = np.diag([2.0, 2.0, 3.0, 1.0])


def mask(*voxels, shape=(10, 10, 5)):
    drawn = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        drawn[voxel] = True
    return drawn


def test_lesions_touch_by_face_edge_and_corner_only():
    rule = LesionRule()
    assert rule.count(mask((1, 1, 1), (2, 1, 1)), SLAB) == 1
    assert rule.count(mask((1, 1, 1), (2, 2, 1)), SLAB) == 1
    assert rule.count(mask((1, 1, 1), (2, 2, 2)), SLAB) == 1
    assert rule.count(mask((1, 1, 1), (3, 1, 1)), SLAB) == 2
    assert rule.count(mask(), SLAB) == 0


def test_a_voxel_at_the_threshold_is_marked():
    probability = np.array([0.49, 0.5, 0.0, 0.51]).reshape(4, 1, 1)
    np.testing.assert_array_equal(LesionRule().label(probability, SLAB).ravel(), [0, 1, 0, 2])


def test_the_papers_kernel_keeps_five_by_five_in_plane_and_nothing_smaller():
    drawn = mask((slice(1, 6), slice(1, 6), 1), shape=(20, 20, 5))
    drawn[10:14, 1:6, 1] = True  # 4 x 5
    drawn[0:5, 15:20, 4] = True  # 5 x 5 in a corner of the slab
    drawn[5, 17, 4] = True  # a spur that the opening takes off
    labels = LesionRule(kernel=(5, 5, 1)).label(drawn, SLAB)
    expected = mask((slice(1, 6), slice(1, 6), 1), (slice(0, 5), slice(15, 20), 4), shape=(20, 20, 5))
    np.testing.assert_array_equal(labels > 0, expected)
    assert labels.max() == 2


def test_a_kernel_from_json_is_the_same_rule():
    assert LesionRule(kernel=[5, 5, 1]) == LesionRule(kernel=(5, 5, 1))


@pytest.mark.parametrize("kernel", [(2, 2, 1), (3, 3, 1), (5, 5, 1), (2, 3, 2)])
def test_opening_takes_away_only_and_twice_is_once(kernel):
    rule = LesionRule(kernel=kernel)
    drawn = np.random.default_rng(0).random((20, 20, 5)) > 0.2
    once = rule.label(drawn, SLAB) > 0
    assert once.any() and not (once & ~drawn).any()
    np.testing.assert_array_equal(rule.label(once, SLAB) > 0, once)


def test_small_components_are_no_lesions_and_labels_stay_consecutive():
    drawn = mask((0, 0, 0), (slice(2, 5), 2, 2), (8, 8, 4), (slice(6, 8), 5, 0))  # 12, 36, 12 and 24 mm3
    labels = LesionRule(min_volume_mm3=24).label(drawn, SLAB)
    assert sorted(np.unique(labels, return_counts=True)[1].tolist()) == [2, 3, 495]
    assert LesionRule(min_volume_mm3=24).count(drawn, SLAB) == 2
    assert LesionRule(min_volume_mm3=24.01).count(drawn, SLAB) == 1


def test_volumes_follow_the_affine_whatever_its_axes():
    oblique = np.eye(4)
    oblique[:3, :3] = np.array([[0.0, -0.7, 0.0], [0.6, 0.0, 0.0], [0.0, 0.0, 3.0]])
    assert voxel_volume_mm3(oblique) == pytest.approx(1.26)
    assert LesionRule().volume_ml(mask((1, 1, 1), (5, 5, 3)), SLAB) == pytest.approx(0.024)
    assert LesionRule().volume_ml(mask(), SLAB) == 0


@pytest.mark.parametrize(
    "wrong", [{"kernel": (5, 5)}, {"kernel": (0, 1, 1)}, {"threshold": 0}, {"threshold": 1.1}, {"min_volume_mm3": -1}]
)
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LesionRule(**wrong)


def test_the_table_is_the_same_in_every_orientation():
    affine = SLAB.copy()
    affine[:3, 3] = (-10, 20, 5)
    drawn = mask((slice(1, 4), 2, 3), (8, 8, 0))
    straight = lesion_table(Volume(LesionRule().label(drawn, affine), affine))
    assert [lesion.centroid_mm for lesion in straight] == [(-6, 24, 14), (6, 36, 5)]
    assert [lesion.volume_mm3 for lesion in straight] == pytest.approx([36, 12])

    turn = np.zeros((4, 4))  # new axes: (S, H flipped, W)
    turn[2, 0], turn[0, 1], turn[1, 2], turn[3, 3] = 1, -1, 1, 1
    turn[0, 3] = drawn.shape[0] - 1
    turned = drawn.transpose(2, 0, 1)[:, ::-1]
    assert lesion_table(Volume(LesionRule().label(turned, affine @ turn), affine @ turn)) == straight


def test_regions_are_those_of_most_labelled_voxels():
    dseg = np.zeros((10, 10, 5))
    dseg[:3] = 2
    dseg[3:6] = 42
    dseg[9] = 999  # a label of no region
    points = np.argwhere(mask((slice(1, 6), 2, 2))) * [2, 2, 3]
    assert region_of(points, Volume(dseg, SLAB)) == "cortex"
    assert region_of(points[:3], Volume(dseg, SLAB)) == "cerebral white matter"
    assert region_of(points + [12, 0, 0], Volume(dseg, SLAB)) is None
    assert region_of(points + [0, 500, 0], Volume(dseg, SLAB)) is None


def test_a_lesions_probability_is_the_fraction_of_members_that_touch_it():
    members = np.stack([mask((1, 1, 1)), mask((2, 1, 1)), mask((1, 1, 1), (2, 1, 1)), mask((8, 8, 4))])
    fine = np.diag([1.0, 1.0, 3.0, 1.0])  # each coarse voxel is two by two of these
    fine[:2, 3] = -0.5
    labels = LesionRule().label(mask((slice(2, 6), slice(2, 4), 1), shape=(20, 20, 5)), fine)
    [lesion] = lesion_table(Volume(labels, fine), members=Volume(members, SLAB))
    assert lesion.probability == 0.75
    assert fraction_marking(np.array([[4.0, 2.0, 3.0]]), Volume(members, SLAB)) == 0.5
    assert fraction_marking(np.array([[-400.0, 2.0, 3.0]]), Volume(members, SLAB)) == 0


def test_the_table_puts_the_most_probable_first():
    members = np.stack([mask((1, 1, 1)), mask((1, 1, 1), (8, 8, 4))])
    labels = LesionRule().label(members.any(axis=0), SLAB)
    table = lesion_table(Volume(labels, SLAB), members=Volume(members, SLAB))
    assert [lesion.probability for lesion in table] == [1, 0.5]
