"""A plain convolutional network: 3x3 convolutions, each pooled to half the resolution, and a hidden dense layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lepton_jax.errors import InputError
from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.layers import Dropout, Images
from lepton_jax.types import Keys, Model, Rule

RULES = (
    *layers.convolution_rules,
    Rule(r"conv\d+/bias$", ("model",)),
    *layers.dense_rules,
    *layers.head_rules,
)


class CNN(nn.Module):
    """See `cnn`. Weights are named `conv1`, `conv2` ..., `dense`, `head`."""

    classes: int
    widths: tuple[int, ...]
    hidden: int
    dropout: float
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Images, train: bool, keys: Keys | None = None) -> Float[Array, "batch classes"]:
        """Images [batch, height, width, channels] to logits [batch, classes]."""
        if min(x.shape[1:3]) < 2 ** len(self.widths):
            size, least = f"{x.shape[1]}x{x.shape[2]}", 2 ** len(self.widths)
            remedy = f"give images of at least {least}x{least}, or fewer widths"
            raise InputError(f"images of {size} cannot be halved {len(self.widths)} times", remedy)
        for i, width in enumerate(self.widths):
            x = self.activation(nn.Conv(width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv{i + 1}")(x))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        y = self.activation(nn.Dense(self.hidden, name="dense")(jnp.reshape(x, (x.shape[0], -1))))
        y = Dropout(self.dropout, name="dropout")(y, train, keys)
        return nn.Dense(self.classes, name="head")(y)


def cnn(
    classes: int,
    widths: tuple[int, ...] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Model:
    """A plain convolutional network without batch statistics.

    widths: channels of each 3x3 convolution, every one followed by 2x2 max pooling, so images need at least
    2^len(widths) pixels a side. hidden: units of the dense layer; dropout: its rate. Raises InputError where
    there are no widths, and for images that are too small.
    """
    if not widths:
        raise InputError("a cnn has a convolution at least, and widths is empty", "give widths, (32, 64) say")
    return linen(CNN(classes, tuple(widths), hidden, dropout, activation), RULES)
