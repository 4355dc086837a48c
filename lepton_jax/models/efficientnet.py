"""EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946).

Weights are named `stem/conv/kernel`, `stage2/block0/expand/conv/kernel`, `stage2/block0/depthwise/norm/scale`,
`stage2/block0/squeeze/dense1/kernel`, `stage2/block0/project/conv/kernel`, `last/conv/kernel`, `head/kernel`. Each
block's output is tagged "block" for rematerialization. Computation is in the dtype of parameters and images. A "model"
axis splits each block's expanded channels.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.depthwise import Depthwise
from lepton_jax.models.layers import Dropout, Images, Part, Stage, StochasticDepth
from lepton_jax.types import Keys, Model, Rule

SPLIT = r"(expand|depthwise|last)"
RULES = (
    Rule(rf"{SPLIT}/conv/kernel$", (None, None, None, "model")),
    Rule(rf"{SPLIT}/norm/(scale|bias|mean|var)$", ("model",)),
    Rule(r"squeeze/dense1/kernel$", ("model", None)),
    Rule(r"squeeze/dense2/kernel$", (None, "model")),
    Rule(r"squeeze/dense2/bias$", ("model",)),
    Rule(r"project/conv/kernel$", (None, None, "model", None)),
    *layers.head_rules,
)


class Group(NamedTuple):
    """Blocks of one kind. expansion: of channels within a block. size, strides: of the depthwise convolution."""

    expansion: int
    features: int
    blocks: int
    strides: int
    size: int


B0 = (
    Group(1, 16, 1, 1, 3),
    Group(6, 24, 2, 2, 3),
    Group(6, 40, 2, 2, 5),
    Group(6, 80, 3, 2, 3),
    Group(6, 112, 3, 1, 5),
    Group(6, 192, 4, 2, 5),
    Group(6, 320, 1, 1, 3),
)


class Unit(nn.Module):
    """A convolution, batch norm and an activation."""

    convolution: Part
    activation: Callable[[Array], Array] = nn.silu

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        return self.activation(layers.norm(train, "norm")(self.convolution(name="conv")(x)))


class Squeeze(nn.Module):
    """Scales each channel by what the means of all channels say (Hu et al. 2018, https://arxiv.org/abs/1709.01507)."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.silu(nn.Dense(self.hidden, name="dense1")(jnp.mean(x, axis=(1, 2))))
        return x * nn.sigmoid(nn.Dense(x.shape[-1], name="dense2")(y))[:, None, None]


class Block(nn.Module):
    """The inverted residual: expand by 1x1, filter each channel by itself, scale, project by 1x1 (Sandler et al. 2018).

    https://arxiv.org/abs/1801.04381. Where the shape stays the input is added, from which an example leaves the rest
    out at the rate `stochastic_depth`.
    """

    expansion: int
    features: int
    strides: int
    size: int
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        y, hidden = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = Unit(partial(layers.convolution, hidden, 1), name="expand")(y, train)
        y = Unit(partial(Depthwise, self.size, self.strides), name="depthwise")(y, train)
        y = Squeeze(max(1, x.shape[-1] // 4), name="squeeze")(y)
        y = Unit(partial(layers.convolution, self.features, 1), lambda y: y, name="project")(y, train)
        return x + StochasticDepth(self.stochastic_depth, name="depth")(y, train, keys) if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """stem -> stages -> 1x1 convolution -> mean over pixels -> dropout -> head. See `b0`."""

    stages: tuple[Group, ...]
    stem: int
    last: int
    classes: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: Images, train: bool, keys: Keys | None = None) -> Float[Array, "batch classes"]:
        """Images [batch, height, width, channels] to logits [batch, classes]."""
        y = Unit(partial(layers.convolution, self.stem, 3, 2), name="stem")(x, train)
        rates = iter(layers.increasing(self.stochastic_depth, sum(stage.blocks for stage in self.stages)))
        for i, stage in enumerate(self.stages):
            kind = partial(Block, stage.expansion, stage.features, size=stage.size)
            strides = (stage.strides, *(1,) * (stage.blocks - 1))
            blocks = tuple(partial(kind, strides=s, stochastic_depth=next(rates)) for s in strides)
            y = Stage(blocks, name=f"stage{i + 1}")(y, train, keys)
        y = jnp.mean(Unit(partial(layers.convolution, self.last, 1), name="last")(y, train), axis=(1, 2))
        return nn.Dense(self.classes, name="head")(Dropout(self.dropout, name="dropout")(y, train, keys))


def b0(classes: int, dropout: float = 0.2, stochastic_depth: float = 0.2) -> Model:
    """EfficientNet-B0, for images of about 224 pixels.

    dropout: before the head. stochastic_depth: the last block's rate; they rise from 0. Both as published for
    ImageNet; 0 for none.
    """
    return linen(EfficientNet(B0, 32, 1280, classes, dropout, stochastic_depth), RULES)
