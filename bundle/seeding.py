"""Randomness that is passed in: one generator a sample, seeded by what the sample is, never by where it is computed.

A member or a training sample thus draws the same numbers whatever the batch size, the process or the restart.
"""

import hashlib
from typing import Sequence

import torch
from torch import Tensor


def seed_of(*keys: str | int) -> int:
    """A 63-bit seed from any keys, the same on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def digest_of(*parts: object) -> str:
    """12 hexadecimal digits that tell these parts from others: their bytes, or what they print as."""
    digest = hashlib.blake2b(digest_size=6)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()


class Streams:
    """Independent streams of random numbers, one a sample, drawn on the CPU so that devices agree.

    Args:
        seeds: one seed a sample, (B,).
        strata: the place of each sample in the global batch and the size of that batch, with a seed they share;
            only `stratified_uniform` needs it.
    """

    def __init__(self, seeds: Sequence[int], strata: tuple[Sequence[int], int, int] | None = None) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.strata = strata

    @classmethod
    def for_batch(cls, seed: int, iteration: int, positions: Sequence[int], batch_size: int) -> "Streams":
        """Streams of the samples at `positions` of the global batch of one training iteration."""
        seeds = [seed_of(seed, iteration, position) for position in positions]
        return cls(seeds, (positions, batch_size, seed_of(seed, iteration)))

    @classmethod
    def for_members(cls, seed: int, case: str, members: Sequence[int]) -> "Streams":
        """Streams of ensemble members of a case; the arm is left out, so that arms share their noise."""
        return cls([seed_of(seed, case, member) for member in members])

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators]).to(device)

    def uniform(self, shape: Sequence[int] = (), device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape)."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators]).to(device)

    def stratified_uniform(self, device: torch.device | str = "cpu") -> Tensor:
        """One number in [0, 1) a sample, (B,): evenly spaced over the global batch, randomly shifted together
        (Kingma et al. 2021, appendix I.1), which lowers the variance of the loss.
        """
        positions, batch_size, shared_seed = self.strata
        shift = torch.rand((), generator=torch.Generator().manual_seed(shared_seed))
        return ((shift + torch.tensor(positions) / batch_size) % 1).to(device)
