"""Parts of a source: views of some of its examples, and splits drawn by a seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lepton_jax.data.labeling import labels
from lepton_jax.data.sources import Source, View, gather
from lepton_jax.data.stream import permutation
from lepton_jax.errors import InputError

TRAIN_AND_TEST = (0.8, 0.2)  # of data that comes in one piece
OFFSETS, ORDER = 2**62, 2**62 + 1  # names of draws, past every epoch of a stream with the same seed


class Subset(View):
    """The examples of `source` at `indices`, in that order; nothing is copied."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " examples"]):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        return self.source[int(self.indices[i])]

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` of the view, in that order."""
        return gather(self.source, self.indices[indices])

    @property
    def labels(self) -> Int[np.ndarray, " examples"]:
        """The label of each example in the view."""
        return labels(self.source)[self.indices]


def split(source: Source, fractions: Sequence[float], seed: int, stratify: bool = True) -> tuple[Subset, ...]:
    """Views of disjoint parts that together are all of `source`, in the order of `fractions`, drawn by `seed`.

    With `stratify`, each part has every class's share to within one example; without, its share of the whole.
    In a part the examples keep the order of the source. Raises InputError for fractions that are not positive
    or do not add up to 1, for a part that would be empty, and, with `stratify`, for examples without a class.
    """
    bounds = np.cumsum(np.asarray(fractions, np.float64))
    if not len(bounds) or not (min(fractions) > 0 and abs(bounds[-1] - 1) < 1e-6):
        raise InputError(f"the fractions {tuple(fractions)} do not make a split", "give positive ones that add up to 1")
    if not 0 <= seed < 2**64:
        raise InputError(f"the seed {seed} is outside 0..2**64-1", "use a seed from 0 up")
    classes = labels(source) if stratify else np.zeros(len(source), np.int32)
    part = _parts(classes, bounds[:-1], seed)
    views = tuple(Subset(source, np.flatnonzero(part == number)) for number in range(len(bounds)))
    for fraction, view in zip(fractions, views, strict=True):
        if not len(view):
            raise InputError(
                f"a part of {fraction} of {len(source)} examples is empty", "give more data or a larger part"
            )
    return views


def _parts(classes: np.ndarray, bounds: np.ndarray, seed: int) -> np.ndarray:
    """The part of each example: each class in an order of its own, cut at its share of the bounds.

    A share is seldom whole. All cuts of a class are moved by one offset and rounded down, so that each part is within
    one of its share; the offsets of the classes are spread evenly over [0, 1), so that the roundings cancel.
    """
    kinds, sizes = np.unique(classes, return_counts=True)
    offsets = (permutation(len(kinds), seed, OFFSETS) + 0.5) / max(1, len(kinds))
    order = permutation(len(classes), seed, ORDER)
    order = order[np.argsort(classes[order], kind="stable")]  # class by class, shuffled within
    part, start = np.empty(len(classes), np.int32), 0
    for size, offset in zip(sizes, offsets, strict=True):
        cuts = np.floor(bounds * size + offset + 1e-9)
        part[order[start : start + size]] = np.searchsorted(cuts, np.arange(size), side="right")
        start += size
    return part
