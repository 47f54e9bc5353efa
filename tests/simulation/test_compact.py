import numpy as np
import pytest
import torch

from bundle.data.transforms import CompactCased, LoadCased
from bundle.simulation.compact import load_slab
from bundle.simulation.trial import simulate_trial


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    for name, compact in (("full", False), ("compact", True)):
        simulate_trial(folder / name, 3, seed=31, workers=1, preset="clinic", compact=compact)
    return folder / "full", folder / "compact"


def test_a_slab_holds_what_the_files_would_have_given(both):
    """Bit by bit, whichever masks are missing."""
    full, compact = both
    missing = 0
    for case in ("sub-0001", "sub-0002", "sub-0003"):
        through_files = CompactCased()(LoadCased(with_outcome=True)({"image": full / case}))
        straight = load_slab(compact / case / f"{case}_slab.npz")
        assert straight.keys() == through_files.keys()
        for name, values in through_files.items():
            assert straight[name].dtype == values.dtype
            torch.testing.assert_close(straight[name], values, rtol=0, atol=0)
        missing += int((straight["masks"] == 0).all(dim=(1, 2, 3)).sum())
    assert missing > 0


def test_tables_and_truth_are_those_of_the_full_data_set(both):
    full, compact = both
    for file in ["participants.tsv"] + [
        f"{place}"
        for c in ("sub-0001", "sub-0003")
        for place in (f"{c}/{c}_sessions.tsv", f"derivatives/truth/{c}/{c}_truth.json")
    ]:
        assert (full / file).read_bytes() == (compact / file).read_bytes()
    assert not list(compact.rglob("*.nii.gz"))


def test_a_slab_is_small(both):
    sizes = [file.stat().st_size for file in both[1].rglob("*.npz")]
    assert len(sizes) == 3 and np.max(sizes) < 600_000
