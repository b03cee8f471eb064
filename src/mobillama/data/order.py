"""The order of samples: a stateless keyed permutation, so the state of the data is one integer.

``permute`` is a Feistel network over the smallest power of two that holds the domain, walked in
cycles until it falls inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
Both directions are arithmetic; nothing is stored, shuffled or restored.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 8
EPOCHS_KEPT = 256


@lru_cache(maxsize=EPOCHS_KEPT)
def round_keys(seed: int, label: str, epoch: int) -> tuple[np.uint64, ...]:
    """Return the round keys of one epoch's permutation: SHA-512 of ``seed/label/epoch``, little-endian."""
    digest = hashlib.sha512(f"{seed}/{label}/{epoch}".encode()).digest()
    return tuple(np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def mix(words: Words) -> Words:
    """Return a 64-bit hash of each word (the finaliser of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Permutation:
    """A keyed bijection of ``0..size-1``, forwards and backwards, on whole arrays.

    Source: Feistel rounds on two halves of unequal width where the number of bits is odd, so that
    the domain is less than twice ``size`` and a walk takes less than two steps on average.
    """

    def __init__(self, size: int, keys: Sequence[np.uint64]):
        assert size > 0
        self.size = size
        self.keys = keys
        bits = max(2, (size - 1).bit_length())
        self.low_bits = np.uint64(bits // 2)
        self.low_mask = np.uint64((1 << (bits // 2)) - 1)
        self.high_mask = np.uint64((1 << (bits - bits // 2)) - 1)

    def forward(self, positions: ArrayLike) -> Indices:
        """Return where each of ``positions`` goes; int64, any shape."""
        return self._walk(positions, self._encrypt)

    def backward(self, images: ArrayLike) -> Indices:
        """Return what goes to each of ``images``; int64, any shape."""
        return self._walk(images, self._decrypt)

    def _walk(self, start: ArrayLike, step: Callable[[Words], Words]) -> Indices:
        values = np.asarray(start, dtype=np.int64)
        assert values.size == 0 or (values.min() >= 0 and values.max() < self.size)
        flat = step(values.astype(np.uint64).ravel())
        while (outside := np.flatnonzero(flat >= self.size)).size:
            flat[outside] = step(flat[outside])
        return flat.astype(np.int64).reshape(values.shape)

    def _encrypt(self, values: Words) -> Words:
        high, low = values >> self.low_bits, values & self.low_mask
        for number, key in enumerate(self.keys):
            if number % 2 == 0:
                high = high ^ (mix(low ^ key) & self.high_mask)
            else:
                low = low ^ (mix(high ^ key) & self.low_mask)
        return (high << self.low_bits) | low

    def _decrypt(self, values: Words) -> Words:
        high, low = values >> self.low_bits, values & self.low_mask
        for number, key in reversed(list(enumerate(self.keys))):
            if number % 2 == 0:
                high = high ^ (mix(low ^ key) & self.high_mask)
            else:
                low = low ^ (mix(high ^ key) & self.low_mask)
        return (high << self.low_bits) | low


@dataclass(frozen=True)
class SubsetShare:
    """One subset's part in the mixture: the samples it has, and how many of them a mixture epoch takes."""

    name: str
    samples: int
    quota: int

    @property
    def label(self) -> str:
        """What its permutation's key is derived from."""
        return f"subset/{self.name}"


class SampleOrder:
    """Which sample of which subset global index ``i`` is, and back (docs/formats.md, "Samples").

    Global indices count samples over all ranks and have no end: epoch follows epoch.
    """

    def __init__(self, shares: Sequence[SubsetShare], *, seed: int):
        assert all(share.quota == 0 or share.samples > 0 for share in shares)
        self.shares = list(shares)
        self.seed = seed
        self.starts = np.concatenate([[0], np.cumsum([share.quota for share in shares])]).astype(np.int64)
        self.samples_per_epoch = int(self.starts[-1])
        assert self.samples_per_epoch > 0

    def locate(self, indices: ArrayLike) -> tuple[Indices, Indices]:
        """Return the subset number and the sample number of each global index, both int64 of its shape."""
        indices = np.asarray(indices, dtype=np.int64)
        epochs, positions = np.divmod(indices, self.samples_per_epoch)
        slots = self._by_epoch("mixture", self.samples_per_epoch, epochs, positions)
        subsets = (np.searchsorted(self.starts, slots, side="right") - 1).astype(np.int64)
        samples = np.empty_like(indices)
        for number, share in enumerate(self.shares):
            chosen = subsets == number
            if not chosen.any():
                continue
            draws = epochs[chosen] * share.quota + slots[chosen] - self.starts[number]
            subset_epochs, places = np.divmod(draws, share.samples)
            samples[chosen] = self._by_epoch(share.label, share.samples, subset_epochs, places)
        return subsets, samples

    def indices_of(self, subset: int, sample: int, *, first: int = 0, until: int) -> list[int]:
        """Return, ascending, the global indices in ``first <= i < until`` at which a sample is read."""
        share = self.shares[subset]
        if share.quota == 0 or until <= first:
            return []
        first_draw = first // self.samples_per_epoch * share.quota
        end_draw = ((until - 1) // self.samples_per_epoch + 1) * share.quota
        found: list[int] = []
        for subset_epoch in range(first_draw // share.samples, (end_draw - 1) // share.samples + 1):
            place = int(self._permutation(share.label, share.samples, subset_epoch).backward(sample))
            epoch, drawn = divmod(subset_epoch * share.samples + place, share.quota)
            slot = int(self.starts[subset]) + drawn
            mixture = self._permutation("mixture", self.samples_per_epoch, epoch)
            found.append(epoch * self.samples_per_epoch + int(mixture.backward(slot)))
        return sorted(index for index in found if first <= index < until)

    def _permutation(self, label: str, size: int, epoch: int) -> Permutation:
        return Permutation(size, round_keys(self.seed, label, epoch))

    def _by_epoch(self, label: str, size: int, epochs: Indices, positions: Indices) -> Indices:
        """Permute each position with its own epoch's key."""
        permuted = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            permuted[chosen] = self._permutation(label, size, int(epoch)).forward(positions[chosen])
        return permuted


def rank_slice(first: int, count: int, *, rank: int, world: int) -> Indices:
    """Return the global indices that ``rank`` of ``world`` takes of a step's ``first .. first + count - 1``.

    The ranks' slices are contiguous, in order, and together the step: its samples do not depend on ``world``.
    """
    assert 0 <= rank < world
    return np.arange(first + count * rank // world, first + count * (rank + 1) // world, dtype=np.int64)
