"""The algebra of compression: one small type of four pure functions, its chain, and how it enters a gradient.

    init:   params -> (params, state)              what is trained, and what is remembered beside it
    view:   (params, state) -> params              what the forward pass sees; differentiable
    update: (params, state, gradient) -> state     schedules, drop and grow; once per step
    pack:   (params, state) -> params              what is shipped: arrays, or packed leaves (`compress.leaves`)

`init` may put a small tree in the place of a weight (`conv1/kernel` -> `conv1/kernel/down`, `.../up`), and `view` puts
the weight back. What is trained through the view is what `pack` ships: law 7.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.types import Aux, Batch, GradFn, Mean, Params

State = Any
"""What a compression remembers, a tree of arrays; it lies in `stats["compress"]` of the TrainState."""

WEIGHTS = r"kernel(/\w+)?$"
"""Kernels, and what a compression has put in their place."""

STAGES = ("low rank", "masks", "quantization")


class Compression(NamedTuple):
    """A compression as four pure functions. stages: which of `STAGES` it is made of, in order."""

    init: Callable[[Params], tuple[Params, State]]
    view: Callable[[Params, State], Params]
    update: Callable[[Params, State, Params], State]
    pack: Callable[[Params, State], PyTree]
    stages: tuple[str, ...] = ()


def unchanged(params: Params, state: State, gradient: Params) -> State:
    """An `update` that moves nothing."""
    return state


def identity() -> Compression:
    """The compression that does nothing."""
    return Compression(
        init=lambda params: (params, ()), view=lambda params, _: params, update=unchanged, pack=lambda params, _: params
    )


def chain(*compressions: Compression) -> Compression:
    """One compression after the other, the first next to the model: low rank, then masks, then quantization.

    Each acts on what those before it have put in the place of weights: factors are masked, masked factors quantized.
    Associative, with `identity()` as its unit. Raises InputError for another order.
    """
    stages = tuple(stage for part in compressions for stage in part.stages)
    if list(stages) != sorted(stages, key=STAGES.index):
        problem = f"a chain of {', '.join(stages)} cannot work"
        raise InputError(problem, f"put them in this order: {', '.join(STAGES)}")

    def init(params: Params) -> tuple[Params, State]:
        states = []
        for part in compressions:
            params, state = part.init(params)
            states.append(state)
        return params, tuple(states)

    def view(params: Params, state: State) -> Params:
        for part, own in reversed(list(zip(compressions, state, strict=True))):
            params = part.view(params, own)
        return params

    def update(params: Params, state: State, gradient: Params) -> State:
        # each sees its own parameters, what those behind it show, and the gradient with respect to what it shows
        seen, pulls = [params], []
        for part, own in reversed(list(zip(compressions, state, strict=True))):
            shown, pull = jax.vjp(lambda params, part=part, own=own: part.view(params, own), seen[-1])
            seen.append(shown)
            pulls.append(pull)
        moved = []
        for part, own, own_params, pull in zip(compressions, state, seen[-2::-1], pulls[::-1], strict=True):
            moved.append(part.update(own_params, own, gradient))
            gradient = pull(gradient)[0]
        return tuple(moved)

    def pack(params: PyTree, state: State) -> PyTree:
        for part, own in reversed(list(zip(compressions, state, strict=True))):
            params = part.pack(params, own)
        return params

    return Compression(init, view, update, pack, stages)


def compressed(grad_fn: GradFn, compression: Compression) -> GradFn:
    """The same gradient, of what the compression shows, brought back to what is trained.

    The state lies in `stats["compress"]`: start the stats with `compress=state`, where `params, state =
    compression.init(params)`, and train these params. `update` gets the mean gradient with respect to what the model
    saw, also where the view lets nothing through: what a mask hides may be grown again. Microbatches go inside.
    A gradient of weight 0 moves nothing.
    """

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        state = stats["compress"]
        seen, pull = jax.vjp(lambda params: compression.view(params, state), params)
        others = {name: entry for name, entry in stats.items() if name != "compress"}
        mean, aux = grad_fn(seen, others, batch, key)
        moved = compression.update(params, state, mean.value())
        moved = tree.where(mean.weight == 0, state, moved)
        return Mean(pull(mean.total)[0], mean.weight), Aux({**aux.stats, "compress": moved}, aux.metrics)

    return gradient


def chosen(pattern: str, params: PyTree) -> list[str]:
    """The names of the weights of at least two dimensions that match `pattern` (re.search).

    Raises InputError where nothing matches.
    """
    tree.select(pattern, params)
    named = zip(tree.paths(params), jax.tree.leaves(params), strict=True)
    found = [name for name, leaf in named if re.search(pattern, name) and leaf.ndim >= 2]
    if not found:
        raise InputError(f"the pattern {pattern!r} matches no weight of two or more dimensions", "name kernels")
    return found


def at(params: PyTree, name: str) -> Any:
    """What lies under a name: an array, or the tree that a compression has put in its place."""
    for part in name.split("/"):
        params = params[part]
    return params


def put(params: PyTree, new: dict[str, Any]) -> Any:
    """The same nested dicts with other things under these names; the given ones are left as they are."""
    result = dict(params)
    below: dict[str, dict[str, Any]] = {}
    for name, value in new.items():
        first, _, rest = name.partition("/")
        if rest:
            below.setdefault(first, {})[rest] = value
        else:
            result[first] = value
    for first, values in below.items():
        result[first] = put(params[first], values)
    return result
