"""Random streams: one generator for each sample, seeded by what the sample is, never by where it is computed.

So a member or a training sample draws the same numbers for any batch size, process or restart.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_FEW = 1_000_000  # random numbers that one thread draws in some milliseconds


def seed_of(*keys: str | int) -> int:
    """A 63-bit seed from any keys, the same on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def digest_of(*parts: object) -> str:
    """12 hexadecimal digits of these parts: of bytes as they are, of other objects by their `repr`."""
    digest = hashlib.blake2b(digest_size=6)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()


class Streams:
    """Independent streams of random numbers, one for each sample, drawn on the CPU so that devices agree.

    Args:
        seeds: one for each sample, (B,).
        strata: the position of each sample in the global batch and the size of that batch, with a seed they share;
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
        with torch.inference_mode(False):  # it holds for one thread only
            numbers = torch.empty(len(self), *shape, pin_memory=torch.device(device).type == "cuda")

        def draw(position: int) -> None:
            torch.randn(tuple(shape), generator=self.generators[position], out=numbers[position])

        # A GPU would wait for one thread; few numbers are drawn before threads have started.
        with ThreadPoolExecutor(1 if numbers.numel() < _FEW else None) as pool:
            list(pool.map(draw, range(len(self))))
        return numbers.to(device)

    def uniform(self, shape: Sequence[int] = (), device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape)."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators]).to(device)

    def stratified_uniform(self, device: torch.device | str = "cpu") -> Tensor:
        """One number in [0, 1) for each sample, (B,): evenly spaced over the global batch, randomly shifted together
        (Kingma et al. 2021, appendix I.1), which lowers the variance of the loss.

        Raises:
            ValueError: the streams are not those of a batch.
        """
        if self.strata is None:
            raise ValueError("only the streams of a batch are stratified")
        positions, batch_size, shared_seed = self.strata
        shift = torch.rand((), generator=torch.Generator().manual_seed(shared_seed))
        return ((shift + torch.tensor(positions) / batch_size) % 1).to(device)
