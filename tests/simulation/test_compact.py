import pytest
import torch

from bundle.data.bids import find_case
from bundle.data.cache import cached_dataset
from bundle.data.datalist import load_split, make_datalist
from bundle.data.grid import SlabGrid
from bundle.data.slab_file import load_slab
from bundle.data.transforms import CompactCased, LoadCased
from bundle.simulation.anatomy import VOXEL_MM3
from bundle.simulation.compact import compact_patient
from bundle.simulation.oracle import oracle_forecast
from bundle.simulation.patient import simulate_patient
from bundle.simulation.protocol import PRESETS
from bundle.simulation.trial import participant, simulate_trial

CASES = ("sub-0001", "sub-0002")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One trial, of NIfTI files and compact."""
    folder = tmp_path_factory.mktemp("both")
    for name, compact in (("full", False), ("compact", True)):
        simulate_trial(folder / name, len(CASES), seed=31, workers=1, preset="clinic", compact=compact)
    return folder / "full", folder / "compact"


@pytest.mark.slow
def test_a_slab_holds_what_the_files_would_have_given(both):
    """Bit by bit, whichever masks are missing."""
    full, compact = both
    missing = 0
    for case in CASES:
        through_files = CompactCased()(LoadCased(with_outcome=True)({"image": full / case}))
        straight = load_slab(find_case(compact / case).slab, SlabGrid())
        assert straight.keys() == through_files.keys()
        for name, values in through_files.items():
            assert straight[name].dtype == values.dtype
            torch.testing.assert_close(straight[name], values, rtol=0, atol=0)
        missing += int((straight["masks"] == 0).all(dim=(1, 2, 3)).sum())
    assert missing > 0


@pytest.mark.slow
def test_mixed_patients_are_those_of_both_presets_and_carry_the_oracles_forecast(tmp_path):
    out = simulate_trial(tmp_path / "mixed", 3, seed=31, workers=1, preset="mixed", compact=True, expected=True)
    for index, preset in enumerate(("trial", "trial", "clinic")):
        patient = simulate_patient(31, index, PRESETS[preset])
        forecast = oracle_forecast(patient, PRESETS[preset])
        slab = load_slab(find_case(out / participant(index)).slab, SlabGrid())
        straight = compact_patient(patient, "", SlabGrid(), forecast.heatmap)
        assert straight.keys() == slab.keys() == {"flair", "masks", "expected"}
        assert all(torch.equal(straight[kind], slab[kind]) for kind in slab)
        expected = slab["expected"].float()
        assert 0 <= expected.min() and expected.max() <= 1
        assert 0 < expected.sum() * 12 < 1.05 * forecast.heatmap.sum() * VOXEL_MM3  # the slab is a part of the brain


@pytest.mark.slow
def test_training_items_are_those_of_the_full_data_set(both, tmp_path):
    assert make_datalist(both[0]) | {"name": ""} == make_datalist(both[1]) | {"name": ""}
    items = [load_split(folder, "all") for folder in both]
    full, compact = (cached_dataset(of, SlabGrid(), tmp_path / "cache") for of in items)
    assert len(full) == len(compact) == len(CASES)
    for index in range(len(CASES)):
        assert full[index].keys() == compact[index].keys()
        for key, value in full[index].items():
            assert torch.equal(value, compact[index][key]) if torch.is_tensor(value) else value == compact[index][key]
    assert len(list((tmp_path / "cache").iterdir())) == len(CASES)  # of the full one


@pytest.mark.slow
def test_tables_and_truth_are_those_of_the_full_data_set(both):
    full, compact = both
    tables = [f"{case}/{case}_sessions.tsv" for case in CASES]
    truth = [f"derivatives/truth/{case}/{case}_truth.json" for case in CASES]
    for file in ("participants.tsv", *tables, *truth):
        assert (full / file).read_bytes() == (compact / file).read_bytes()
    assert not list(compact.rglob("*.nii.gz"))
    sizes = [file.stat().st_size for file in compact.rglob("*.npz")]
    assert len(sizes) == len(CASES) and max(sizes) < 600_000
