"""The Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

Weights are named `patches/kernel`, `token/embedding`, `positions/embedding`, `block0/attention/query/kernel`,
`block0/mlp/dense1/kernel`, `norm/scale`, `head/kernel`. Each block's output is tagged "block" for rematerialization.
Computation is in the dtype of parameters and images, the softmax of attention in float32 or wider. A "model" axis
splits attention by heads and the mlp by hidden units; it should divide the number of heads. A "sequence" axis splits
the tokens, and attention goes around it in a ring. `models.stacked` has the network for a "pipe" axis.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lepton_jax.errors import InputError, named
from lepton_jax.models import layers
from lepton_jax.models.adapters import linen
from lepton_jax.models.attention import Tokens, attended, laid
from lepton_jax.models.layers import Dropout, Images, Part, StochasticDepth
from lepton_jax.types import Keys, Model, Rule

BLOCK_RULES = (
    Rule(r"attention/(query|key|value)/kernel$", (None, "model")),
    Rule(r"attention/(query|key|value)/bias$", ("model",)),
    Rule(r"attention/out/kernel$", ("model", None)),
    *layers.mlp_rules,
)
RULES = (*BLOCK_RULES, *layers.head_rules)


class Size(NamedTuple):
    """width: of a token. depth: blocks. heads: of attention, which divide the width."""

    width: int
    depth: int
    heads: int


SIZES = {"tiny": Size(192, 12, 3), "small": Size(384, 12, 6), "base": Size(768, 12, 12)}


class ClassToken(nn.Module):
    """A learned token before the patches, from which the class is read."""

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "batch tokens+1 width"]:
        token = self.param("embedding", nn.initializers.zeros, (x.shape[-1],))
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        return jnp.concatenate([token, x], axis=1)


class NoToken(nn.Module):
    """The patches alone."""

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        return x


class Pooling(NamedTuple):
    """How tokens become one vector. token: makes the module that may add one. read: tokens -> [batch, width]."""

    token: Part
    read: Callable[[Tokens], Float[Array, "batch width"]]


class_token = Pooling(ClassToken, lambda x: x[:, 0])
# Beyer et al. 2022, https://arxiv.org/abs/2205.01580
mean_pooling = Pooling(NoToken, lambda x: jnp.mean(x, axis=1))


class Learned(nn.Module):
    """Adds a learned vector to every token; so the number of tokens is fixed."""

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int]) -> Tokens:
        if self.has_variable("params", "embedding"):
            known = self.get_variable("params", "embedding").shape[0]
            if known != x.shape[1]:
                problem = f"{grid[0]}x{grid[1]} patches make {x.shape[1]} tokens, and positions of {known} were learned"
                raise InputError(problem, "resize the images, or use positions that are not learned: vit.SinCos")
        embedding = self.param("embedding", nn.initializers.normal(0.02), x.shape[1:])
        return x + embedding.astype(x.dtype)[None]


class SinCos(nn.Module):
    """Adds sines and cosines of row and column, at wavelengths from 2 pi to 20000 pi patches, without parameters.

    A class token has none. Raises InputError for a width that is not a multiple of 4.
    """

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int]) -> Tokens:
        waves, rest = divmod(x.shape[-1], 4)
        if rest:
            problem = f"a width of {x.shape[-1]} does not hold sine and cosine of row and column"
            raise InputError(problem, "choose a width that is a multiple of 4")
        frequencies = 10000.0 ** -(np.arange(waves) / max(waves - 1, 1))
        rows, columns = (place.reshape(-1, 1) * frequencies for place in np.indices(grid))
        positions = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
        others = x.shape[1] - len(positions)
        return x + jnp.asarray(np.pad(positions, ((others, 0), (0, 0))), x.dtype)[None]


class Attention(nn.Module):
    """Multi-head self-attention: see `attention.attended`. tokens: how many are no padding; all by default."""

    heads: int
    tokens: int | None = None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        by_head = (*x.shape[:2], self.heads, -1)
        query, key, value = (_dense(x.shape[-1], name)(x).reshape(by_head) for name in ("query", "key", "value"))
        return _dense(x.shape[-1], "out")(attended(query, key, value, self.tokens).reshape(x.shape))


class MLP(nn.Module):
    """Two dense layers with a GELU between them (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415)."""

    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens, train: bool, keys: Keys | None = None) -> Tokens:
        y = nn.gelu(_dense(self.hidden, "dense1")(x), approximate=False)
        y = Dropout(self.dropout, name="dropout")(y, train, keys)
        return _dense(x.shape[-1], "dense2")(y)


class Block(nn.Module):
    """Attention and an mlp of four times the width, each of the normalized input and added to it.

    dropout: after the activation and at the end of both. stochastic_depth: the rate at which either is left out.
    tokens: how many are no padding; all by default.
    """

    heads: int
    dropout: float = 0.0
    stochastic_depth: float | Array = 0.0
    tokens: int | None = None

    @nn.compact
    def __call__(self, x: Tokens, train: bool, keys: Keys | None = None) -> Tokens:
        y = Attention(self.heads, self.tokens, name="attention")(layers.layer_norm("norm1")(x))
        x = x + self._dropped(y, "1", train, keys)
        y = MLP(4 * x.shape[-1], self.dropout, name="mlp")(layers.layer_norm("norm2")(x), train, keys)
        return x + self._dropped(y, "2", train, keys)

    def _dropped(self, y: Tokens, number: str, train: bool, keys: Keys | None) -> Tokens:
        y = Dropout(self.dropout, name=f"dropout{number}")(y, train, keys)
        return StochasticDepth(self.stochastic_depth, name=f"depth{number}")(y, train, keys)


class VisionTransformer(nn.Module):
    """patches -> token -> positions -> blocks -> norm -> pooling -> head. See `standard`."""

    size: Size
    patch: int
    classes: int
    pooling: Pooling = class_token
    positions: Part = Learned
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: Images, train: bool, keys: Keys | None = None) -> Float[Array, "batch classes"]:
        """Images [batch, height, width, channels] to logits [batch, classes]."""
        y = self._patches(x)
        grid = (y.shape[1], y.shape[2])
        y = self.pooling.token(name="token")(y.reshape(len(y), -1, self.size.width))
        y = self.positions(name="positions")(y, grid)
        y = Dropout(self.dropout, name="dropout")(y, train, keys)
        # a sequence axis pads the tokens, and only here
        y = self.blocks(laid(y), y.shape[1], train, keys)[:, : y.shape[1]]
        y = self.pooling.read(layers.layer_norm("norm")(y))
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(y)

    def blocks(self, x: Tokens, tokens: int, train: bool, keys: Keys | None) -> Tokens:
        """All blocks, one after the other. tokens: how many are no padding."""
        for i, rate in enumerate(layers.increasing(self.stochastic_depth, self.size.depth)):
            x = Block(self.size.heads, self.dropout, rate, tokens, name=f"block{i}")(x, train, keys)
            x = checkpoint_name(x, "block")
        return x

    def _patches(self, x: Images) -> Float[Array, "batch rows columns features"]:
        """Each patch as a vector; patches do not overlap."""
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            problem = f"images of {x.shape[1]}x{x.shape[2]} do not divide into patches of {self.patch}x{self.patch}"
            raise InputError(problem, "resize or crop the images, or choose another patch")
        step = (self.patch, self.patch)
        return nn.Conv(self.size.width, step, strides=step, padding="VALID", name="patches")(x)


def standard(
    size: str | Size,
    classes: int,
    patch: int = 16,
    pooling: Pooling = class_token,
    positions: Part = Learned,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> Model:
    """The Vision Transformer of a size: "tiny" and "small" (Touvron et al. 2021), "base", or a `Size`.

    patch: pixels a side, 16 for images of about 224 pixels and 4 for about 32. pooling: `class_token`, or
    `mean_pooling`, without a token. positions: `Learned`, for one image size, or `SinCos`; any module of
    (tokens, grid). dropout: of embeddings and branches. stochastic_depth: the last block's rate; they rise from 0. The
    head starts at zero. Touvron et al.: https://arxiv.org/abs/2012.12877. Raises InputError for an unknown size,
    for heads that do not divide the width, and for images that patches do not divide.
    """
    module = VisionTransformer(sized(size), patch, classes, pooling, positions, dropout, stochastic_depth)
    return linen(module, RULES)


def sized(size: str | Size) -> Size:
    """The size of that name, or as given. Raises InputError where heads do not divide the width."""
    size = named("Vision Transformer size", size, SIZES)
    if size.width % size.heads:
        raise InputError(f"{size.heads} heads do not divide a width of {size.width}", "choose a number that does")
    return size


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), name=name)
