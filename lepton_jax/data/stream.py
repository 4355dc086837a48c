"""Batches: the training stream, a pure function of (seed, step), and evaluation in order, padded.

Nothing has to be saved to continue a stream but the step, and neither the worker count nor the process count
nor the mesh is part of it.
"""

import functools
import math
import threading
from collections.abc import Collection, Generator
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lepton_jax.data.drawing import Drawing
from lepton_jax.data.prefetch import THREADS, ahead
from lepton_jax.data.sources import Source, gather, in_memory
from lepton_jax.errors import InputError

COPIED_BYTES = 2**20  # a batch of so many bytes takes about as long to copy as to be handed from thread to thread


def permutation(examples: int, seed: int, epoch: int) -> Int[np.ndarray, " examples"]:
    """The order of an epoch: the ranks of `examples` random 64-bit numbers, as int32.

    The numbers are Philox 4x64-10 with the key (seed, epoch) (Salmon et al. 2011,
    https://doi.org/10.1145/2063384.2063405). numpy promises its raw output for good, which it does not do for
    `Generator.permutation`, so the order is the same on every platform and in every version.
    """
    numbers = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(examples)
    return np.argsort(numbers, kind="stable").astype(np.int32)


@runtime_checkable
class Batches(Protocol):
    """What a run trains on: a batch for each step, a pure function of the seed and its number. `Stream` is one.

    source: where examples come from. batch_size and examples: a batch has so many of so many; in a federated run
    these are clients.
    """

    @property
    def source(self) -> Source: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def examples(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def drawing(self) -> Drawing: ...

    def steps(self, epochs: int | float) -> int: ...

    def part(self, process: int, processes: int) -> "Batches": ...

    def without(self, numbers: Collection[int]) -> "Batches": ...

    def number(self, step: int) -> int: ...

    def batch(self, step: int) -> dict[str, Any]: ...

    def batches(self, start: int, stop: int) -> Generator[dict[str, Any], None, None]: ...


def steps(epochs: int | float, examples: int, batch_size: int) -> int:
    """The steps that `epochs` take: ceil(epochs * examples / batch_size), not epochs * steps of an epoch."""
    return math.ceil(Fraction(epochs).limit_denominator(10**6) * examples / batch_size)


def number(step: int, skipped: Collection[int]) -> int:
    """Which batch a step has: the step's own number, but for those that are skipped, in rising order."""
    for one in skipped:
        step += one <= step
    return step


class Stream:
    """The training stream over `source`: endless shuffled epochs, cut into batches of `batch_size`.

    Position p = step * batch_size + i holds example permutation(epoch)[p % N] of epoch p // N, where N is
    the number of examples. No remainder is dropped: a batch may cross into the next epoch, and a batch larger
    than the data set wraps round. `shard` = (process, processes) reads only this process's rows of a batch. `threads`
    read ahead; by default as many as there are processors, and none for small batches out of memory. `skipped` are
    batches that are left out, by number: the next one takes their step.
    Raises InputError for an empty source, a batch size below 1 or not divisible by the processes, and a seed
    outside 0..2**64-1.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        *,
        shard: tuple[int, int] = (0, 1),
        threads: int | None = None,
        skipped: Collection[int] = (),
    ):
        if not 0 <= seed < 2**64:
            raise InputError(f"the seed {seed} is outside 0..2**64-1", "use a seed from 0 up")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.examples = _examples(source)
        self._shard = shard
        self._first, self._count = rows_of(batch_size, shard)
        self.threads = _threads(source, self._count) if threads is None else threads
        self.skipped = tuple(sorted(set(skipped)))
        # Neighboring steps share an epoch or two. Under the lock, so that threads do not all sort the same one.
        self._order = functools.lru_cache(maxsize=4)(lambda epoch: permutation(self.examples, seed, epoch))
        self._lock = threading.Lock()

    @property
    def drawing(self) -> Drawing:
        """How its batches are drawn."""
        return Drawing("shuffled", self.examples, self.batch_size, self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """The steps after which every example has been seen at least once: ceil(N / batch_size)."""
        return self.steps(1)

    def steps(self, epochs: int | float) -> int:
        """The steps that `epochs` take: ceil(epochs * N / batch_size), not epochs * steps_per_epoch."""
        return steps(epochs, self.examples, self.batch_size)

    def part(self, process: int, processes: int) -> "Stream":
        """The same batches, of each the rows that one of so many processes holds."""
        return self._again(shard=(process, processes), skipped=self.skipped)

    def without(self, numbers: Collection[int]) -> "Stream":
        """The same batches but for those of these numbers."""
        return self._again(shard=self._shard, threads=self.threads, skipped={*self.skipped, *numbers})

    def _again(self, **options: Any) -> "Stream":
        """A stream of the same kind over the same source."""
        return Stream(self.source, self.batch_size, self.seed, **options)

    def number(self, step: int) -> int:
        """Which batch a step has: the step's own number, but for those that are skipped."""
        return number(step, self.skipped)

    def indices(self, step: int) -> Int[np.ndarray, " rows"]:
        """The examples of a step, as positions in the source."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        start, count, parts = self.number(step) * self.batch_size + self._first, self._count, []
        while count:
            epoch, offset = divmod(start, self.examples)
            with self._lock:
                order = self._order(epoch)
            parts.append(order[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step: the source's columns, and "index" (int32), the examples' positions in it."""
        indices = self.indices(step)
        return {**gather(self.source, indices), "index": indices}

    def batches(self, start: int, stop: int) -> Generator[dict[str, np.ndarray], None, None]:
        """`batch(start)` ... `batch(stop - 1)`, read ahead in threads. Close it to stop early."""
        return ahead(self.batch, start, stop, self.threads)


def evaluation_batches(
    source: Source, batch_size: int, *, shard: tuple[int, int] = (0, 1), threads: int | None = None
) -> Generator[dict[str, np.ndarray], None, None]:
    """Every example once, in order, in batches of one shape, with "weight" (float32) and "index" (int32).

    The last batch is filled up with the last example at weight 0, so that a weighted mean is exact. `shard` =
    (process, processes) reads only this process's rows of each batch. Raises InputError for an empty source.
    """
    examples = _examples(source)
    first, count = rows_of(batch_size, shard)

    def batch(step: int) -> dict[str, np.ndarray]:
        positions = step * batch_size + np.arange(first, first + count)
        indices = np.minimum(positions, examples - 1)
        columns = gather(source, indices)
        weight = columns.get("weight", np.ones(count, np.float32)) * (positions < examples)
        return {**columns, "weight": weight.astype(np.float32), "index": indices.astype(np.int32)}

    threads = _threads(source, count) if threads is None else threads
    return ahead(batch, 0, -(-examples // batch_size), threads)


def _threads(source: Source, rows: int) -> int:
    """How many threads read ahead: none where a batch is copied out of memory sooner than a thread hands it over."""
    if not in_memory(source):
        return THREADS
    return 0 if rows * sum(column.nbytes for column in gather(source, [0]).values()) <= COPIED_BYTES else THREADS


def _examples(source: Source) -> int:
    if len(source) == 0:
        raise InputError("the data has no examples", "give at least one example")
    return len(source)


def rows_of(batch_size: int, shard: tuple[int, int]) -> tuple[int, int]:
    """The first row of a batch that a process reads, and how many. Raises InputError for rows that do not divide."""
    process, processes = shard
    if batch_size < 1:
        raise InputError(f"the batch size {batch_size} is below 1", "use a batch size of at least 1")
    if batch_size % processes:
        raise InputError(
            f"the batch size {batch_size} is not divisible by the {processes} processes",
            f"use a multiple of {processes}",
        )
    count = batch_size // processes
    return process * count, count
