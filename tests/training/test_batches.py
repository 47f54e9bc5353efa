"""The order of patients is a function of the iteration; errors of worker processes arrive as one line."""

import pytest
import torch
from torch.utils.data import Dataset

from bundle.errors import InputError
from bundle.training.batches import IterationBatches, PatientLoader, training_loader, validation_loader


def test_batches_are_a_function_of_the_iteration():
    whole = list(IterationBatches(10, 4, 12, seed=1))
    resumed = IterationBatches(10, 4, 12, seed=1)
    resumed.start = 7
    assert list(resumed) == whole[7:] and len(whole) == 12
    assert list(IterationBatches(10, 4, 12, seed=2)) != whole


def test_every_item_is_seen_once_an_epoch():
    laid_end_to_end = [index for batch in IterationBatches(10, 4, 10) for index in batch]
    epochs = [laid_end_to_end[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_processes_divide_the_global_batch(monkeypatch):
    whole = list(IterationBatches(10, 4, 6))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("bundle.training.batches.rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(list(IterationBatches(10, 4, 6)))
    assert [a + b for a, b in zip(*parts)] == whole
    with pytest.raises(InputError, match="batch_size=3 cannot be divided"):
        IterationBatches(10, 3, 6)


def test_without_patients_there_is_nothing_to_train_on_or_to_validate():
    with pytest.raises(InputError, match="no patient to train on"):
        IterationBatches(0, 4, 6)
    with pytest.raises(InputError, match="no validation patient"):
        validation_loader(Patients(0), 2)


class Patients(Dataset):
    """Numbered; one of them cannot be read."""

    def __init__(self, count, damaged=None):
        self.count, self.damaged = count, damaged

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.damaged:
            raise InputError("damaged; indeed", "copy it again", case=f"sub-{index}", file="scan.nii")
        return {"number": torch.tensor(index)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_give_the_batches_asked_for(num_workers):
    loader = training_loader(Patients(5), batch_size=2, num_iterations=4, seed=1, num_workers=num_workers)
    assert [batch["number"].tolist() for batch in loader] == list(IterationBatches(5, 2, 4, seed=1))
    loader = validation_loader(Patients(5), 2, num_workers)
    assert [batch["number"].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_patient_that_cannot_be_read_is_one_line_from_any_process(num_workers):
    loader = PatientLoader(Patients(4, damaged=2), batch_size=2, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    with pytest.raises(InputError) as caught:
        next(batches)
    assert str(caught.value) == "sub-2: scan.nii: damaged; indeed; copy it again"
