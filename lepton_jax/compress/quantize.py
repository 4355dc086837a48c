"""Quantized weights: trained as what they will be rounded to, shipped in few bits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lepton_jax.compress import base, grids, leaves
from lepton_jax.compress.calibrate import RANGES, Range
from lepton_jax.compress.grids import Grid
from lepton_jax.errors import InputError, named

Blocks = Callable[[tuple[int, ...]], tuple[int, ...]]
"""A weight's shape -> into how many blocks, each with a scale of its own, each dimension is cut."""


def tensor(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One scale for the whole weight."""
    return (1,) * len(shape)


def channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One scale for each output channel, the last dimension."""
    return (*(1,) * (len(shape) - 1), shape[-1])


def groups(most: int = 64) -> Blocks:
    """A scale for each output channel and group of inputs (all places of a kernel together), as many as divide them.

    most: inputs in a group; the largest number up to it that divides the inputs is taken.
    """

    def blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
        size = next(size for size in range(min(most, shape[-2]), 0, -1) if shape[-2] % size == 0)
        return groups_of(size)(shape)

    return blocks


def groups_of(size: int) -> Blocks:
    """A scale for each output channel and group of just `size` inputs.

    Raises InputError, there and where it is used, if that does not divide the inputs.
    """
    if size < 1:
        raise InputError(f"a group of {size} inputs is none", "give a size of 1 or more")

    def blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[-2] % size:
            problem = f"groups of {size} do not divide the {shape[-2]} inputs of a weight of shape {shape}"
            raise InputError(problem, "give a size that does, a pattern of names, or 'group' for sizes that do")
        return (*channel(shape)[:-2], shape[-2] // size, shape[-1])

    return blocks


BLOCKS: dict[str, Blocks] = {"tensor": tensor, "channel": channel, "group": groups()}


def quantized(
    bits: int | str | Grid = 8,
    granularity: str | int | Blocks = "channel",
    calibration: str | Range = "extremes",
    pattern: str = base.WEIGHTS,
) -> base.Compression:
    """Weights rounded to few levels: seen so in training, with the gradient passed straight through; packed so.

    bits: 2 to 16 for whole numbers around zero, "fp8", or a grid: `grids.affine(8)` has a zero point. granularity:
    "tensor", "channel", "group", the size of groups of inputs, or blocks. calibration: "extremes", "percentile",
    "least error" or a range of `calibrate`, of the weights as they are at each step. Zeros stay zeros. A weight that
    is packed already (`rounding`) stays as it is. Jacob et al. 2017, https://arxiv.org/abs/1712.05877; gradient:
    Bengio et al. 2013, https://arxiv.org/abs/1308.3432. Raises InputError for unknown names, and where nothing
    matches `pattern` or groups do not divide the inputs.
    """
    grid, blocks, ranged = grids.grid(bits), blocks_of(granularity), named("calibration", calibration, RANGES)

    def init(params: Any) -> tuple[Any, tuple]:
        for name in weights(pattern, params):  # bad shapes are found before training
            blocks(base.at(params, name).shape)
        return params, ()

    def changed(change: Callable[[Any], Any], params: Any, state: Any) -> Any:
        return base.put(params, {name: change(base.at(params, name)) for name in weights(pattern, params)})

    view = partial(changed, lambda weight: shown(weight, grid, blocks, ranged))
    pack = partial(changed, lambda weight: packed(weight, grid, *fitted(weight, grid, blocks, ranged)))
    return base.Compression(init, view, base.unchanged, pack, ("quantization",))


def blocks_of(granularity: str | int | Blocks) -> Blocks:
    """Blocks by name, by the size of groups, or as given. Raises InputError for an unknown name."""
    return groups_of(granularity) if isinstance(granularity, int) else named("granularity", granularity, BLOCKS)


def weights(pattern: str, params: PyTree) -> list[str]:
    """The names of the weights that match and are not packed. Raises InputError where nothing matches."""
    found = base.chosen(pattern, jax.eval_shape(leaves.unpacked, params))
    return [name for name in found if not leaves.is_packed(base.at(params, name))]


def fitted(weight: Any, grid: Grid, blocks: Blocks, ranged: Range) -> tuple[Array, Array | None]:
    """(scale, zero) of each block of a weight, of its rank."""
    counts = blocks(weight.shape)
    rows = in_rows(jnp.asarray(weight, jnp.float32), counts)
    scale, zero = grid.fit(*ranged(rows, jnp.ones_like(rows), grid))
    return scale.reshape(counts), None if zero is None else zero.reshape(counts)


def in_rows(weight: Float[Array, "..."], blocks: tuple[int, ...]) -> Float[Array, "rows n"]:
    """The values of each block in a row, blocks in order."""
    cut = [part for many, length in zip(blocks, weight.shape, strict=True) for part in (many, length // many)]
    order = (*range(0, len(cut), 2), *range(1, len(cut), 2))
    return weight.reshape(cut).transpose(order).reshape(int(np.prod(blocks)), -1)


def shown(weight: Any, grid: Grid, blocks: Blocks, ranged: Range) -> Array:
    """The weight as its packed form will be, in its own dtype; its gradient is the weight's."""
    weight = jnp.asarray(weight)
    still = jax.lax.stop_gradient(weight)
    scale, zero = fitted(still, grid, blocks, ranged)
    levels = grid.levels(still, *spread(scale, zero, weight.shape))
    return straight(weight, leaves.dequantized(levels, scale, zero).astype(weight.dtype))


def packed(weight: Any, grid: Grid, scale: Array, zero: Array | None) -> leaves.Quantized:
    """The weight rounded to the nearest levels, packed."""
    return stored(grid.levels(jnp.asarray(weight), *spread(scale, zero, weight.shape)), grid, scale, zero)


def stored(levels: Any, grid: Grid, scale: Array, zero: Array | None) -> leaves.Quantized:
    """Levels as a packed leaf."""
    values = leaves.nibbles(levels) if grid.bits == 4 else jnp.asarray(levels).astype(grid.dtype)
    zero = None if zero is None else zero.astype(grid.dtype)
    return leaves.Quantized(values, scale, zero, None, levels.shape, grid.bits)


def spread(scale: Array, zero: Array | None, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Both as they broadcast to `shape`."""
    return leaves.spread(scale, shape), None if zero is None else leaves.spread(zero, shape)


@jax.custom_jvp
def straight(value: Array, shown: Array) -> Array:
    """`shown`, with the gradient of `value`: what rounding does to a value is not seen by its gradient."""
    return shown


@straight.defjvp
def _straight_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]
