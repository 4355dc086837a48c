"""An engine in two passes: the norms first, then one gradient of the losses, each times its factor."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.errors import InputError
from lepton_jax.privacy.engine import Example, Factors, Rows, Seen
from lepton_jax.privacy.ghosts import taken_apart
from lepton_jax.privacy.layers import kept
from lepton_jax.tree import is_floating
from lepton_jax.types import Params


def two_pass(
    example: Example, params: Params, rows: Rows, factors: Factors
) -> tuple[Params, Sequence[Float[Array, " examples"]], Float[Array, " examples"], Seen]:
    """Ghost norms, and then the gradient of all losses, each times its factor (Lee and Kifer 2021, section 4,
    https://arxiv.org/abs/2009.03106; Li et al. 2022, https://arxiv.org/abs/2110.05679).

    A second backward pass, and little more memory than without privacy. A factor multiplies a whole loss, so a rule
    that scales an example's layers differently is refused with InputError.
    """
    squares = [gradient.squares for gradient in taken_apart(example, params, rows)[0]]
    factor, *others = factors(squares)
    if any(other is not factor for other in others):
        problem = "two passes scale an example's loss, and this rule scales its layers differently"
        raise InputError(problem, "use the engine privacy.vmapped or privacy.ghost, or clip by a flat norm")
    counted = jax.tree.map(lambda x: kept(x, factor) if is_floating(x) else x, rows)  # NaN times 0 is NaN

    def scaled(params: Params) -> tuple[Array, tuple[Array, Seen]]:
        losses, seen = jax.vmap(example, (None, 0))(params, counted)
        return jnp.sum(jnp.where(factor == 0, 0, factor.astype(losses.dtype) * losses)), (losses, seen)

    total, (losses, seen) = jax.grad(scaled, has_aux=True)(params)
    return total, squares, losses, seen
