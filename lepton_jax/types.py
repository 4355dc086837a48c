"""The vocabulary: what flows between the rooms of the house, and the arrows that techniques change.

    Loss   = (params, stats, batch, key) -> (Mean[scalar], Aux)
    GradFn = (params, stats, batch, key) -> (Mean[Params], Aux)
    Step   = (TrainState, Batch)         -> (TrainState, Metrics)

A technique is a function that changes exactly one of these arrows and leaves the rest as it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from jaxtyping import Key as KeyArray

T = TypeVar("T")

Key = KeyArray[Array, ""]
Keys = KeyArray[Array, "..."]  # usually one per example, [batch]
Params = PyTree[Array]
Stats = dict[str, Any]  # one entry per owner: "model", "loss_scale", "ema" ...; each passes on what it does not own
Batch = Mapping[str, Any]  # arrays whose leading axis is the examples; may hold "weight" and "index"
Variables = dict[str, Any]  # {"params": ..., and the model's other collections}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean(Generic[T]):
    """A weighted average that has not been divided yet: `merge` adds, `value` divides once, at the end.

    `total` is a tree of arrays, each the sum of weight * quantity; `weight` is the scalar sum of weights.
    """

    total: T
    weight: Any

    def merge(self, other: "Mean[T]") -> "Mean[T]":
        """The average over both groups together; associative and commutative up to rounding."""
        return Mean(jax.tree.map(jnp.add, self.total, other.total), self.weight + other.weight)

    def value(self) -> T:
        """`total / weight`; a total of nothing stays zero."""
        divisor = jnp.where(self.weight == 0, jnp.ones_like(self.weight), self.weight)
        return jax.tree.map(lambda total: total / divisor, self.total)


Metrics = dict[str, Mean[Array]]


class Aux(NamedTuple):
    """What a forward pass leaves behind beside its value.

    `stats` is what it moved and the run needs to go on (running means, masks, scales); `metrics` is what may
    be looked at and is never needed to continue.
    """

    stats: Stats
    metrics: Metrics


class TrainState(NamedTuple):
    """All that a run needs to go on, and nothing that it can recompute."""

    step: Array  # int32 scalar: updates made so far
    params: Params
    stats: Stats
    opt_state: Any
    key: Key  # the run's key; a step's key is fold_in(key, step)


Loss = Callable[[Params, Stats, Batch, Key], tuple[Mean[Array], Aux]]
GradFn = Callable[[Params, Stats, Batch, Key], tuple[Mean[Params], Aux]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
View = Callable[[Params], Params]


class Rule(NamedTuple):
    """A sharding rule: leaves whose path matches `pattern` (re.search) lie as `axes` over the mesh.

    `axes` names one mesh axis, or None, per array dimension, like a PartitionSpec.
    """

    pattern: str
    axes: tuple[str | None, ...]


class Model(NamedTuple):
    """A model as two pure functions over plain nested dicts of arrays.

    init: (key, inputs) -> variables. `inputs` has a leading batch axis; only shapes and dtypes matter.
    apply: (variables, inputs, train, keys) -> (outputs, stats). `keys` holds one key per example ([batch])
      or is None; what is random inside the model is drawn from them, example by example, so that neither
      the mesh nor the microbatch changes a draw. `stats` are the model's moved collections,
      complete, {} if none.
    rules: how its parameters lie over a mesh with a "model" axis.
    """

    init: Callable[[Key, Any], Variables]
    apply: Callable[[Variables, Any, bool, Keys | None], tuple[Any, dict[str, Any]]]
    rules: tuple[Rule, ...] = ()
