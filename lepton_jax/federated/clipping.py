"""Updates of bounded norm, so that privacy can be given to whole clients: Client -> Client, and the round around.

DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963) is `clipped` here and noise there:

    noised(federated(clipped(client, clip)), multiplier, clip, batch=expected_clients)

With the norm by a private quantile (Andrew et al. 2021, https://arxiv.org/abs/1905.03871):

    adaptive(noised(federated(adaptively_clipped(client)), multiplier, sensitivity(), batch=expected_clients))

A plan of privacy, with clients for examples, can be held against such a round: both note what a client may add.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax import quantile as norms
from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.federated.local import Client
from lepton_jax.noting import Bound, note
from lepton_jax.types import Aux, Batch, GradFn, Mean, Params

NAME = "update_clip"
SHARE = 0.1


def clipped(client: Client, clip: float) -> Client:
    """The client's update, scaled down to the norm `clip` where it is longer, at weight 1 if it has any example.

    One client more or less moves the sum of such updates by at most `clip`. An update that is not finite counts as
    zeros. Raises InputError for a norm that is not positive.
    """
    _require_norm(clip)

    def bounded(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        note(Bound(clip))
        mean, aux = client(params, stats, batches, key)
        update, weight, _ = _bounded(mean, jnp.float32(clip))
        return Mean(tree.scale(update, weight), weight), aux

    return bounded


def started(clip: float) -> dict[str, Callable[[Params], Float[Array, ""]]]:
    """What the stats of `adaptively_clipped` clients start from: the norm of the first round.

    Raises InputError for a norm that is not positive.
    """
    _require_norm(clip)
    return {NAME: lambda params: jnp.float32(clip)}


def adaptively_clipped(client: Client, share: float = SHARE) -> Client:
    """The client's update over the norm `stats["update_clip"]`, clipped to norm 1, and whether it was within.

    Its Mean is of (update, share * (within - 1/2)), of norm at most `sensitivity(share)`, so one noise covers both: a
    small `share` leaves nearly all of the budget to the update. Start the stats with `**started(clip)`.
    """
    _require_share(share)

    def bounded(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        note(Bound(sensitivity(share)))
        mean, aux = client(params, stats, batches, key)
        update, weight, within = _bounded(mean, stats[NAME])
        vote = jnp.where(within, share / 2, -share / 2).astype(jnp.float32)
        return Mean((tree.scale(update, weight / stats[NAME]), vote * weight), weight), aux

    return bounded


def sensitivity(share: float = SHARE) -> float:
    """The greatest norm of what one client adds to the sum of `adaptively_clipped` clients."""
    _require_share(share)
    return math.sqrt(1 + share**2 / 4)


def adaptive(grad_fn: GradFn, quantile: float = 0.5, rate: float = 0.2, share: float = SHARE) -> GradFn:
    """The round of such clients, with or without noise, in its own length again, and the norm of the next round.

    See `quantile.followed`. Raises InputError for a quantile outside (0, 1) and a rate that is not positive.
    """
    _require_share(share)
    norms.require(quantile, rate)

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = grad_fn(params, stats, batch, key)
        (update, _), (_, vote) = mean.total, mean.value()
        clip = aux.stats[NAME]
        moved = jnp.where(mean.weight == 0, clip, norms.followed(clip, vote / share + 0.5, quantile, rate))
        metrics = {**aux.metrics, "update_clip": Mean(clip, jnp.ones_like(clip))}
        after = {**aux.stats, NAME: moved.astype(clip.dtype)}
        return Mean(tree.scale(update, clip), mean.weight), Aux(after, metrics)

    return gradient


def _bounded(mean: Mean, clip: Float[Array, ""]) -> tuple[Any, Float[Array, ""], Any]:
    """(the update with at most that norm, its weight, 0 or 1, and whether it was within)."""
    update, weight = mean.value(), jnp.where(mean.weight == 0, 0, 1).astype(jnp.float32)
    norm = tree.norm(update)
    short = tree.scale(update, jnp.minimum(1, clip / jnp.where(norm > 0, norm, 1)))
    bounded = tree.where(jnp.isfinite(norm), short, tree.zeros(update))
    return bounded, weight, norm <= clip


def _require_norm(clip: float) -> None:
    if not 0 < clip < math.inf:
        raise InputError(f"the clipping norm {clip} is not positive and finite", "1.0 is usual")


def _require_share(share: float) -> None:
    if not 0 < share < math.inf:
        raise InputError(f"a vote of {share} says nothing", "give a share above 0, such as 0.1")
