"""Several sources as one, in given proportions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lepton_jax.data.sources import Source, gather, in_memory
from lepton_jax.data.stream import permutation
from lepton_jax.errors import InputError

LONGEST = 2**31 - 1  # positions are int32
ROUNDS = 2**63  # names the first draw, past every epoch of a stream with the same seed


class Mixture:
    """`sources` as one source: position p is example `example[p]` of the source `origin[p]`."""

    def __init__(
        self,
        sources: Sequence[Source],
        origin: Int[np.ndarray, " examples"],
        example: Int[np.ndarray, " examples"],
    ):
        self.sources, self.origin, self.example = tuple(sources), origin, example

    def __len__(self) -> int:
        return len(self.origin)

    def __getitem__(self, i: int) -> Any:
        return self.sources[self.origin[i]][int(self.example[i])]

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, in that order. Raises InputError where the sources' columns differ."""
        origin, example = self.origin[indices], self.example[indices]
        rows = [np.flatnonzero(origin == number) for number in range(len(self.sources))]
        parts = [gather(s, example[at]) if len(at) else None for s, at in zip(self.sources, rows, strict=True)]
        numbers = [number for number, part in enumerate(parts) if part is not None]
        columns = {}
        for name, like in (parts[numbers[0]] or {}).items():
            columns[name] = np.empty((len(indices), *like.shape[1:]), like.dtype)
            for number in numbers:
                columns[name][rows[number]] = (parts[number] or {})[name]
        return columns

    @property
    def in_memory(self) -> bool:
        """Whether reading costs no more than copying."""
        return all(map(in_memory, self.sources))

    @property
    def bad(self) -> tuple[str, ...]:
        """The files that could not be read, as far as they have been asked for."""
        return tuple(path for source in self.sources for path in getattr(source, "bad", ()))


def mixture(sources: Sequence[Source], weights: Sequence[float], seed: int, examples: int | None = None) -> Mixture:
    """`sources` in the proportions of `weights` as one source of `examples` positions.

    By default there are as many positions as it takes to hold every source whole. The number from each source is
    its share to within one, and of the first n positions about n times its share come from it, for every n. A
    source is gone through in orders drawn by `seed`, each example once before any comes again.

    Raises InputError for no sources, other than one positive weight each, sources that are empty or differ in
    their columns, shapes or types, and more than 2**31 - 1 positions.
    """
    _check(sources, weights, seed)
    shares = np.asarray(weights, np.float64) / np.sum(np.asarray(weights, np.float64))
    if examples is None:
        examples = _whole(shares, np.array([len(source) for source in sources]))
    if not 0 < examples <= LONGEST:
        raise InputError(f"a mixture of {examples} examples", f"give 1..{LONGEST}, or weights nearer to the sizes")
    origin, turn = interleaved(apportioned(shares, examples))
    example = np.empty(examples, np.int32)
    for number, source in enumerate(sources):
        mine = origin == number
        example[mine] = _rounds(len(source), int(np.count_nonzero(mine)), seed, number)[turn[mine]]
    return Mixture(sources, origin, example)


def _whole(shares: np.ndarray, sizes: np.ndarray) -> int:
    """The least number of positions that holds every source whole."""
    total = int((sizes / shares).max())
    while total <= LONGEST and np.any(apportioned(shares, total) < sizes):
        total += 1
    return total


def apportioned(shares: np.ndarray, total: int) -> Int[np.ndarray, " sources"]:
    """`total` in whole numbers by `shares`, which add up to 1: rounded down, the rest to the largest remainders."""
    counts = np.floor(shares * total + 1e-9).astype(np.int64)
    rest = np.argsort(counts - shares * total, kind="stable")[: total - counts.sum()]
    counts[rest] += 1
    return counts


def interleaved(counts: np.ndarray) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
    """The source of each position, `counts` of each evenly spread over all, and its how-manieth the position is.

    Turn j of a source with n turns comes at the time (j + 1/2) / n.
    """
    origin = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    turn = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    # correctly rounded quotients: equal times are equal floats, whatever the machine
    order = np.argsort((2.0 * turn + 1) / (2.0 * counts[origin]), kind="stable")
    return origin[order], turn[order]


def _rounds(examples: int, turns: int, seed: int, number: int) -> np.ndarray:
    """The examples of a source in the order of its turns: all in a random order, then all in another, and so on."""
    rounds = [permutation(examples, seed, ROUNDS + (number << 40) + n) for n in range(-(-turns // examples))]
    return np.concatenate([np.zeros(0, np.int32), *rounds])[:turns]


def _check(sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
    if not sources or len(sources) != len(weights):
        raise InputError(f"{len(sources)} sources with {len(weights)} weights", "give sources, and one weight for each")
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"the weights {tuple(weights)} are not all positive", "leave out what should not take part")
    if not 0 <= seed < 2**64:
        raise InputError(f"the seed {seed} is outside 0..2**64-1", "use a seed from 0 up")
    if empty := [number for number, source in enumerate(sources) if not len(source)]:
        raise InputError(f"source {empty[0]} of the mixture has no examples", "give at least one example")
    kinds = [_kind(source) for source in sources]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            problem = f"source {number} of the mixture has {_told(kind)}, and source 0 {_told(kinds[0])}"
            raise InputError(problem, "give all the same columns, shapes and types")


def _kind(source: Source) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(column.dtype), column.shape[1:]) for name, column in sorted(gather(source, [0]).items())}


def _told(kind: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in kind.items())
