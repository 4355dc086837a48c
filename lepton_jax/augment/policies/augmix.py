"""AugMix: several chains of weak operations, mixed with the image itself."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.augment.base import Shape, Transform
from lepton_jax.augment.image import Fill, Image, product
from lepton_jax.augment.policies.batch import one_by_one
from lepton_jax.augment.policies.chain import Chain, acting, happens
from lepton_jax.augment.policies.operations import IDENTITY
from lepton_jax.augment.policies.spaces import AUGMIX, check_operations, table
from lepton_jax.augment.warp import Interpolation
from lepton_jax.errors import InputError
from lepton_jax.types import Key

BINS = 10  # of which the severity takes the first
DEEPEST = 3  # of the drawn depths


class Mixture(NamedTuple):
    """What `augmix` drew: the chains [width, depth], the share of each in the result, and the image's own share."""

    chains: Chain
    shares: Float[Array, " width"]
    kept: Float[Array, ""]


def augmix(
    severity: int = 3,
    width: int = 3,
    depth: int | None = None,
    alpha: float = 1.0,
    operations: Sequence[str] = tuple(AUGMIX),
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0,
) -> Transform:
    """The image and `width` chains of operations averaged, as torchvision's AugMix. Parameters: a Mixture.

    severity: levels are drawn from the first `severity` of 10. depth: operations a chain; None draws 1, 2 or 3 each.
    alpha: the shares are Dirichlet(alpha, ...) among the chains, and Beta(alpha, alpha) between them and the image.
    operations: which to draw from; the paper leaves out brightness, color, contrast and sharpness. Masks, boxes and
    keypoints stay with the image itself. uint8 is truncated. Raises InputError.
    Hendrycks et al. 2020, https://arxiv.org/abs/1912.02781
    """
    names = (*operations, IDENTITY)
    check_operations(tuple(operations), tuple(AUGMIX))
    _check(severity, width, depth, alpha)
    longest = depth or DEEPEST

    def sample(key: Key, shape: Shape) -> Mixture:
        chains, among, between = jax.random.split(key, 3)
        drawn = jax.vmap(lambda key: chain(key, shape))(jax.random.split(chains, width))
        mixed = jax.random.beta(between, alpha, alpha, (), jnp.float32)
        shares = jax.random.dirichlet(among, jnp.full(width, alpha, jnp.float32), (), jnp.float32)
        return Mixture(drawn, shares * mixed, 1 - mixed)

    def chain(key: Key, shape: Shape) -> Chain:
        choice, strength, sign, length = jax.random.split(key, 4)
        operation = jax.random.randint(choice, (longest,), 0, len(names) - 1, jnp.int32)
        level = jax.random.randint(strength, (longest,), 0, severity, jnp.int32)
        negative = happens(sign, 0.5, (longest,)).astype(jnp.int32)
        if depth is None:
            end = jax.random.randint(length, (), 1, DEEPEST + 1, jnp.int32)
            operation = jnp.where(jnp.arange(longest) < end, operation, len(names) - 1)
        amounts = jnp.asarray(table(AUGMIX, names, BINS, (shape[0], shape[1])))
        return Chain(operation, amounts[operation, negative, level])

    chained = acting(names, interpolation, fill)

    def act(drawn: Mixture, image: Image) -> Image:
        copies = jax.lax.map(lambda chain: chained(chain, image), drawn.chains)
        kind = jnp.promote_types(image.dtype, jnp.float32)
        mixed = product(drawn.kept.astype(kind), image.astype(kind))
        for share, copy in zip(drawn.shares, copies, strict=True):
            mixed = mixed + product(share.astype(kind), copy.astype(kind))
        return mixed.astype(image.dtype)

    return Transform(sample, act, batch=one_by_one(act))


def _check(severity: int, width: int, depth: int | None, alpha: float) -> None:
    if not isinstance(severity, int) or not 1 <= severity <= BINS:
        raise InputError(f"the severity {severity} is outside 1..{BINS}", "give a whole number in it; 3 is usual")
    if width < 1:
        raise InputError(f"a mixture of {width} chains is empty", "give a width of at least 1; 3 is usual")
    if depth is not None and depth < 1:
        raise InputError(f"a chain of {depth} operations is empty", "give a depth of at least 1, or None to draw it")
    if not alpha > 0:
        raise InputError(f"shares of Dirichlet({alpha}) are not defined", "give an alpha above 0; 1 is usual")
