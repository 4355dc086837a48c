"""Inputs that lie on the devices: a batch then names its examples, and does not carry them."""

from typing import Any

import numpy as np

from lepton_jax.data.sources import Source, View, gather
from lepton_jax.errors import InputError

RESIDENT_BYTES = 256 * 2**20  # beyond it, compiling takes longer than the copies that are saved


class Resident(View):
    """`source` in memory whose batches lack "input": `inputs` [examples, ...] are for `losses.resident`.

    Raises InputError where the inputs take more than RESIDENT_BYTES.
    """

    def __init__(self, source: Source):
        size = len(source) * gather(source, [0])["input"].nbytes
        if size > RESIDENT_BYTES:
            problem = f"inputs of {size / 2**20:.0f} MiB are too many to be held on every device"
            raise InputError(
                problem, f"at most {RESIDENT_BYTES // 2**20} MiB are; let batches carry them, without --resident"
            )
        self.source = source
        self.columns = gather(source, np.arange(len(source)))
        self.inputs = self.columns.pop("input")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[i] for name, column in self.columns.items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """All but the inputs of the examples at `indices`, in that order."""
        return {name: column.take(indices, axis=0) for name, column in self.columns.items()}

    @property
    def in_memory(self) -> bool:
        """What is left is in memory."""
        return True

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples, where there are any."""
        return self.columns.get("label")
