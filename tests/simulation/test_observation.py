import shutil
from dataclasses import replace

import numpy as np
import pytest

from bundle.errors import InputError
from bundle.simulation.disease import patient_anatomy, patient_history
from bundle.simulation.drawing import SMOULDERING
from bundle.simulation.events import assigned_arm
from bundle.simulation.observation import observe, read_counts, read_masks, read_observation, read_protocol
from bundle.simulation.oracle import Oracle
from bundle.simulation.protocol import PRESETS
from bundle.simulation.trial import simulate_trial

pytestmark = pytest.mark.slow

SEED = 11


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trials")
    for preset in PRESETS:
        simulate_trial(folder / preset, 2, seed=SEED, workers=1, preset=preset)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_read_is_what_was_drawn(trials, preset):
    protocol = PRESETS[preset]
    assert read_protocol(trials / preset) == protocol
    for index in range(2):
        expected = observe(patient_history(SEED, index, protocol), assigned_arm(SEED, index), protocol)
        stated = read_counts(trials / preset, f"sub-000{index + 1}")
        np.testing.assert_array_equal(stated.territories, expected.territories)
        assert replace(stated, territories=None) == replace(expected, territories=None)


def test_from_w000_alone_nothing_of_the_first_year_is_seen(trials):
    stated = read_observation(trials / "trial", "sub-0001", "w000")
    assert stated.num_net2 is stated.num_active is stated.num_enhancing is stated.growth_mm is None
    assert stated.territories.sum() == stated.num_t2 + stated.num_gd + stated.num_smouldering
    later = read_observation(trials / "trial", "sub-0001")
    np.testing.assert_array_equal(stated.anatomy.tissue, patient_anatomy(SEED, 0).tissue)
    assert 0 < (stated.status > 0).sum() <= (later.status > 0).sum()


def test_masks_of_a_clean_reading_show_nearly_what_there_is(trials):
    for case in ("sub-0001", "sub-0002"):
        perfect, seen = (read(trials / "trial", case) for read in (read_observation, read_masks))
        assert (seen.num_gd, seen.num_net2, seen.num_enhancing) == (
            perfect.num_gd,
            perfect.num_net2,
            perfect.num_enhancing,
        )
        assert seen.num_t2 <= perfect.num_t2  # some have merged
        np.testing.assert_array_equal(seen.status > 0, perfect.status > 0)
        assert seen.territories.sum() <= perfect.territories.sum()


def test_without_flair_masks_tell_neither_signal_nor_activity(trials):
    blind = read_masks(trials / "trial", "sub-0002", flair_signs=False)
    assert blind.diffuse is blind.num_smouldering is blind.num_active is None
    assert not (blind.status == SMOULDERING).any()
    assert Oracle()(blind, 0).heatmap.max() > 0


def test_a_missing_mask_shows_nothing(trials, tmp_path):
    shutil.copytree(trials / "trial", tmp_path / "trial")
    for mask in (tmp_path / "trial").rglob("sub-0001*label-*_mask.nii.gz"):
        mask.unlink()
    seen = read_masks(tmp_path / "trial", "sub-0001", flair_signs=False)
    assert seen.num_gd is seen.num_t2 is seen.num_net2 is seen.territories is None
    assert not seen.status.any()


def test_what_is_no_simulated_trial_is_refused_in_one_line(trials, tmp_path):
    with pytest.raises(InputError, match="sub-0009.*no readable truth"):
        read_counts(trials / "trial", "sub-0009")
    with pytest.raises(InputError, match="names no preset"):
        read_protocol(tmp_path)
    shutil.copytree(trials / "trial", tmp_path / "trial")
    (status,) = (tmp_path / "trial").rglob("sub-0001_ses-w048_desc-status_dseg.nii.gz")
    status.write_bytes(status.read_bytes()[:100])
    with pytest.raises(InputError, match="sub-0001.*unreadable"):
        read_observation(tmp_path / "trial", "sub-0001")
    status.unlink()
    with pytest.raises(InputError, match="sub-0001.*no map of the true lesions"):
        read_observation(tmp_path / "trial", "sub-0001")
