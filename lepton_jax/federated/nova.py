"""FedNova: clients that make more local steps do not count more (Wang et al. 2020, https://arxiv.org/abs/2007.07481).

client = nova.normalized(federated.local(step, optax.sgd(rate)))
step = descend(nova.rescaled(federated(client)), server)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.federated.local import Client, steps
from lepton_jax.types import Aux, Batch, GradFn, Mean


def normalized(client: Client, momentum: float = 0.0) -> Client:
    """The client's update over the length of its way, which it sends too: its Mean is of (direction, length).

    momentum: of the local SGD, which makes late ways longer. Raises InputError for a momentum outside [0, 1).
    """
    if not 0 <= momentum < 1:
        raise InputError(f"the local momentum {momentum} is outside [0, 1)", "give that of the local SGD")

    def normalizing(params: Any, stats: Any, batches: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = client(params, stats, batches, key)
        length = _length(steps(batches), momentum)
        direction = tree.scale(mean.total, 1 / jnp.maximum(length, 1))
        return Mean((direction, mean.weight * length), mean.weight), aux

    return normalizing


def rescaled(grad_fn: GradFn) -> GradFn:
    """The round: the mean direction, as long as clients went on average."""

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = grad_fn(params, stats, batch, key)
        direction, _ = mean.total
        _, length = mean.value()
        return Mean(jax.tree.map(lambda x: x * length.astype(x.dtype), direction), mean.weight), aux

    return gradient


def _length(steps: Float[Array, ""], momentum: float) -> Float[Array, ""]:
    """How often the gradients of so many steps of SGD count in the way, all together: the paper's |a|."""
    past = (1 - momentum**steps) * momentum / (1 - momentum)  # what the momentum still owes to the last steps
    return (steps - past) / (1 - momentum)
