"""What an engine is: how clipped gradients are added up. And the plain one, in which every example's is there at once.

An engine never sees a batch, only a function of one example, so no example can reach into another's gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.types import Params

Rows = Any
"""Examples as a batch whose arrays have one axis more, [examples, 1, ...]: each row is a batch of one."""

Seen = Any
"""What one example shows beside its loss: a tree of arrays; with a leading axis [examples], that of all."""

Example = Callable[[Params, Rows], tuple[Float[Array, ""], Seen]]
"""(params, one row) -> (its weighted loss, what it shows)."""

Factors = Callable[[Sequence[Float[Array, " examples"]]], Sequence[Float[Array, " examples"]]]
"""The squared norms of each leaf's gradients, in tree order, to each leaf's factors."""

Engine = Callable[
    [Example, Params, Rows, Factors],
    tuple[Params, Sequence[Float[Array, " examples"]], Float[Array, " examples"], Seen],
]
"""(example, params, rows, factors) -> (the sum of scaled gradients, squared norms, losses, what was seen)."""


def vmapped(
    example: Example, params: Params, rows: Rows, factors: Factors
) -> tuple[Params, Sequence[Float[Array, " examples"]], Float[Array, " examples"], Seen]:
    """Every example's gradient side by side: the memory of so many gradients, and takes any loss."""
    (losses, seen), gradients = jax.vmap(jax.value_and_grad(example, has_aux=True), (None, 0))(params, rows)
    leaves, structure = jax.tree.flatten(gradients)
    squares = [squared(leaf) for leaf in leaves]
    sums = [scaled_sum(leaf, factor) for leaf, factor in zip(leaves, factors(squares), strict=True)]
    return structure.unflatten(sums), squares, losses, seen


def squared(leaf: Float[Array, "examples ..."]) -> Float[Array, " examples"]:
    """The squared norm of each example's part, in float32 at least."""
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return jnp.sum(jnp.square(wide.reshape(len(leaf), -1)), axis=1)


def scaled_sum(leaf: Float[Array, "examples ..."], factor: Float[Array, " examples"]) -> Float[Array, "..."]:
    """The sum over examples, each times its factor. What has the factor 0 counts nothing, NaN included."""
    # fused with what made the gradients, the sum's last bit would depend on how many shards a device has
    leaf, factor = jax.lax.optimization_barrier((leaf, factor.astype(leaf.dtype)))
    flat = leaf.reshape(len(leaf), -1)
    total = factor @ flat
    # a NaN times 0 is NaN, too, and to take these out of all gradients would be to copy them: one by one, if need be
    total = jax.lax.cond(jnp.all(jnp.isfinite(total)), lambda: total, lambda: _counted(flat, factor))
    return total.reshape(leaf.shape[1:])


def _counted(flat: Float[Array, "examples numbers"], factor: Float[Array, " examples"]) -> Float[Array, " numbers"]:
    def add(number: Any, total: Array) -> Array:
        return total + jnp.where(factor[number] == 0, 0, factor[number] * flat[number])

    return jax.lax.fori_loop(0, len(flat), add, jnp.zeros_like(flat[0]))
