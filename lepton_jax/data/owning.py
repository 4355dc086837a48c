"""Whose each example is: a writer, a hospital, a device, as a field of the data names them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lepton_jax.data.labeling import column, in_order, labels
from lepton_jax.data.sources import Source, View, gather
from lepton_jax.errors import InputError

OWNER = "owner"


class Owned(View):
    """`source` with the column "owner": int32, the number of whom an example is of."""

    def __init__(self, source: Source, numbers: Int[np.ndarray, " examples"]):
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.source[i], OWNER: self.numbers[i]}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, in that order."""
        return {**gather(self.source, indices), OWNER: self.numbers[indices]}

    @property
    def labels(self) -> Int[np.ndarray, " examples"]:
        """The label of each example."""
        return labels(self.source)


def owned(source: Source, names: Sequence[str] | None) -> Source:
    """The source with the column "owner": numbers of the names of an example each, in order; as it is without names."""
    if names is None:
        return source
    number = {name: position for position, name in enumerate(in_order(names))}
    return Owned(source, np.array([number[name] for name in names], np.int32))


def owners(source: Source) -> Int[np.ndarray, " examples"]:
    """Whose each example is, the column "owner". Raises InputError for a source without one."""
    found = column(source, OWNER)
    if found is None:
        remedy = "read it with load(..., by=FIELD), or give it a column 'owner' of whole numbers"
        raise InputError("the examples do not say whose they are", remedy)
    return found
