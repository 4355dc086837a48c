"""An engine in two passes: norms first, a few examples at a time, then one gradient of the scaled losses."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.errors import InputError
from lepton_jax.privacy.engine import Engine, Example, Factors, Rows, Seen, squared
from lepton_jax.tree import is_floating
from lepton_jax.types import Params


def two_pass(together: int = 16) -> Engine:
    """Norms of `together` examples at a time, then the gradient of all losses, each times its factor (Lee and Kifer
    2021, section 4, https://arxiv.org/abs/2009.03106).

    The memory of so many gradients, whatever the batch, and a second backward pass. It takes any loss. A factor
    multiplies a whole loss, so one that scales an example's layers differently is refused with InputError.
    """

    def engine(
        example: Example, params: Params, rows: Rows, factors: Factors
    ) -> tuple[Params, Sequence[Float[Array, " examples"]], Float[Array, " examples"], Seen]:
        def norms(row: Rows) -> list[Any]:
            gradient, _ = jax.grad(example, has_aux=True)(params, row)
            return [squared(leaf[None])[0] for leaf in jax.tree.leaves(gradient)]

        squares = jax.lax.map(norms, rows, batch_size=together)
        factor, *others = factors(squares)
        if any(other is not factor for other in others):
            problem = "two passes scale an example's loss, and this rule scales its layers differently"
            raise InputError(problem, "use the engine privacy.vmapped or privacy.ghost, or clip by a flat norm")
        counted = jax.tree.map(lambda x: _kept(x, factor), rows)

        def scaled(params: Params) -> tuple[Array, tuple[Array, Seen]]:
            losses, seen = jax.vmap(example, (None, 0))(params, counted)
            scaled = jnp.where(factor == 0, 0, factor.astype(losses.dtype) * losses)
            return jnp.sum(scaled), (losses, seen)

        total, (losses, seen) = jax.grad(scaled, has_aux=True)(params)
        return total, squares, losses, seen

    return engine


def _kept(x: Array, factor: Array) -> Array:
    """Zeros for the examples that do not count: what a loss makes of a NaN is NaN, times 0 too."""
    return jnp.where(factor.reshape(-1, *[1] * (x.ndim - 1)) == 0, 0, x) if is_floating(x) else x
