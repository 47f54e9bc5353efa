import numpy as np
import pytest

from bundle.lesions import Volume
from bundle.outputs.sites import likely_sites, site_probability

SLAB = np.diag([2.0, 2.0, 3.0, 1.0])
COUNTS = np.array([0, 1, 1, 5])
EQUAL = np.full(4, 1 / 4)


def heat(values, shape=(80, 10, 5)):
    heatmap = np.zeros(shape)
    for voxel, value in values.items():
        heatmap[voxel] = value
    return Volume(heatmap, SLAB)


def test_sites_lie_where_the_heatmap_is_strongest_and_share_the_expected_count():
    sites = likely_sites(heat({(10, 5, 2): 0.05, (12, 5, 2): 0.03, (60, 5, 2): 0.02}), COUNTS)
    assert [site.centre_mm for site in sites] == [(20, 10, 6), (120, 10, 6)]
    assert [site.peak_probability for site in sites] == [0.05, 0.02]
    assert [site.expected_lesions for site in sites] == pytest.approx([0.8 * 1.75, 0.2 * 1.75])
    assert sites[0].probability == pytest.approx(1 - (1 + 0.2 + 0.2 + 0.2**5) / 4)
    assert sum(site.expected_lesions for site in sites) == pytest.approx(COUNTS.mean())  # no heat lies elsewhere


def test_a_region_that_holds_all_heat_is_as_probable_as_any_lesion():
    assert site_probability(1, 0.01, COUNTS, EQUAL) == pytest.approx(np.mean(COUNTS > 0))
    [site] = likely_sites(heat({(10, 5, 2): 0.05}), COUNTS)
    assert site.probability == pytest.approx(0.75) and site.expected_lesions == pytest.approx(1.75)


def test_a_distribution_gives_what_members_of_it_would():
    heatmap = heat({(10, 5, 2): 0.05, (60, 5, 2): 0.02})
    weighted = likely_sites(heatmap, np.array([0, 1, 5]), np.array([0.25, 0.5, 0.25]))
    for site, other in zip(weighted, likely_sites(heatmap, COUNTS), strict=True):
        assert site.probability == pytest.approx(other.probability)
        assert site.expected_lesions == pytest.approx(other.expected_lesions)


def test_one_lesion_in_every_member_lies_in_a_region_as_often_as_heat_does():
    assert site_probability(0.3, 0.0, np.ones(1), np.ones(1)) == pytest.approx(0.3)


def test_a_region_is_no_less_probable_than_its_voxels_and_grows_with_its_size():
    rng = np.random.default_rng(0)
    heatmap = Volume(rng.random((30, 30, 5)) ** 8, SLAB)
    sites = likely_sites(heatmap, COUNTS)
    assert sites and all(site.probability >= site.peak_probability > 0 for site in sites)
    assert site_probability(0.001, 0.78, COUNTS, EQUAL) == 0.78
    grown = [site_probability(fraction, 0.0, COUNTS, EQUAL) for fraction in np.linspace(0, 1, 11)]
    assert grown[0] == 0 and (np.diff(grown) > 0).all()


def test_the_peak_is_the_highest_voxel_within_the_radius_not_that_of_the_centre():
    broad = {(x, 5, 2): 0.05 for x in range(20, 25)} | {(26, 5, 2): 0.06}
    [site] = likely_sites(heat(broad), COUNTS)
    assert site.centre_mm[0] < 52 and site.peak_probability == 0.06


def test_without_any_lesion_in_the_members_a_site_is_as_probable_as_its_peak():
    [site] = likely_sites(heat({(10, 5, 2): 0.05}), np.zeros(4, int))
    assert (site.probability, site.expected_lesions) == (0.05, 0)


def test_sites_are_apart_limited_most_probable_first_and_none_below_the_least():
    heatmap = Volume((np.random.default_rng(0).random((40, 40, 5)) > 0.99) * 0.25, SLAB)
    sites = likely_sites(heatmap, COUNTS, limit=6)
    centres = np.array([site.centre_mm for site in sites])
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    assert len(sites) == 6 and distances[np.triu_indices(6, 1)].min() > 20
    assert [site.probability for site in sites] == sorted((site.probability for site in sites), reverse=True)
    assert likely_sites(heat({}), COUNTS) == []
    assert likely_sites(heat({(10, 5, 2): 0.009}), np.zeros(4, int)) == []


def test_the_region_is_that_of_the_centre():
    labels = np.full((80, 10, 5), 2)
    labels[40:] = 42
    sites = likely_sites(heat({(10, 5, 2): 0.2, (60, 5, 2): 0.1}), COUNTS, dseg=Volume(labels, SLAB))
    assert [site.region for site in sites] == ["cerebral white matter", "cortex"]
