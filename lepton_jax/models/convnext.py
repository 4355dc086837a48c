"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545).

Weights are named `stem/kernel`, `stage1/block0/conv/kernel`, `stage1/block0/dense1/kernel`,
`stage1/block0/layer_scale`, `downsample2/conv/kernel`, `norm/scale`, `head/kernel`. Each block's output is tagged
"block" for rematerialization. Computation is in the dtype of parameters and images. A "model" axis splits the hidden
units of each block.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lepton_jax.errors import InputError
from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.depthwise import Depthwise
from lepton_jax.models.layers import Images, Stage, StochasticDepth
from lepton_jax.types import Keys, Model

RULES = (*layers.mlp_rules, *layers.head_rules)
truncated_normal = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """A 7x7 depthwise convolution and an mlp of four times the width, scaled by channel and added to the input.

    stochastic_depth: the rate at which an example leaves it out.
    """

    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        width = x.shape[-1]
        y = Depthwise(7, use_bias=True, kernel_init=truncated_normal, name="conv")(x)
        y = _dense(4 * width, "dense1")(layers.layer_norm("norm")(y))
        y = _dense(width, "dense2")(nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
        y = y * scale.astype(y.dtype)[None, None, None]
        return x + StochasticDepth(self.stochastic_depth, name="depth")(y, train, keys)


class Downsample(nn.Module):
    """A norm and a 2x2 convolution to half the resolution."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _patches(self.features, 2, "conv")(layers.layer_norm("norm")(x))


class ConvNeXt(nn.Module):
    """stem -> stages, each at half the resolution of the last -> mean over pixels -> norm -> head.

    blocks, widths: how many in each stage, and its channels. patch: the stem's pixels a side. stochastic_depth: the
    last block's rate; they rise from 0.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int
    patch: int = 4
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: Images, train: bool, keys: Keys | None = None) -> Float[Array, "batch classes"]:
        """Images [batch, height, width, channels] to logits [batch, classes]."""
        least = self.patch * 2 ** (len(self.blocks) - 1)
        if min(x.shape[1:3]) < least:
            problem = f"images of {x.shape[1]}x{x.shape[2]} vanish before the last stage"
            raise InputError(problem, f"give images of at least {least}x{least}, or a smaller patch")
        y = layers.layer_norm("stem_norm")(_patches(self.widths[0], self.patch, "stem")(x))
        rates = layers.increasing(self.stochastic_depth, sum(self.blocks))
        for i, blocks in enumerate(self.blocks):
            y = Downsample(self.widths[i], name=f"downsample{i + 1}")(y) if i else y
            own, rates = rates[:blocks], rates[blocks:]
            y = Stage(tuple(partial(Block, rate) for rate in own), name=f"stage{i + 1}")(y, train, keys)
        return _dense(self.classes, "head")(layers.layer_norm("norm")(jnp.mean(y, axis=(1, 2))))


def tiny(classes: int, patch: int = 4, stochastic_depth: float = 0.1) -> Model:
    """ConvNeXt-T: 3, 3, 9, 3 blocks of 96, 192, 384, 768 channels.

    patch: the stem's pixels a side, 4 for images of about 224 pixels and 1 or 2 for about 32. stochastic_depth: as
    published for 300 epochs of ImageNet; 0 for none. Raises InputError for images below 8 x patch pixels.
    """
    blocks, widths = (3, 3, 9, 3), (96, 192, 384, 768)
    return linen(ConvNeXt(blocks, widths, classes, patch, stochastic_depth), RULES)


def _patches(features: int, size: int, name: str) -> nn.Conv:
    """A convolution whose windows do not overlap."""
    step = (size, size)
    return nn.Conv(features, step, strides=step, padding="VALID", kernel_init=truncated_normal, name=name)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=truncated_normal, name=name)
