"""What a client gains by tuning the global model on its own data, for itself alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lepton_jax import keys
from lepton_jax.data import Source, gather
from lepton_jax.federated.cohorts import Cohorts
from lepton_jax.federated.local import Client, personalized
from lepton_jax.federated.partition import held
from lepton_jax.types import Batch, Key, Model, Params, Stats

TOGETHER = 256  # test examples


class Gain(NamedTuple):
    """Accuracy on each client's own distribution of classes, of the global model and of its own."""

    before: Float[np.ndarray, " clients"]
    after: Float[np.ndarray, " clients"]


def gained(
    model: Model, client: Client, params: Params, stats: Stats, cohorts: Cohorts, test: Source, key: Key
) -> Gain:
    """Every client's gain from a round's worth of local training.

    A client is judged on all of `test`, an example of a class counting by the class's share among what the client
    holds: so also who holds little is judged exactly. Classes that `test` does not have count nothing. stats: what all
    share.
    """
    shown = gather(test, np.arange(len(test)))
    labels = gather(cohorts.source, np.arange(len(cohorts.source)))["label"]
    classes = int(max(labels.max(), shown["label"].max())) + 1

    @jax.jit
    def right(params: Params, stats: Stats) -> Bool[Array, " examples"]:
        variables = {"params": params, **stats.get("model", {})}
        scores = jax.lax.map(
            lambda x: model.apply(variables, x[None], False, None)[0][0],
            jnp.asarray(shown["input"]),
            batch_size=TOGETHER,
        )
        return jnp.argmax(scores, axis=-1) == shown["label"]

    @jax.jit
    def tuned(params: Params, stats: Stats, batches: Batch, key: Key) -> tuple[Params, Stats]:
        return personalized(client, params, stats, batches, key)

    shares = weighed(held(cohorts.partition, labels, classes), shown["label"])
    common, own = np.asarray(right(params, stats)), []
    for number in range(cohorts.examples):
        own.append(right(*tuned(params, stats, cohorts.of(number, 0), keys.folded(key, number))))
    return Gain(shares @ common, np.sum(shares * np.stack(own), axis=1))


def weighed(
    held: Int[np.ndarray, "clients classes"], labels: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, "clients examples"]:
    """What each test example counts for each client; each client's numbers add up to 1."""
    there = np.bincount(labels, minlength=held.shape[1])
    shares = held * (there > 0)
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)
    return (shares / np.maximum(there, 1))[:, labels]
