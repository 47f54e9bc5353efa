from functools import cache
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from bundle.lesions import Volume
from bundle.outputs.page import forecast_page

pytestmark = pytest.mark.slow

SHAPE = (30, 40, 15)
INPUTS = {
    "used": ["flair_w000", "t2_w000", "gd_w000", "flair_w048", "t2_w048", "net2_w048"],
    "missing": ["gd_w048"],
    "estimated": ["brain"],
    "brain": "estimated",
    "alignment": 0.93,
    "months": {"w000": 0, "w048": None},
    "session": {"w000": "ses-w000", "w048": "ses-02"},
}
AFFINE = np.array([[4.0, 0, 0, -58], [0, 4, 0, -78], [0, 0, 3, -20], [0, 0, 0, 1]])
PANELS = np.s_[160:1025, 12:1195]  # rows and columns of the page that the fifteen slices fill


def forecast(**changes):
    return {
        "case": "sub-1",
        "arm": "dimethyl_fumarate",
        "num_members": 16,
        "p_active": 0.25,
        "p_active_interval": [0.09, 0.5],
        "count_source": "members",
        "members": {"p_active": 0.25, "p_active_interval": [0.09, 0.5]},
        "count": {"mean": 0.4, "quantiles": {"5": 0, "95": 2}, "histogram": {"0": 0.75, "1": 0.15, "2": 0.1}},
        "volume_ml": {"mean": 0.1, "members": {"mean": 0.1, "quantiles": {"5": 0.0, "95": 0.5}}},
        "differences": [],
        "warnings": [],
        "inputs": INPUTS,
        "likely_sites": [],
        "weights_sha256": None,
        "sampling": {"seed": 0, "num_steps": 20, "guidance_scale": 1.0},
        "versions": {"bundle": "0.1.0"},
    } | changes


def head():
    x, y, _ = np.indices(SHAPE)
    brain = ((x - 14.5) / 12) ** 2 + ((y - 19.5) / 17) ** 2 < 1
    return np.where(brain, 100.0 + x + y, 0.0), brain


def page(heatmap=None, consensus=None, affine=AFFINE, turn=lambda volume: volume, slices=(0, 14), old=None, **changes):
    flair, brain = head()
    heatmap = np.zeros(SHAPE) if heatmap is None else heatmap
    consensus = heatmap >= 0.5 if consensus is None else consensus
    covered = np.zeros(SHAPE, dtype=bool)
    covered[:, :, slices[0] : slices[1] + 1] = True
    old = old if old is None else turn(old)
    return forecast_page(
        Volume(turn(flair), affine),
        turn(heatmap),
        turn(consensus),
        forecast(**changes),
        brain=turn(brain),
        covered=turn(covered),
        old_lesions=old,
    )


@cache
def plain():
    return page()


@cache
def without_old_lesions():
    return page(old=np.zeros(SHAPE, dtype=bool))


def pixels(png):
    return imread(BytesIO(png))[..., :3]


def changed(png, other):
    """Rows and columns of the panels' pixels that differ."""
    return np.argwhere(np.abs(pixels(png) - pixels(other)).max(axis=-1)[PANELS] > 0.01)


def spot(x, y, z, value=0.4):
    heatmap = np.zeros(SHAPE)
    heatmap[x, y, z] = value
    return heatmap


def test_the_page_has_the_size_promised():
    assert pixels(plain()).shape == (1100, 1500, 3)


@pytest.mark.parametrize(
    ("where", "row", "column", "right_half", "lower_half"),
    [
        ((8, 19, 0), 0, 0, False, None),  # the patient's left (x below 0) is shown on the right
        ((21, 19, 0), 0, 0, True, None),
        ((14, 28, 7), 1, 2, None, False),  # anterior is up
        ((14, 10, 14), 2, 4, None, True),
    ],
)
def test_slices_hang_as_a_radiologist_reads_them(where, row, column, right_half, lower_half):
    seen = changed(page(spot(*where)), plain()) / np.array([864 / 3, 1183 / 5])
    np.testing.assert_array_equal(np.unique(np.floor(seen), axis=0), [[row, column]])
    within = seen % 1
    if right_half is not None:
        assert ((within[:, 1] > 0.5) == (not right_half)).all()
    if lower_half is not None:
        assert ((within[:, 0] > 0.5) == lower_half).all()


SITES = [{"centre_mm": [-10, 20, 1], "probability": 0.4, "radius_mm": 10.0, "region": "cortex"}]
FULL = {"heatmap": spot(8, 25, 7, 0.8), "old": spot(20, 12, 3, 1) > 0, "likely_sites": SITES}


@cache
def full():
    return page(**FULL)


@pytest.mark.parametrize("orientation", ["LPS", "ASR", "SRA"])
def test_the_same_head_gives_the_same_page_in_every_orientation(orientation):
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", orientation)))
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    assert page(affine=affine, turn=lambda volume: nib.apply_orientation(volume, turn), **FULL) == full()


def test_upside_down_slices_keep_the_numbers_of_the_file():
    flip = np.array([[0, 1], [1, 1], [2, -1]])
    affine = AFFINE @ nib.orientations.inv_ornt_aff(flip, SHAPE)
    flipped = page(spot(8, 25, 0), affine=affine, turn=lambda v: v[:, :, ::-1], slices=(0, 14))
    difference = changed(flipped, page(spot(8, 25, 0))) / np.array([864 / 3, 1183 / 5])
    assert len(difference) and (difference[:, 0] % 1 > 0.8).all()  # the captions alone


def test_shares_below_one_per_mille_and_outside_the_forecast_slices_are_not_drawn():
    assert page(spot(14, 20, 7, 0.0009)) == plain()
    assert page(spot(14, 20, 2), slices=(4, 10)) == page(slices=(4, 10))


@pytest.mark.parametrize("layer", ["consensus", "old", "likely_sites"])
def test_consensus_old_lesions_and_sites_are_drawn_where_they_are(layer):
    site = {"centre_mm": (AFFINE @ [8, 25, 7, 1])[:3], "probability": 0.4, "radius_mm": 10.0, "region": None}
    drawn = [site] if layer == "likely_sites" else spot(8, 25, 7, 1) > 0
    rows, columns = changed(page(**{"old": np.zeros(SHAPE, dtype=bool), layer: drawn}), without_old_lesions()).T
    assert rows.size and rows.min() > 864 / 3 and rows.max() < 864 / 2  # second row, anterior
    assert columns.min() > 2.5 * 1183 / 5 and columns.max() < 3 * 1183 / 5  # third column, the patient's left


@pytest.mark.parametrize(("width_mm", "aspect"), [(4, 1), (2, 0.5)])
def test_voxels_are_drawn_at_their_true_shape(width_mm, aspect):
    affine = AFFINE @ np.diag([width_mm / 4, 1, 1, 1])
    heatmap = spot(slice(10, 18), slice(15, 23), 7)
    rows, columns = changed(page(heatmap, affine=affine), page(affine=affine)).T
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(aspect, abs=0.03)


def test_warnings_are_an_amber_band_and_differences_a_line_of_text():
    amber = np.array([255, 191, 0]) / 255

    def rows_in_amber(png):
        return (np.abs(pixels(png) - amber).max(axis=-1) < 0.01).mean(axis=1)

    assert rows_in_amber(plain()).max() == 0
    assert rows_in_amber(page(warnings=["the visits hardly correlate"])).max() > 0.9  # the full width of the page
    different = page(differences=["The heatmap holds 2 ml, the samples 1 ml."])
    assert rows_in_amber(different).max() < 0.01 and different != plain()
    many = page(warnings=[f"warning {i}" for i in range(20)])
    assert pixels(many).shape == (1100, 1500, 3)
    assert 4 * 20 <= (rows_in_amber(many) > 0.5).sum() <= 4 * 26  # lines of a quarter inch


@pytest.mark.parametrize(
    "changes",
    [
        {"missing": []},
        {"brain": "given"},
        {"alignment": None},
        {"alignment": 0.71},
        {"months": {"w000": 0, "w048": 11.5}},
        {"session": {"w000": "ses-01", "w048": "ses-02"}},
    ],
)
def test_the_inputs_are_on_the_page(changes):
    seen = np.argwhere(np.abs(pixels(page(inputs=INPUTS | changes)) - pixels(plain())).max(axis=-1) > 0.01)
    assert len(seen) and seen[:, 0].min() > 750 and seen[:, 1].min() > 1195  # below the sites, beside the panels


def test_slices_forecast_in_part_say_so_and_all_that_hold_heat_are_shown():
    half = np.zeros(SHAPE, bool)
    half[:14] = True
    flair, brain = head()
    covered = {"brain": brain, "covered": half}
    drawn = forecast_page(Volume(flair, AFFINE), np.zeros(SHAPE), brain & False, forecast(), **covered)
    rows, columns = (changed(drawn, plain()) % np.array([864 / 3, 1183 / 5])).T
    assert len(rows) and (rows > 0.8 * 288).any() and np.ptp(columns[rows < 0.5 * 288]) < 5  # caption; a dashed line


def test_a_scan_outside_the_slab_still_gets_a_page():
    flair, brain = head()
    nothing = np.zeros(SHAPE, bool)
    png = forecast_page(Volume(flair, AFFINE), np.zeros(SHAPE), nothing, forecast(), brain=brain, covered=nothing)
    assert pixels(png).shape == (1100, 1500, 3)
