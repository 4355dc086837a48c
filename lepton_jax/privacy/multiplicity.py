"""What the literature has found to pay under noise, as ordinary functions of a loss and of activations."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import keys
from lepton_jax.errors import InputError
from lepton_jax.privacy.clipping import require_still
from lepton_jax.types import Aux, Batch, Loss, Mean


def multiplied(loss: Loss, copies: int) -> Loss:
    """The mean of the loss over so many draws: augmentation multiplicity, as `multiplied(augmented(loss, augment), 8)`.

    Below `clipped` each example's gradient is averaged over its copies and clipped once, so copies cost no privacy (De
    et al. 2022, https://arxiv.org/abs/2204.13650). Raises InputError for no copies, and where the loss moves stats.
    """
    if copies < 1:
        raise InputError(f"{copies} copies of an example are none", "give at least 1")

    def mean_loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        def once(number: Any) -> tuple[Mean, dict[str, Mean]]:
            mean, aux = loss(params, stats, batch, keys.folded(key, number))
            require_still(stats, aux.stats)
            return mean, aux.metrics

        mean, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.vmap(once)(jnp.arange(copies)))
        return mean, Aux(stats, metrics)

    return mean_loss


def tempered(x: Array, scale: float = 2.0, temperature: float = 2.0, offset: float = 1.0) -> Array:
    """Tempered sigmoid, scale * sigmoid(temperature * x) - offset; by its defaults, tanh (Papernot et al. 2021,
    https://arxiv.org/abs/2007.14191). Bounded activations bound gradients, so clipping takes less away."""
    return scale * jax.nn.sigmoid(temperature * x) - offset
