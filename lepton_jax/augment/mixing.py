"""Examples mixed with one another, labels included: (key, batch) -> batch, for `losses.mixed`.

Each example has a partner and keeps a share of itself, pixel by pixel; its label keeps the mean of that share, and the
partner's label takes the rest. The weight of an example stays its own, so averages stay exact. Partners are
found among the examples of weight other than 0 alone, so padding is never mixed into anything, and a padded
batch is mixed as the same batch without padding.

A partner is a neighbour in the batch that the function sees: with `accumulate` outside, in the microbatch. The draws
themselves depend on the key and on the global index only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lepton_jax import keys
from lepton_jax.augment.image import Shape, product
from lepton_jax.augment.partners import PAIRINGS, rows
from lepton_jax.errors import InputError, named
from lepton_jax.types import Batch, Key

Mixing = Callable[[Key, Batch], Batch]


class Shares(NamedTuple):
    """How much of itself an example keeps: at each pixel, broadcastable to the input, and in its label."""

    input: Float[Array, "..."]
    label: Float[Array, ""]


Draw = Callable[[Key, Shape], Shares]  # the shape is that of one example's input


def mixup(classes: int, alpha: float = 1.0, by: str = "batch", partner: str = "roll") -> Mixing:
    """mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412): two examples blended, share ~ Beta(alpha, alpha).

    Inputs are uint8 (rounded) or floating, of any shape; labels [batch] (integers) or [batch, classes] become
    distributions [batch, classes] in float32. by: one draw for the "batch", as in torchvision, or for each
    "example". partner: the example before ("roll"), the one as far from the other end ("flip"), or one by a
    random "permutation". Raises InputError.
    """
    return _mixing(beta_share(alpha), classes, by, partner)


def cutmix(classes: int, alpha: float = 1.0, by: str = "batch", partner: str = "roll") -> Mixing:
    """CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899): a box of the partner's image pasted in.

    The box would cover 1 - share of the image, share ~ Beta(alpha, alpha), were it not cut off at the border;
    the label goes by the area that it does cover. Inputs are images [batch, height, width, channels]; labels, `by` and
    `partner` are as for `mixup`. Raises InputError.
    """
    return _mixing(pasted_box(alpha), classes, by, partner)


def mixup_or_cutmix(
    classes: int,
    mixup_alpha: float = 1.0,
    cutmix_alpha: float = 1.0,
    p: float = 0.5,
    by: str = "batch",
    partner: str = "roll",
) -> Mixing:
    """CutMix with probability `p`, else mixup, drawn by batch or by example; the rest as there. Raises InputError."""
    if not 0 <= p <= 1:
        raise InputError(f"CutMix with probability {p} is outside [0, 1]", "give p from 0 (mixup) to 1 (CutMix)")
    blend, paste = beta_share(mixup_alpha), pasted_box(cutmix_alpha)

    def draw(key: Key, shape: Shape) -> Shares:
        choice, one, other = jax.random.split(key, 3)
        pasted = jax.random.uniform(choice, (), jnp.float32) < p
        return jax.tree.map(lambda a, b: jnp.where(pasted, a, b), paste(one, shape), blend(other, shape))

    return _mixing(draw, classes, by, partner)


def beta_share(alpha: float) -> Draw:
    """mixup's draw: one share for all pixels, from Beta(alpha, alpha). Raises InputError."""
    check_alpha(alpha)

    def draw(key: Key, shape: Shape) -> Shares:
        share = symmetric_beta(key, alpha)
        return Shares(share.reshape((1,) * len(shape)), share)

    return draw


def symmetric_beta(key: Key, alpha: float) -> Float[Array, ""]:
    """A draw from Beta(alpha, alpha), exact and without rejection, which would be a loop to compile and to wait for.

    Half of 1 + T / sqrt(2 alpha + T^2), where T is Student's t with 2 alpha degrees of freedom by the polar method
    (Bailey 1994, https://doi.org/10.1090/S0025-5718-1994-1197513-8), in a form that keeps small numbers precise.
    """
    radius, angle = jax.random.uniform(key, (2,), jnp.float32)
    cosine = jnp.cos(2 * math.pi * angle)
    power = jnp.exp(jnp.log1p(-radius) / alpha)
    beyond = power / (power + product(1 - power, product(cosine, cosine)))
    lower = beyond / (1 + jnp.sqrt(1 - beyond)) / 2
    return jnp.where(cosine < 0, lower, 1 - lower)


def pasted_box(alpha: float) -> Draw:
    """CutMix's draw: nothing kept in a box, everything around it. Raises InputError."""
    check_alpha(alpha)

    def draw(key: Key, shape: Shape) -> Shares:
        if len(shape) != 3:
            raise InputError(f"CutMix of inputs of shape {shape}", "use images [height, width, channels], or mixup")
        share_key, center_key = jax.random.split(key)
        side = jnp.sqrt(1 - symmetric_beta(share_key, alpha))
        frame = jnp.array(shape[:2], jnp.int32)
        center = jax.random.randint(center_key, (2,), 0, frame, jnp.int32)
        half = (side / 2 * frame).astype(jnp.int32)
        low, high = jnp.maximum(center - half, 0), jnp.minimum(center + half, frame)
        row, column = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
        pasted = (row >= low[0]) & (row < high[0]) & (column >= low[1]) & (column < high[1])
        area, covered = shape[0] * shape[1], (high[0] - low[0]) * (high[1] - low[1])
        return Shares(1 - pasted.astype(jnp.float32), (area - covered) / jnp.float32(area))

    return draw


def _mixing(draw: Draw, classes: int, by: str, partner: str) -> Mixing:
    """A draw for a batch, put to work."""
    if classes < 1:
        raise InputError(f"{classes} classes leave no label", "give the number of classes")
    spread = named("way to draw", by, DRAWN_BY)
    pairing = named("pairing", partner, PAIRINGS)

    def mixing(key: Key, batch: Batch) -> Batch:
        batch = jax.tree.map(jnp.asarray, dict(batch))
        inputs, labels = batch["input"], distributions(batch["label"], classes)
        check_inputs(inputs)
        shares = spread(draw, key, batch)
        partners = rows(pairing, key, batch)
        mixed = _blend(inputs, inputs[partners], shares.input)
        return {**batch, "input": mixed, "label": _blend(labels, labels[partners], shares.label[:, None])}

    return mixing


def _blend(
    own: Shaped[Array, "batch ..."], other: Shaped[Array, "batch ..."], share: Float[Array, "batch ..."]
) -> Array:
    """share * own + (1 - share) * other, in float32 or wider; rounded for uint8."""
    kind = jnp.promote_types(own.dtype, jnp.float32)
    share = share.astype(kind)
    blended = product(share, own.astype(kind)) + product(1 - share, other.astype(kind))
    return (jnp.round(blended) if own.dtype == jnp.uint8 else blended).astype(own.dtype)


def distributions(labels: Array, classes: int) -> Float[Array, "batch classes"]:
    """Labels as distributions: integers [batch] one-hot in float32, [batch, classes] as they are. Raises InputError."""
    if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    if labels.ndim == 2 and labels.shape[1] == classes and jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    raise InputError(
        f"labels of shape {labels.shape} and dtype {labels.dtype} cannot be mixed over {classes} classes",
        "give integers [batch], or distributions [batch, classes] in floating point",
    )


def _by_batch(draw: Draw, key: Key, batch: Batch) -> Shares:
    shares = draw(keys.named(key, "mixing"), batch["input"].shape[1:])
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (keys.size(batch), *x.shape)), shares)


def _by_example(draw: Draw, key: Key, batch: Batch) -> Shares:
    return jax.vmap(lambda key: draw(key, batch["input"].shape[1:]))(keys.per_example(key, batch, "mixing"))


DRAWN_BY = {"batch": _by_batch, "example": _by_example}


def check_inputs(inputs: Array) -> None:
    """Raise InputError for inputs that cannot be averaged."""
    if inputs.dtype != jnp.uint8 and not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise InputError(f"inputs of dtype {inputs.dtype} cannot be mixed", "use uint8 or floating inputs")


def check_alpha(alpha: float) -> None:
    """Raise InputError for a Beta distribution that does not exist."""
    if not alpha > 0:
        raise InputError(f"Beta({alpha}, {alpha}) is not defined", "give an alpha above 0; leave mixing out for none")
