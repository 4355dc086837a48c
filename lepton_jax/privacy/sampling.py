"""Which examples a step sees, drawn at random, in batches of one shape: streams, pure functions of (seed, step).

Amplification by sampling needs the draws to be secret: who knows the seed knows which examples each step has seen.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lepton_jax.data import Drawing, Source, Stream, gather
from lepton_jax.data.stream import rows_of
from lepton_jax.errors import InputError

APART = 2**63  # keys of `data.permutation` are (seed, epoch), and these are apart from them


def numbers(examples: int, seed: int, step: int) -> np.ndarray:
    """64 random bits for each example and step, uint64: Philox 4x64-10 with the key (seed, 2^63 + step)."""
    return np.random.Philox(key=np.array([seed, APART + step], np.uint64)).random_raw(examples)


class Poisson(Stream):
    """Batches that each example joins by itself, with the probability `batch_size` / examples.

    So the number of examples is random: a batch has `capacity` rows, and those that nobody takes have zeros, weight 0
    and an index past the data's. Of more examples than rows a random part of that size is kept; `plan` chooses a
    capacity that is hardly ever passed, or accounts for one that is given. With `bands` an example takes part in one of
    so many steps only, each time with `bands` times the probability. Raises InputError for a batch that is greater than
    the data, or than its capacity, and where `Stream` does.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, *, capacity: int, bands: int = 1, **options: Any):
        super().__init__(source, batch_size, seed, **{**options, "shard": (0, 1)})
        self.capacity, self.bands = capacity, bands
        self.probability = probability(self.examples, batch_size, bands)
        if capacity < batch_size:
            problem = f"a capacity of {capacity} rows is below the expected batch of {batch_size}"
            raise InputError(problem, "leave the capacity to the plan, or give more")
        self._shard = options.get("shard", (0, 1))
        self._first, self._count = rows_of(capacity, self._shard)

    def _again(self, **options: Any) -> "Poisson":
        return Poisson(self.source, self.batch_size, self.seed, capacity=self.capacity, bands=self.bands, **options)

    @property
    def drawing(self) -> Drawing:
        """How its batches are drawn."""
        return Drawing("poisson", self.examples, self.batch_size, self.capacity, self.bands)

    def joining(self, step: int) -> Bool[np.ndarray, " examples"]:
        """Which examples a step draws, before any is left out for lack of rows."""
        number = self.number(step)
        return self._taken(numbers(self.examples, self.seed, number), number)

    def _taken(self, drawn: np.ndarray, number: int) -> Bool[np.ndarray, " examples"]:
        below = np.ones(len(drawn), bool) if self.probability >= 1 else drawn < np.uint64(self.probability * 2.0**64)
        return below & (np.arange(self.examples) % self.bands == number % self.bands)

    def indices(self, step: int) -> Int[np.ndarray, " rows"]:
        """The examples of a step, of all processes, as positions in the source, in order."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        number = self.number(step)
        drawn = numbers(self.examples, self.seed, number)
        chosen = np.flatnonzero(self._taken(drawn, number))
        if len(chosen) > self.capacity:  # those with the smallest numbers: any part of that size is as likely
            chosen = np.sort(chosen[np.argsort(drawn[chosen], kind="stable")[: self.capacity]])
        return chosen.astype(np.int32)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step: the source's columns, "weight" (float32) and "index" (int32)."""
        own = self.indices(step)[self._first : self._first + self._count]
        rows = gather(self.source, own if len(own) else np.zeros(1, np.int32))
        there = len(own)
        columns = {name: _padded(column[:there], self._count) for name, column in rows.items()}
        weight = columns.pop("weight", _padded(np.ones(there, np.float32), self._count))
        index = self.examples + np.arange(self._first, self._first + self._count, dtype=np.int32)
        index[:there] = own
        return {**columns, "weight": weight, "index": index}


class FixedSize(Stream):
    """Batches of exactly `batch_size` examples, drawn anew at every step without replacement.

    Raises InputError for a batch that is greater than the data, and where `Stream` does.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, **options: Any):
        super().__init__(source, batch_size, seed, **options)
        probability(self.examples, batch_size)
        self.capacity = batch_size

    def _again(self, **options: Any) -> "FixedSize":
        return FixedSize(self.source, self.batch_size, self.seed, **options)

    @property
    def drawing(self) -> Drawing:
        """How its batches are drawn."""
        return Drawing("fixed", self.examples, self.batch_size, self.capacity)

    def indices(self, step: int) -> Int[np.ndarray, " rows"]:
        """The examples of a step, as positions in the source; of several processes, this one's."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        order = np.argsort(numbers(self.examples, self.seed, self.number(step)), kind="stable")
        return order[: self.batch_size].astype(np.int32)[self._first : self._first + self._count]


def probability(examples: int, batch: float, bands: int = 1) -> float:
    """The probability with which an example joins a batch where it may. Raises InputError for more than 1."""
    if not 0 < batch * bands <= examples:
        of = f"{bands} x {batch:g}" if bands > 1 else f"{batch:g}"
        raise InputError(f"a batch of {of} is not between 1 and the {examples} examples", "give a smaller batch")
    return batch * bands / examples


def _padded(column: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([column, np.zeros((rows - len(column), *column.shape[1:]), column.dtype)])
