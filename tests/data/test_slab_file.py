import pytest
import torch

from bundle.data.bids import find_case
from bundle.data.cache import cached_dataset
from bundle.data.grid import SlabGrid
from bundle.data.slab_file import is_active, load_slab, slab_bytes
from bundle.data.transforms import CompactCased, LoadCased
from bundle.errors import InputError

GRID = SlabGrid((6, 6, 3), (24, 28, 15))


@pytest.fixture
def compact(patient):
    return CompactCased()(LoadCased(grid=GRID, with_outcome=True)({"image": patient.folder}))


@pytest.fixture
def slab(compact, tmp_path):
    """The slab of a patient without volumes."""
    folder = tmp_path / "compact" / "sub-0001"
    folder.mkdir(parents=True)
    file = folder / "sub-0001_slab.npz"
    file.write_bytes(slab_bytes(compact, GRID))
    return file


def test_what_is_written_is_read(slab, compact):
    read = load_slab(slab, GRID)
    assert read.keys() == compact.keys() and all(torch.equal(read[kind], compact[kind]) for kind in read)
    assert is_active(slab)


def test_the_expected_outcome_is_a_target_for_whoever_asks(compact, slab, tmp_path):
    expected = torch.zeros(GRID.shape, dtype=torch.float16)
    expected[3, 4, 5] = 0.25
    slab.write_bytes(slab_bytes(compact | {"expected": expected}, GRID))
    assert torch.equal(load_slab(slab, GRID)["expected"], expected)
    items = [{"image": str(slab.parent), "arm": "avonex", "active": True}]
    one, mean = (cached_dataset(items, GRID, tmp_path, expected_outcome=asked)[0]["target"] for asked in (False, True))
    assert torch.equal(one[0], mean[0]) and torch.equal(one[1], compact["masks"][5].float())
    assert torch.equal(mean[1], 2 * expected.float() - 1)


def test_a_patient_has_a_slab_only_without_volumes(slab, patient):
    assert find_case(slab.parent).slab == slab
    (patient.folder / slab.name).write_bytes(slab.read_bytes())
    assert find_case(patient.folder).slab is None


def test_training_items_are_those_of_the_files(slab, patient, tmp_path):
    items = [{"image": str(folder), "arm": "avonex", "active": True} for folder in (patient.folder, slab.parent)]
    full, straight = cached_dataset(items, GRID, tmp_path / "cache")
    assert all(torch.equal(full[key], straight[key]) for key in ("image", "target"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_visit_that_is_dropped_is_unknown(slab, tmp_path):
    items = [{"image": str(slab.parent), "arm": "avonex", "active": True}]
    whole, part = (
        cached_dataset(items, GRID, tmp_path / "cache", drop_visits=visits)[0]["image"] for visits in ([], ["w048"])
    )
    assert torch.equal(part[[0, 1, 2, 7]], whole[[0, 1, 2, 7]]) and not part[3:7].any()
    with pytest.raises(InputError, match="w000 is required in a compact data set"):
        load_slab(slab, GRID, ["w000"])


@pytest.mark.parametrize("grid", [SlabGrid((5, 6, 3), GRID.shape), SlabGrid(GRID.spacing_mm, (24, 24, 15))])
def test_another_grid_is_refused(slab, grid):
    with pytest.raises(InputError, match="^sub-0001: .*its grid is .* of .* mm, not"):
        load_slab(slab, grid)


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_a_truncated_file_is_one_line(slab, keep):
    slab.write_bytes(slab.read_bytes()[:keep])
    with pytest.raises(InputError, match="^sub-0001: .*unreadable or truncated"):
        load_slab(slab, GRID)
