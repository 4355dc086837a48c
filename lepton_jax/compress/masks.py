"""Weights of which only some places count: masks as a `Compression`, and a step that holds hidden weights at zero.

A mask hides a place from the model and from its own gradient, yet what is trained there is still in the parameters:
momentum and decay go on moving it, and nobody sees it. `held` sets it to zero, with the optimizer's moments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from lepton_jax import mesh, tree
from lepton_jax.compress import base, leaves
from lepton_jax.errors import InputError
from lepton_jax.types import Batch, Metrics, Params, Step, TrainState

Weights = dict[str, Any]
"""{weight's name: array}; gradients and scores of the same weights go by the same names."""

Masks = dict[str, Bool[Array, "..."]]
"""{weight's name: which places count}."""


def masked(
    begin: Callable[[Weights], Masks],
    move: Callable[[Weights, Masks, Weights, Any], Masks],
    pattern: str = base.WEIGHTS,
) -> base.Compression:
    """Weights shown where their masks are true, zeros elsewhere; packed as `Sparse`.

    begin: (weights) -> masks at the start. move: (weights, masks, gradients, step) -> masks of the next step, once per
    update; step is int32, the updates so far. The state is {"masks": {name: bool}, "step": int32}. Raises InputError
    where the pattern matches no weight.
    """

    def init(params: Params) -> tuple[Params, base.State]:
        weights = named(params, base.chosen(pattern, params))
        return params, {"masks": begin(weights), "step": jnp.int32(0)}

    def view(params: Params, state: base.State) -> Params:
        shown = {name: jnp.where(mask, base.at(params, name), 0) for name, mask in state["masks"].items()}
        # else the masks' own layout under fsdp reaches into convolutions, which then come out wrong (jax 0.10.2)
        return mesh.as_computed(base.put(params, shown))

    def update(params: Params, state: base.State, gradient: Params) -> base.State:
        names = list(state["masks"])
        moved = move(named(params, names), state["masks"], named(gradient, names), state["step"])
        return {"masks": moved, "step": state["step"] + 1}

    def pack(params: PyTree, state: base.State) -> PyTree:
        packed = {name: leaves.sparse(base.at(params, name), mask) for name, mask in state["masks"].items()}
        return base.put(params, packed)

    return base.Compression(init, view, update, pack, ("masks",))


def fixed(masks: Masks) -> base.Compression:
    """Weights under these masks for good. Raises InputError for a mask of no weight, or of another shape."""

    masks = {name: jnp.asarray(mask, bool) for name, mask in masks.items()}

    def init(params: Params) -> tuple[Params, base.State]:
        known = dict(zip(tree.paths(params), jax.tree.leaves(params), strict=True))
        for name, mask in masks.items():
            if name not in known or known[name].shape != mask.shape:
                problem = f"the mask {name!r} of shape {mask.shape} fits no weight"
                raise InputError(problem, f"weights are named like: {', '.join(list(known)[:4])}")
        return params, {"masks": masks, "step": jnp.int32(0)}

    return masked(lambda _: masks, lambda weights, masks, gradients, step: masks)._replace(init=init)


def named(params: PyTree, names: list[str]) -> Weights:
    """What lies under these names."""
    return {name: base.at(params, name) for name in names}


def sparsity(masks: Masks) -> float:
    """The share of places that masks hide, all weights together."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())


def found(state: base.State) -> Masks:
    """The masks in a compression's state, a chain's too; two masks of one weight hide what either hides."""
    if isinstance(state, dict) and "masks" in state:
        return state["masks"]
    parts = state if isinstance(state, tuple | list) else ()
    result: Masks = {}
    for masks in map(found, parts):
        result |= {name: mask & result.get(name, True) for name, mask in masks.items()}
    return result


def held(step: Step) -> Step:
    """The same step, with weights that masks hide at exactly zero, and zero in the optimizer's moments too.

    Goes around `descend` of a gradient that is `compressed`. A place that is shown again starts from zero, at rest; one
    that was hidden and shown again by the same update, as RigL may, keeps what it had. Moments are known by the
    weight's path at the end of their own. Raises InputError where there are no masks in the stats.
    """

    def held_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch)
        before, now = (found(stats.get("compress")) for stats in (state.stats, after.stats))
        if not now:
            raise InputError("there are no masks to hold weights at zero by", "put it around a step that is compressed")
        # what was hidden before is cleared too: a dense update, as Muon's, reaches a place that is just shown again
        kept = {name: mask & before[name] for name, mask in now.items()}
        return after._replace(params=cleared(after.params, kept), opt_state=cleared(after.opt_state, kept)), metrics

    return held_step


def cleared(state: PyTree, kept: Masks) -> PyTree:
    """Zeros at the places that are not kept, in weights and in what carries a weight's path at the end of its own."""

    def clear(name: str, leaf: Any) -> Any:
        owners = [own for own in kept if f"/{name}".endswith(f"/{own}") and kept[own].shape == leaf.shape]
        return jnp.where(kept[max(owners, key=len)], leaf, 0) if owners else leaf

    return tree.map_named(clear, state)
