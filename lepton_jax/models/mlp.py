"""A multilayer perceptron: dense layers on flattened inputs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.layers import Dropout
from lepton_jax.types import Keys, Model


class MLP(nn.Module):
    """See `mlp`. Weights are named `dense1`, `dense2` ..., `head`."""

    widths: tuple[int, ...]
    classes: int
    dropout: float
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(
        self, x: Num[Array | np.ndarray, "batch *shape"], train: bool, keys: Keys | None = None
    ) -> Float[Array, "batch classes"]:
        """Inputs [batch, ...] to logits [batch, classes]."""
        y = jnp.reshape(x, (x.shape[0], -1))
        for i, width in enumerate(self.widths):
            y = self.activation(nn.Dense(width, name=f"dense{i + 1}")(y))
            y = Dropout(self.dropout, name=f"dropout{i + 1}")(y, train, keys)
        return nn.Dense(self.classes, name="head")(y)


def mlp(
    widths: Sequence[int],
    classes: int,
    dropout: float = 0.0,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Model:
    """Dense layers of these widths on the flattened input, each with dropout of this rate after it, and a head.

    Without widths it is linear (softmax regression under cross-entropy).
    """
    rules = (*layers.dense_rules, *layers.head_rules) if widths else layers.head_rules
    return linen(MLP(tuple(widths), classes, dropout, activation), rules)
