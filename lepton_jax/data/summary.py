"""What is to be known of a source before training: channel statistics, and a digest to notice a change."""

import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from lepton_jax.data.prefetch import ahead
from lepton_jax.data.sources import Source, gather
from lepton_jax.errors import InputError

CHUNK = 256  # examples read at once


def spread(examples: int, count: int) -> np.ndarray:
    """At most `count` positions, evenly spread over `examples`, first and last included."""
    return np.unique(np.linspace(0, examples - 1, min(examples, count)).astype(np.int64))


def statistics(
    source: Source, examples: int = 10_000
) -> tuple[Float[np.ndarray, " channel"], Float[np.ndarray, " channel"]]:
    """The mean and standard deviation of each channel (the last axis), float32, over evenly spread examples.

    uint8 inputs count as [0, 1]. Examples of weight 0 do not count. A constant channel gets a standard
    deviation of 1, so that it can be divided by. Raises InputError where no example counts.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for values in _values(source, spread(len(source), examples)):
        # Chan et al. 1979: chunks merge without the cancellation of E[x^2] - E[x]^2.
        total = count + len(values)
        moved = values.mean(0) - mean
        squares = squares + values.var(0) * len(values) + moved**2 * count * len(values) / total
        mean = mean + moved * len(values) / total
        count = total
    if count == 0:
        raise InputError("there is no example to take statistics of", "give at least one example of weight > 0")
    deviation = np.sqrt(squares / count)
    deviation = np.where(deviation < 1e-6, 1.0, deviation)
    return mean.astype(np.float32), deviation.astype(np.float32)


def _values(source: Source, positions: np.ndarray) -> Iterator[np.ndarray]:
    """The inputs at `positions` as float64 [values, channel], chunk by chunk, without those of weight 0."""

    def read(chunk: int) -> dict[str, np.ndarray]:
        return gather(source, positions[chunk * CHUNK : (chunk + 1) * CHUNK])

    for columns in ahead(read, 0, -(-len(positions) // CHUNK)):
        inputs = columns["input"]
        if "weight" in columns:
            inputs = inputs[columns["weight"] > 0]
        if len(inputs):
            values = inputs.reshape(-1, inputs.shape[-1] if inputs.ndim > 1 else 1).astype(np.float64)
            yield values / 255 if inputs.dtype == np.uint8 else values


def fingerprint(source: Source, examples: int = 16) -> str:
    """A short digest of the length, the columns' shapes and types, and some evenly spread examples.

    Cheap enough for the start of every run; it notices that the data of a resumed run was exchanged, not that
    any one example was edited.
    """
    digest = hashlib.sha256(str(len(source)).encode())
    if len(source):
        for name, column in sorted(gather(source, spread(len(source), examples)).items()):
            digest.update(f"{name} {column.shape} {column.dtype.str}".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]
