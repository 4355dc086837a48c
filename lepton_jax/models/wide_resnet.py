"""Wide residual networks (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146), for small images.

With batch norm as in the paper, or with group norm and standardized weights, for which examples do not see each
other, as De et al. 2022 train privately (https://arxiv.org/abs/2204.13650). Weights are named `stem/kernel`,
`stage1/block0/conv1/kernel`, `stage1/block0/norm1/scale`, `stage1/block0/shortcut/kernel`, `norm/scale`,
`head/kernel`. Each block's output is tagged "block" for rematerialization. Computation is in the dtype of
parameters and images.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lepton_jax.errors import InputError
from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.layers import Dropout, Images, Part, Stage
from lepton_jax.types import Keys, Model, Rule

Normed = Callable[[Array, bool, str], Array]
"""(x, train, name) -> x normalized and rectified, in the order that the network has them."""

RULES = (
    *layers.convolution_rules,
    Rule(r"(stem|shortcut)/kernel$", (None, None, None, "model")),
    *layers.norm_rules,
    *layers.head_rules,
)
GROUP_RULES = (*RULES, Rule(r"(conv\d+|stem|shortcut)/(gain|bias)$", ("model",)))


class StandardizedConv(nn.Module):
    """A convolution whose kernel is seen with mean 0 and variance 1 / fan-in per output channel, times a gain.

    Padded by size // 2 on every side. Brock et al. 2021, https://arxiv.org/abs/2101.08692, section 3.2. The kernel's
    statistics are in float32 or wider.
    """

    features: int
    size: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Images) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(1.0, "fan_in", "normal"), shape)
        gain = self.param("gain", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = jnp.promote_types(x.dtype, kernel.dtype)
        y = jax.lax.conv_general_dilated(
            jnp.asarray(x, dtype),
            standardized(kernel, gain).astype(dtype),
            (self.strides, self.strides),
            ((self.size // 2, self.size // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias[None, None, None]


def standardized(
    kernel: Float[Array, "height width channels features"], gain: Float[Array, " features"]
) -> Float[Array, "height width channels features"]:
    """(kernel - mean) * gain / sqrt(fan-in * variance) per feature, at least float32."""
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    axes, fan_in = (0, 1, 2), kernel.size // kernel.shape[-1]
    mean = jnp.mean(kernel, axes, keepdims=True)
    variance = jnp.mean(jnp.square(kernel - mean), axes, keepdims=True)
    # bounded, or a constant kernel would be divided by zero
    return (kernel - mean) * gain[None, None, None] * jax.lax.rsqrt(jnp.maximum(fan_in * variance, 1e-4))


def batch_normed(x: Array, train: bool, name: str) -> Array:
    """Batch norm, then the rectifier."""
    return nn.relu(layers.norm(train, name)(x))


def group_normed(x: Array, train: bool, name: str, groups: int = 16) -> Array:
    """The rectifier, then group norm (Wu and He 2018, https://arxiv.org/abs/1803.08494)."""
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, name=name)(nn.relu(x))


class BatchBlock(nn.Module):
    """Norm, rectifier and 3x3 convolution, twice, around which the input is carried.

    Where the shape changes it is the normalized input that is carried, through a 1x1 convolution.
    """

    features: int
    strides: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        active = batch_normed(x, train, "norm1")
        y = layers.convolution(self.features, 3, self.strides, "conv1")(active)
        y = Dropout(self.dropout, name="dropout")(batch_normed(y, train, "norm2"), train, keys)
        y = layers.convolution(self.features, 3, name="conv2")(y)
        if x.shape != y.shape:
            x = layers.convolution(self.features, 1, self.strides, "shortcut")(active)
        return x + y


class GroupBlock(nn.Module):
    """The same with standardized convolutions and group norm, of which the carried input has its own."""

    features: int
    strides: int
    dropout: float = 0.0
    normed: Normed = group_normed

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        y = StandardizedConv(self.features, 3, self.strides, name="conv1")(self.normed(x, train, "norm1"))
        y = Dropout(self.dropout, name="dropout")(self.normed(y, train, "norm2"), train, keys)
        y = StandardizedConv(self.features, 3, name="conv2")(y)
        if x.shape != y.shape:
            carried = self.normed(x, train, "shortcut_norm")
            x = StandardizedConv(self.features, 1, self.strides, name="shortcut")(carried)
        return x + y


class WideResNet(nn.Module):
    """stem -> three stages of 16, 32, 64 times `width` channels -> norm -> mean over pixels -> head."""

    stem: Part
    block: Part
    normed: Normed
    blocks: int
    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Images, train: bool, keys: Keys | None = None) -> Float[Array, "batch classes"]:
        """Images [batch, height, width, channels] to logits [batch, classes]."""
        y = self.stem(name="stem")(x)
        for i in range(3):
            block = partial(self.block, features=16 * self.width * 2**i)
            blocks = (partial(block, strides=1 if i == 0 else 2), *(partial(block, strides=1),) * (self.blocks - 1))
            y = Stage(blocks, name=f"stage{i + 1}")(y, train, keys)
        y = self.normed(y, train, "norm")
        return nn.Dense(self.classes, name="head")(jnp.mean(y, axis=(1, 2)))


def with_batch_norm(depth: int, width: int, classes: int, dropout: float = 0.0) -> Model:
    """WRN-depth-width with batch norm: 6n + 4 layers, `width` times as wide as a residual network of its depth.

    dropout: between the two convolutions of a block. Raises InputError for another depth.
    """
    stem, block = partial(layers.convolution, 16, 3), partial(BatchBlock, dropout=dropout)
    return linen(WideResNet(stem, block, batch_normed, _blocks(depth), width, classes), RULES)


def with_group_norm(depth: int, width: int, classes: int, dropout: float = 0.0, groups: int = 16) -> Model:
    """WRN-depth-width with group norm and standardized weights, without batch statistics.

    groups: of channels, which must divide 16. dropout: between the two convolutions of a block. Raises InputError for
    another depth or number of groups.
    """
    if groups < 1 or 16 % groups:
        raise InputError(f"{groups} groups do not divide the first 16 channels", "choose 1, 2, 4, 8 or 16 groups")
    normed = partial(group_normed, groups=groups)
    stem, block = partial(StandardizedConv, 16, 3), partial(GroupBlock, dropout=dropout, normed=normed)
    return linen(WideResNet(stem, block, normed, _blocks(depth), width, classes), GROUP_RULES)


def _blocks(depth: int) -> int:
    """Blocks in each of the three stages."""
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise InputError(f"a wide ResNet has 6n + 4 layers, which {depth} is not", "choose 10, 16, 22, 28, 34, 40 ...")
    return blocks
