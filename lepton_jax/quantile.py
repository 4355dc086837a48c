"""A clipping norm that follows a quantile of the norms it clips (Andrew et al. 2021, https://arxiv.org/abs/1905.03871)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.errors import InputError


def require(quantile: float, rate: float) -> None:
    """Raise InputError for a quantile outside (0, 1) and for a rate that is not positive."""
    if not (0 < quantile < 1 and 0 < rate < math.inf):
        problem = f"a clipping norm cannot follow the quantile {quantile} at a rate of {rate}"
        raise InputError(problem, "give a quantile between 0 and 1, such as 0.5, and a rate above 0, such as 0.2")


def followed(norm: Float[Array, ""], within: Float[Array, ""], quantile: float, rate: float) -> Float[Array, ""]:
    """The next norm: times exp(-rate * (within - quantile)), where the share `within` was not clipped.

    A share that noise has taken out of [0, 1] counts as the nearer end.
    """
    return norm * jnp.exp(-rate * (jnp.clip(within, 0, 1) - quantile))
