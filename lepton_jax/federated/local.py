"""What a client does in a round: Step -> Client, and Client -> Client.

    Client = (params, stats, batches, key) -> (Mean[Params], Aux)

A Client is a GradFn over one client's data. Its gradient is a pseudo-gradient (Reddi et al. 2021,
https://arxiv.org/abs/2003.00295): the way back from where local training has led to where the round began. `batches`
hold a client's local steps on the leading axis, [steps, batch, ...]; "weight" [steps, batch] is 0 for padding, and
"index" [steps, batch] the global index of each example. What a client keeps from round to round is `stats["client"]`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lepton_jax import keys, tree
from lepton_jax.types import Aux, Batch, GradFn, Mean, Metrics, Params, Step, TrainState

Client = GradFn
"""A GradFn over the data of one client, its local steps on the leading axis."""

ANCHOR = "anchor"


def local(step: Step, optimizer: optax.GradientTransformation) -> Client:
    """Local training by `step`, once for each of a client's batches, from a new state of its `optimizer`.

    The gradient is `Mean(examples * (params - trained params), examples)`, where examples is the sum of the batches'
    weights: an example counts as often as it was trained on. Metrics are those of all local steps together. A step
    without examples moves nothing and, where clients are computed one after the other, costs nothing. While it
    trains, the round's parameters are in `stats["anchor"]`, for local gradients that look back (`proximal`).
    """

    def client(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        start = TrainState(jnp.int32(0), params, {**stats, ANCHOR: params}, optimizer.init(params), key)
        end, metrics = jax.lax.scan(_sparing(step, batches), start, dict(batches))
        moved = {name: entry for name, entry in end.stats.items() if name != ANCHOR}
        weight = examples(batches)
        update = jax.tree.map(jnp.subtract, params, end.params)
        return Mean(tree.scale(update, weight), weight), Aux(moved, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics))

    return client


def examples(batches: Batch) -> Float[Array, ""]:
    """The examples of all local steps of a client, by their weights; each is 1 where there are none."""
    steps, size = jax.tree.leaves(dict(batches))[0].shape[:2]
    return jnp.sum(batches["weight"]) if "weight" in batches else jnp.float32(steps * size)


def steps(batches: Batch) -> Float[Array, ""]:
    """The local steps of a client that have examples."""
    if "weight" not in batches:
        return jnp.float32(keys.size(batches))
    return jnp.sum(jnp.any(batches["weight"] != 0, axis=1), dtype=jnp.float32)


def equal(client: Client) -> Client:
    """The same client with weight 1, if it has any example: clients then count alike, however much data they hold."""

    def counted(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = client(params, stats, batches, key)
        return Mean(mean.value(), jnp.where(mean.weight == 0, 0, jnp.ones_like(mean.weight))), aux

    return counted


def personalized(client: Client, params: Params, stats: Any, batches: Batch, key: Any) -> tuple[Params, Any]:
    """(parameters, stats) of one client after it has trained the global ones on its own data, for itself alone.

    Personalization by local fine-tuning, as in Yu et al. 2020, https://arxiv.org/abs/2002.04758.
    """
    mean, aux = client(params, stats, batches, key)
    return jax.tree.map(jnp.subtract, params, mean.value()), aux.stats


def _sparing(step: Step, batches: Batch) -> Step:
    """The step, left out for a batch without examples; it counts all the same."""
    if "weight" not in batches:
        return step

    def spared(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _, metrics = jax.eval_shape(step, state, batch)

        def skipped(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            return state._replace(step=state.step + 1), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        return jax.lax.cond(jnp.any(batch["weight"] != 0), step, skipped, state, batch)

    return spared
