"""Smaller updates: Client -> Client. What a client cannot send in a round, it adds to the update of its next one.

Error feedback (Seide et al. 2014, https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html; Karimireddy
et al. 2019, https://arxiv.org/abs/1901.09847). The rest lies in `stats["client"]["residual"]`: start it from
`tree.zeros`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import keys, tree
from lepton_jax.errors import InputError
from lepton_jax.federated.local import Client
from lepton_jax.federated.rounds import CLIENT
from lepton_jax.types import Aux, Batch, Key, Mean, Params

NAME = "residual"


class Code(NamedTuple):
    """A compressed form of updates. shown: (update, key) -> what the server gets to see of it; bits: its size."""

    shown: Callable[[Params, Key], Params]
    bits: Callable[[Params], int]


def compressed(client: Client, code: Code) -> Client:
    """The client, which sends its update in that form and remembers what was lost."""

    def sparing(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = client(params, stats, batches, key)
        wanted = tree.add(mean.value(), stats[CLIENT][NAME])
        shown = code.shown(wanted, keys.named(key, "code"))
        own = {**aux.stats[CLIENT], NAME: jax.tree.map(jnp.subtract, wanted, shown)}
        return Mean(tree.scale(shown, mean.weight), mean.weight), Aux({**aux.stats, CLIENT: own}, aux.metrics)

    return sparing


def top_k(share: float) -> Code:
    """The `share` of each array's numbers that are greatest in magnitude, at least one, each with its place.

    Aji and Heafield 2017, https://arxiv.org/abs/1704.05021. Raises InputError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"a share of {share} of an update cannot be sent", "give one above 0 and at most 1")

    def kept(size: int) -> int:
        return max(1, math.ceil(share * size))

    def greatest(x: Array, key: Key) -> Array:
        _, places = jax.lax.top_k(jnp.abs(x.ravel()), kept(x.size))
        return jnp.zeros_like(x.ravel()).at[places].set(x.ravel()[places]).reshape(x.shape)

    return _each(greatest, lambda size: kept(size) * (32 + max(1, math.ceil(math.log2(size)))))


def int8() -> Code:
    """Whole numbers from -127 to 127 times a scale for each array, rounded up or down at random, right on average.

    Alistarh et al. 2017, https://arxiv.org/abs/1610.02132.
    """

    def rounded(x: Array, key: Key) -> Array:
        scale = jnp.max(jnp.abs(x)) / 127
        scale = jnp.where(scale == 0, 1, scale)
        return jnp.clip(jnp.floor(x / scale + jax.random.uniform(key, x.shape, x.dtype)), -127, 127) * scale

    return _each(rounded, lambda size: 8 * size + 32)


def sign() -> Code:
    """The sign of each number, times the mean magnitude of its array.

    Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847.
    """
    return _each(lambda x, key: jnp.where(x < 0, -1, 1).astype(x.dtype) * jnp.mean(jnp.abs(x)), lambda size: size + 32)


CODES: dict[str, Callable[[], Code]] = {"int8": int8, "sign": sign, "top-k": lambda: top_k(0.01)}
"""Forms by name, as a flag names them; top-k sends a hundredth."""


def _each(shown: Callable[[Array, Key], Array], bits: Callable[[int], int]) -> Code:
    """The code that treats each array by itself; bits: of its size."""
    return Code(
        lambda update, key: tree.map_named(lambda name, x: shown(x, keys.named(key, name)), update),
        lambda update: sum(bits(x.size) for x in jax.tree.leaves(update)),
    )
