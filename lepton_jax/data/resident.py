"""Inputs that lie on the devices: a batch then names its examples, and does not carry them."""

import numpy as np

from lepton_jax.data.sources import Columns, Source, gather
from lepton_jax.errors import InputError

RESIDENT_BYTES = 256 * 2**20  # beyond it, compiling takes longer than the copies that are saved


class Resident(Columns):
    """`source` in memory whose batches lack "input": `inputs` [examples, ...] are for `losses.resident`.

    Raises InputError where the inputs take more than RESIDENT_BYTES.
    """

    def __init__(self, source: Source):
        size = len(source) * gather(source, [0])["input"].nbytes
        if size > RESIDENT_BYTES:
            problem = f"inputs of {size / 2**20:.0f} MiB are too many to be held on every device"
            remedy = f"at most {RESIDENT_BYTES // 2**20} MiB are; let batches carry them, without --resident"
            raise InputError(problem, remedy)
        self.columns = gather(source, np.arange(len(source)))
        self.inputs = self.columns.pop("input")
        self.bad = getattr(source, "bad", ())

    def __len__(self) -> int:
        return len(self.inputs)
