"""Batches of training and validation: which patients, in which order, read by how many processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from bundle.errors import InputError
from bundle.runtime import end_with_parent, rank_and_world
from bundle.seeding import seed_of


class IterationBatches(Sampler[list[int]]):
    """Batches of indices as a function of the iteration alone: shuffled epochs laid end to end.

    Args:
        num_items: size of the data set.
        batch_size: size of the global batch; each process takes an equal part of it.
        num_iterations: length of the whole training.
        seed: of the shuffling.

    Raises:
        InputError: the data set is empty, or the batch cannot be divided equally.
    """

    def __init__(self, num_items: int, batch_size: int, num_iterations: int, seed: int = 0) -> None:
        self.rank, self.world = rank_and_world()
        if num_items < 1:
            raise InputError("no patient to train on", "give a data set with FLAIR and NET2 masks of w096")
        if batch_size % self.world:
            raise InputError(
                f"batch_size={batch_size} cannot be divided equally between {self.world} processes",
                f"use a multiple of {self.world} for --batch_size",
            )
        self.num_items, self.batch_size, self.num_iterations, self.seed = num_items, batch_size, num_iterations, seed
        self.start = 0

    def __len__(self) -> int:
        return self.num_iterations

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, None
        for iteration in range(self.start, self.num_iterations):
            batch = []
            for position in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                if position // self.num_items != epoch:
                    epoch = position // self.num_items
                    order = np.random.default_rng(seed_of("order", self.seed, epoch)).permutation(self.num_items)
                batch.append(int(order[position % self.num_items]))
            size = self.batch_size // self.world
            yield batch[self.rank * size : (self.rank + 1) * size]


class PatientLoader(DataLoader):
    """A DataLoader whose worker processes end with their parent and hand an `InputError` over as one."""

    def __init__(self, dataset: Dataset, num_workers: int = 0, **settings: Any) -> None:
        if getattr(dataset, "keep_on", None) is not None:
            num_workers = 0  # what this process keeps, others would keep again
        super().__init__(
            _Readable(dataset), num_workers=num_workers, collate_fn=_collate, worker_init_fn=end_with_parent, **settings
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            if isinstance(batch, str):
                raise InputError(*batch.rsplit("; ", 1))
            yield batch


class _Readable(Dataset):
    """Items of a data set, or the text of the `InputError`: torch re-raises exceptions of workers from a text alone."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | str:
        try:
            return self.dataset[index]
        except InputError as error:
            return str(error)


def _collate(items: list[dict[str, Any] | str]) -> dict[str, Any] | str:
    failed = [item for item in items if isinstance(item, str)]
    return failed[0] if failed else default_collate(items)


def training_loader(
    dataset: Dataset, batch_size: int, num_iterations: int, seed: int = 0, num_workers: int = 0
) -> PatientLoader:
    """Loader of `num_iterations` global batches that can start at any iteration (see `Checkpoints`)."""
    batches = IterationBatches(len(dataset), batch_size, num_iterations, seed)
    return PatientLoader(dataset, batch_sampler=batches, num_workers=num_workers)


def validation_loader(dataset: Dataset, batch_size: int, num_workers: int = 0) -> PatientLoader:
    """Loader of every patient of the validation split, in order.

    Raises:
        InputError: there is none.
    """
    if len(dataset) < 1:
        raise InputError(
            "no validation patient with a known outcome", "give three or more patients with FLAIR and NET2 of w096"
        )
    return PatientLoader(dataset, batch_size=batch_size, num_workers=num_workers)
