"""FedProx: local training is held back to where the round began (Li et al. 2020, https://arxiv.org/abs/1812.06127)."""

import math
from typing import Any

import jax

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.federated.local import ANCHOR
from lepton_jax.types import Aux, Batch, GradFn, Mean


def proximal(grad_fn: GradFn, strength: float) -> GradFn:
    """The gradient of the same loss with `strength / 2 * |params - the round's params|^2` (the paper's mu) added.

    A change of the local gradient: `local(descend(proximal(plain(loss), 0.01), optimizer), optimizer)`; `local` keeps
    the round's parameters in `stats["anchor"]`. Raises InputError for a strength that is negative or not finite.
    """
    if not 0 <= strength < math.inf:
        raise InputError(f"the proximal strength {strength} is negative or not finite", "0.01 to 1 is usual")

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = grad_fn(params, stats, batch, key)
        pull = jax.tree.map(lambda here, anchor: strength * (here - anchor), params, stats[ANCHOR])
        return Mean(tree.add(mean.total, tree.scale(pull, mean.weight)), mean.weight), aux

    return gradient
