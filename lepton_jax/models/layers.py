"""What models share: exact dropout, convolutions and norms, stages of blocks, sharding rules by layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Num

from lepton_jax import keys as keys_
from lepton_jax.errors import InputError
from lepton_jax.types import Keys, Rule

Images = Num[Array | np.ndarray, "batch height width channels"]
Part = Callable[..., nn.Module]
"""What makes a part of a network: a module class, or one with some of its fields given."""

# He et al. 2015, https://arxiv.org/abs/1502.01852, by outgoing connections as usual for residual networks
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

convolution_rules = (Rule(r"conv\d*/kernel$", (None, None, None, "model")),)
norm_rules = (Rule(r"norm\d*/(scale|bias|mean|var)$", ("model",)),)
dense_rules = (Rule(r"dense\d*/kernel$", (None, "model")), Rule(r"dense\d*/bias$", ("model",)))
head_rules = (Rule(r"head/kernel$", (None, "model")), Rule(r"head/bias$", ("model",)))
# Two dense layers around a hidden one that is split (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053)
mlp_rules = (
    Rule(r"dense1/kernel$", (None, "model")),
    Rule(r"dense1/bias$", ("model",)),
    Rule(r"dense2/kernel$", ("model", None)),
)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends on that example's key and on the layer, and on nothing else.

    So neither the mesh, the microbatch nor the row in the batch changes it. rate: the share of activations set to
    zero in training, in [0, 1); the rest are divided by 1 - rate. Srivastava et al. 2014,
    https://jmlr.org/papers/v15/srivastava14a.html.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        """x: [batch, ...]; keys: [batch]. Raises InputError for another rate and in training without keys."""
        return _dropped(self, self.rate, x.shape[1:], x, train, keys)


class StochasticDepth(nn.Module):
    """A residual branch that is left out for some examples in training, as a whole.

    Each example decides by its own key and the layer, as in `Dropout`. rate: the share of examples, in [0, 1), or a
    traced scalar; branches that stay are divided by 1 - rate. Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """

    rate: float | Array

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        """x: [batch, ...]; keys: [batch]. Raises InputError for another rate and in training without keys."""
        return _dropped(self, self.rate, (1,) * (x.ndim - 1), x, train, keys)


def _dropped(
    layer: nn.Module, rate: float | Array, shape: tuple[int, ...], x: Array, train: bool, keys: Keys | None
) -> Array:
    """x, in training times a mask of this shape per example and divided by the mask's mean.

    The rate may be a traced scalar, of a layer in a scan; it is then taken to be in range.
    """
    known = not isinstance(rate, jax.Array)
    if known and not 0 <= rate < 1:
        raise InputError(f"the dropout rate {rate} is not in [0, 1)", "choose one from 0 to below 1")
    if not train or (known and rate == 0):
        return x
    if keys is None:
        raise InputError("dropout got no keys in training", "pass keys to apply, one per example")
    keep = 1 - rate
    # the path tells layers apart: two layers of one shape must not drop the same units
    own = keys_.named(keys, "/".join(layer.path))
    mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, shape))(own)
    return jnp.where(mask, x / (keep if known else jnp.asarray(keep, x.dtype)), jnp.zeros_like(x))


def increasing(rate: float, blocks: int) -> tuple[float, ...]:
    """Rates of stochastic depth for so many blocks, from 0 at the first to `rate` at the last in equal steps."""
    return tuple(rate * (i / max(blocks - 1, 1)) for i in range(blocks))


class Stage(nn.Module):
    """Blocks one after the other, named `block0`, `block1` ..., each output tagged for rematerialization.

    blocks: what makes them; each block is called with (x, train, keys).
    """

    blocks: tuple[Part, ...]

    @nn.compact
    def __call__(self, x: Array, train: bool, keys: Keys | None = None) -> Array:
        for i, block in enumerate(self.blocks):
            x = checkpoint_name(block(name=f"block{i}")(x, train, keys), "block")
        return x


def convolution(features: int, size: int, strides: int = 1, name: str | None = None) -> nn.Conv:
    """A size x size convolution without bias, padded by size // 2 on every side.

    The padding is explicit because "SAME" puts a strided convolution's window one pixel further along.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=(strides, strides),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        kernel_init=kaiming_normal,
        name=name,
    )


def norm(train: bool, name: str | None = None, scale: Any = nn.initializers.ones) -> nn.BatchNorm:
    """Batch normalization over examples and pixels; running averages keep 0.9 of themselves a step.

    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167. Statistics are in float32 whatever the input.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, scale_init=scale, name=name)


def layer_norm(name: str | None = None) -> nn.LayerNorm:
    """Normalization over the channels of each position (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

    Statistics are in float32 whatever the input, and the variance is not a difference of large numbers.
    """
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
