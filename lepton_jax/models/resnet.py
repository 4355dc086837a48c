"""Residual networks (He et al. 2015, https://arxiv.org/abs/1512.03385), for small images and for ImageNet.

Weights are named `stem/conv/kernel`, `stage1/block0/conv1/kernel`, `stage1/block0/norm1/scale`, `head/kernel`.
Each block's output is tagged "block" for rematerialization. Computation is in the dtype of parameters and images.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lepton_jax.errors import InputError
from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.layers import Images, Part
from lepton_jax.types import Model

RULES = (*layers.convolution_rules, *layers.norm_rules, *layers.head_rules)
SMALL_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
ones, zeros = nn.initializers.ones, nn.initializers.zeros


class Projection(nn.Module):
    """The shortcut of a block that changes shape, as a 1x1 convolution and a norm (He et al.'s option B)."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        return layers.norm(train, "norm")(layers.convolution(self.features, 1, self.strides, "conv")(x))


class Padding(nn.Module):
    """The shortcut of a block that changes shape, without parameters (He et al.'s option A).

    Every `strides`-th pixel, and zeros for the channels that are new, half of them on each side.
    """

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        new = self.features - x.shape[-1]
        x = jnp.asarray(x[:, :: self.strides, :: self.strides])
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


class Basic(nn.Module):
    """Two 3x3 convolutions around which the input is carried. last_scale starts the last norm's scale."""

    features: int
    strides: int
    shortcut: Part = Projection
    last_scale: Any = ones

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        y = layers.convolution(self.features, 3, self.strides, "conv1")(x)
        y = nn.relu(layers.norm(train, "norm1")(y))
        y = layers.convolution(self.features, 3, name="conv2")(y)
        y = layers.norm(train, "norm2", self.last_scale)(y)
        return nn.relu(carried(self, x, y.shape, train) + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around which the input is carried; 4 x `features` come out.

    The stride is on the 3x3 convolution ("v1.5"), which is more accurate than on the first as in the paper.
    """

    features: int
    strides: int
    shortcut: Part = Projection
    last_scale: Any = ones

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        y = layers.convolution(self.features, 1, name="conv1")(x)
        y = nn.relu(layers.norm(train, "norm1")(y))
        y = layers.convolution(self.features, 3, self.strides, "conv2")(y)
        y = nn.relu(layers.norm(train, "norm2")(y))
        y = layers.convolution(4 * self.features, 1, name="conv3")(y)
        y = layers.norm(train, "norm3", self.last_scale)(y)
        return nn.relu(carried(self, x, y.shape, train) + y)


def carried(block: Basic | Bottleneck, x: Images, shape: tuple[int, ...], train: bool) -> Array:
    """The block's input as it is added to its output: itself where shapes agree, else by the shortcut."""
    if x.shape == shape:
        return jnp.asarray(x)
    return block.shortcut(features=shape[-1], strides=block.strides, name="shortcut")(x, train)


class Stem(nn.Module):
    """3x3 convolution at full resolution: for images of about 28 to 64 pixels."""

    features: int = 64

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        return nn.relu(layers.norm(train, "norm")(layers.convolution(self.features, 3, name="conv")(x)))


class PooledStem(nn.Module):
    """7x7 convolution and 3x3 pooling, a quarter of the resolution: for images of about 224 pixels."""

    features: int = 64

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        x = nn.relu(layers.norm(train, "norm")(layers.convolution(self.features, 7, 2, "conv")(x)))
        padding: Any = ((1, 1), (1, 1))  # Flax annotates it as a string only
        return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)


class Stage(nn.Module):
    """Blocks one after the other, of which the first changes resolution and width."""

    block: Part
    blocks: int
    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Array:
        for i in range(self.blocks):
            strides = self.strides if i == 0 else 1
            x = self.block(features=self.features, strides=strides, name=f"block{i}")(x, train)
            x = checkpoint_name(x, "block")
        return jnp.asarray(x)


class ResNet(nn.Module):
    """stem -> stages, each of twice the width and half the resolution of the last -> mean over pixels -> head.

    blocks: how many in each stage. features: the width of the first stage's convolutions.
    """

    stem: Part
    block: Part
    blocks: tuple[int, ...]
    features: int
    classes: int

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Float[Array, "batch classes"]:
        """Images [batch, height, width, channels] to logits [batch, classes]."""
        x = self.stem(name="stem")(x, train)
        for i, blocks in enumerate(self.blocks):
            stage = Stage(self.block, blocks, self.features * 2**i, 1 if i == 0 else 2, name=f"stage{i + 1}")
            x = stage(x, train)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))


def small(depth: int, classes: int, shortcut: Part = Projection, last_scale: Any = ones) -> Model:
    """The ResNet for small images: 6n + 2 layers in three stages of 16, 32, 64 channels (He et al., section 4.2).

    shortcut: `Projection`, or `Padding` as in the paper; any module of (features, strides). last_scale starts
    each block's last norm, at one as in the paper. Raises InputError for another depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        known = ", ".join(map(str, SMALL_DEPTHS))
        raise InputError(f"a small ResNet has 6n + 2 layers, which {depth} is not", f"choose one of {known}")
    block = partial(Basic, shortcut=shortcut, last_scale=last_scale)
    return linen(ResNet(partial(Stem, 16), block, (blocks,) * 3, 16, classes), RULES)


KINDS = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def imagenet(depth: int, classes: int, stem: Part = PooledStem, last_scale: Any = zeros) -> Model:
    """The ResNet for ImageNet with 18, 34, 50 or 101 layers, in four stages of 64, 128, 256, 512 channels.

    stem: `PooledStem`, or `Stem` for images of about 32 pixels; any module. last_scale starts each block's last
    norm: at zero a block starts as the identity, which helps large batches (Goyal et al. 2017, section 5.1,
    https://arxiv.org/abs/1706.02677). Raises InputError for another depth.
    """
    if depth not in KINDS:
        known = ", ".join(map(str, KINDS))
        raise InputError(f"there is no ImageNet ResNet of {depth} layers", f"choose one of {known}")
    kind, blocks = KINDS[depth]
    return linen(ResNet(stem, partial(kind, last_scale=last_scale), blocks, 64, classes), RULES)
