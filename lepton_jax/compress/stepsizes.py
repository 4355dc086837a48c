"""Learned step sizes: the scales of quantized weights are trained with them."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import tree
from lepton_jax.compress import base, grids
from lepton_jax.compress.quantize import Blocks, blocks_of, in_rows, spread, stored, straight, weights


def learned(
    bits: int = 4, granularity: str | int | Blocks = "channel", pattern: str = base.WEIGHTS
) -> base.Compression:
    """Weights of 2 to 16 bits whose scales are trained, LSQ (Esser et al. 2020, https://arxiv.org/abs/1902.08153).

    `kernel` becomes `kernel/value` and `kernel/scale` [blocks], which starts at 2 mean|w| / sqrt(highest level); its
    gradient is divided by sqrt(weights in the block x highest level). granularity: see `quantized`. Raises InputError
    as `quantized` does.
    """
    grid, blocks = grids.symmetric(bits), blocks_of(granularity)

    def init(params: Any) -> tuple[Any, tuple]:
        new = {}
        for name in weights(pattern, params):
            weight = jnp.asarray(base.at(params, name))
            sizes = jnp.mean(jnp.abs(in_rows(weight, blocks(weight.shape))), 1)
            # a block of zeros has to start somewhere
            new[name] = {"value": weight, "scale": jnp.where(sizes > 0, 2 * sizes / math.sqrt(grid.high), 1)}
        return base.put(params, new), ()

    def view(params: Any, state: Any) -> Any:
        return base.put(params, {name: shown(part, grid, blocks) for name, part in _pairs(params).items()})

    def pack(params: Any, state: Any) -> Any:
        new = {}
        for name, part in _pairs(params).items():
            scale = _scale(part, blocks)
            wide, _ = spread(scale, None, part["value"].shape)
            new[name] = stored(grid.levels(jnp.asarray(part["value"]), wide), grid, scale, None)
        return base.put(params, new)

    return base.Compression(init, view, base.unchanged, pack, ("quantization",))


def shown(part: dict[str, Any], grid: grids.Grid, blocks: Blocks) -> Array:
    """The weight at the levels of its learned scale, with LSQ's gradients for both."""
    value, counts = jnp.asarray(part["value"]), blocks(part["value"].shape)
    damping = 1 / math.sqrt(value.size / math.prod(counts) * grid.high)
    scale = _scale({**part, "scale": straight(part["scale"] * damping, part["scale"])}, blocks)
    wide, _ = spread(scale, None, value.shape)
    steps = jnp.clip(value.astype(jnp.float32) * (1 / wide), grid.low, grid.high)
    return (straight(steps, jnp.round(steps)) * wide).astype(value.dtype)


def _scale(part: dict[str, Any], blocks: Blocks) -> Array:
    """The scale as blocks of the weight's rank, positive and with few bits (`grids.steps`)."""
    size = jnp.abs(jnp.asarray(part["scale"], jnp.float32))
    return straight(size, grids.steps(size)).reshape(blocks(part["value"].shape))


def _pairs(params: Any) -> dict[str, dict[str, Any]]:
    """{name: value and scale} of the weights that are trained so."""
    names = [name.removesuffix("/value") for name in tree.paths(params) if name.endswith("/value")]
    return {name: part for name in names if "scale" in (part := base.at(params, name))}
