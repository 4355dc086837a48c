"""What a fixed function makes of every input, computed once before the training."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lepton_jax.data.sources import IN_MEMORY_BYTES, Arrays, Source, gather
from lepton_jax.data.summary import CHUNK


def mapped(source: Source, function: Callable[[Any], Any]) -> Arrays | None:
    """The source in memory with `function` of its inputs in their place; None where that takes over IN_MEMORY_BYTES.

    function: of inputs [examples, ...], each of which it treats by itself. It is compiled, for chunks of examples.
    """
    import jax

    count = len(source)

    def read(start: int) -> dict[str, np.ndarray]:
        # the last chunk is filled up with the last example, so that all are of one shape
        return gather(source, np.minimum(np.arange(start, start + CHUNK), count - 1))

    first = read(0)
    made = jax.eval_shape(function, first["input"])
    if made.size // CHUNK * made.dtype.itemsize * count > IN_MEMORY_BYTES:
        return None
    compiled = jax.jit(function)
    shapes = {name: (column.shape[1:], column.dtype) for name, column in first.items()}
    shapes["input"] = (made.shape[1:], made.dtype)
    columns = {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    for start in range(0, count, CHUNK):
        chunk = read(start)
        for name, column in {**chunk, "input": np.asarray(compiled(chunk["input"]))}.items():
            columns[name][start : start + CHUNK] = column[: count - start]
    return Arrays(columns)
