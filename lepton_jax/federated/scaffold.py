"""SCAFFOLD: control variates correct the drift of local training (Karimireddy et al. 2020,
https://arxiv.org/abs/1910.06378; the variates' option II).

    local = descend(scaffold.corrected(plain(loss)), optax.sgd(rate))
    client = scaffold.informed(equal(federated.local(local, optax.sgd(rate))), rate)
    step = descend(scaffold.controlled(federated(client), clients), server)

`stats["scaffold"]` is the server's variate and `stats["client"]["scaffold"]` a client's. Both start from
`tree.zeros`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.federated.local import Client, steps
from lepton_jax.federated.rounds import CLIENT
from lepton_jax.types import Aux, Batch, GradFn, Mean

NAME = "scaffold"


def corrected(grad_fn: GradFn) -> GradFn:
    """The local gradient, minus what the client's gradient is on average, plus what everybody's is."""

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = grad_fn(params, stats, batch, key)
        way = jax.tree.map(jnp.subtract, stats[NAME], stats[CLIENT][NAME])
        return Mean(tree.add(mean.total, tree.scale(way, mean.weight)), mean.weight), aux

    return gradient


def informed(client: Client, learning_rate: float) -> Client:
    """The client, which also sends how far its variate moved: its Mean is of (update, variate's way).

    The new variate is the mean corrected gradient of the round, which plain SGD at `learning_rate` lets one read off
    the way that it went. Raises InputError for a rate that is not positive.
    """
    if not learning_rate > 0:
        raise InputError(f"the local learning rate {learning_rate} is not positive", "give that of the local SGD")

    def informing(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = client(params, stats, batches, key)
        reach = jnp.maximum(steps(batches), 1) * learning_rate
        moved = jax.tree.map(lambda way, shared: way / reach.astype(way.dtype) - shared, mean.value(), stats[NAME])
        own = {**aux.stats[CLIENT], NAME: tree.add(stats[CLIENT][NAME], moved)}
        both = (mean.total, tree.scale(moved, mean.weight))
        return Mean(both, mean.weight), Aux({**aux.stats, CLIENT: own}, aux.metrics)

    return informing


def controlled(grad_fn: GradFn, clients: float) -> GradFn:
    """The round, which takes the variates' way out of the sum and moves the server's variate along.

    clients: the weight of all clients together, those outside of the cohort too; of `equal` ones their number.
    Raises InputError where there is none.
    """
    if not clients > 0:
        raise InputError(f"{clients} clients have no variates", "give the number of all clients")

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = grad_fn(params, stats, batch, key)
        update, moved = mean.total
        variate = tree.add(aux.stats[NAME], tree.scale(moved, 1 / clients))
        return Mean(update, mean.weight), Aux({**aux.stats, NAME: variate}, aux.metrics)

    return gradient
