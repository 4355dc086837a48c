"""Structured pruning: which channels matter, which are kept, and trees without the others.

    graph = dependencies.graph(model, variables, inputs)
    kept = choose(graph, l2(graph, params), fewer_macs(graph, 0.5), multiple=8)
    small, state = widths.shrunk(model, kept), remove(state, kept)

Scores are float64 [channels], one for each channel of the graph; higher is kept longer.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

from lepton_jax import tree
from lepton_jax.compress.dependencies import Graph, Group, Kept, named_variables
from lepton_jax.errors import InputError
from lepton_jax.types import Params

Scores = Float[np.ndarray, "channels"]
Enough = Callable[[Bool[np.ndarray, "channels"]], bool]
"""Whether enough is removed where these channels are kept."""


def l1(graph: Graph, params: Params) -> Scores:
    """Sum of the absolute weights that make a channel (Li et al. 2017, https://arxiv.org/abs/1608.08710)."""
    return _summed(graph, params, "output", np.abs)


def l2(graph: Graph, params: Params) -> Scores:
    """Euclidean norm of the weights that make a channel, over all kernels of its group."""
    return np.sqrt(_summed(graph, params, "output", np.square))


def norm_scale(graph: Graph, params: Params) -> Scores:
    """Sum of the absolute scales of a channel's norms (Liu et al. 2017, https://arxiv.org/abs/1708.06519).

    Raises InputError where channels that can be removed have no norm: nothing would tell them apart.
    """
    scales = {name: leaf for name, leaf in named_variables({"params": params}) if name.split("/")[-1] == "scale"}
    for group in graph.free:
        if not any(member.name in scales for member in group.members):
            problem = f"the channels of {group.producers[0]} have no norm whose scale would tell them apart"
            raise InputError(problem, "score by l1, l2 or taylor")
    return _summed(graph, scales, "along", np.abs)


def taylor(graph: Graph, params: Params, gradient: Params) -> Scores:
    """|sum of weight * gradient| over all weights that read a channel: by how much the loss moves without it.

    To first order exactly, for by the chain rule it is channel * d loss / d channel, summed over `gradient`'s examples
    (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771). The weights that make a channel would not do: before a
    batch norm the sum over them is zero.
    """
    return np.abs(_summed(graph, jax.tree.map(lambda w, g: np.multiply(w, g), params, gradient), "input", np.asarray))


def _summed(graph: Graph, params: PyTree, role: str, of: Callable[[Any], Any]) -> Scores:
    """Sums over the entries of each channel, in the leaves where it has this role."""
    leaves = dict(named_variables({"params": params}))
    total = np.zeros(graph.channels + 1)
    members = {member for group in graph.groups for member in group.members if member.role == role}
    for name, dimension, _ in sorted(members):
        if name not in leaves:
            continue
        values = np.moveaxis(of(np.asarray(leaves[name], np.float64)), dimension, 0)
        np.add.at(total, graph.leaves[name][dimension], values.reshape(len(values), -1).sum(1))
    return total[:-1]


def fewer_channels(graph: Graph, share: float) -> Enough:
    """Enough is removed when at least this share of all channels that can be is. Raises InputError outside [0, 1)."""
    _check_share(share)
    free = np.concatenate([np.zeros(0, int), *(group.channels for group in graph.free)])
    return lambda keep: bool(np.count_nonzero(~keep[free]) >= share * len(free))


def fewer_macs(graph: Graph, share: float) -> Enough:
    """Enough is removed when at least this share of the multiply-accumulates is. Raises InputError outside [0, 1)."""
    _check_share(share)
    whole = graph.macs(np.ones(graph.channels, bool))
    return lambda keep: graph.macs(keep) <= (1 - share) * whole


def fewer_numbers(graph: Graph, share: float) -> Enough:
    """Enough is removed when at least this share of all numbers in variables is. Raises InputError outside [0, 1)."""
    _check_share(share)

    def count(keep: Bool[np.ndarray, "channels"]) -> int:
        return sum(math.prod(int(np.count_nonzero(mask)) for mask in masks) for masks in graph.kept(keep).values())

    whole = count(np.ones(graph.channels, bool))
    return lambda keep: count(keep) <= (1 - share) * whole


def both(first: Enough, second: Enough) -> Enough:
    """Enough is removed when it is by either measure."""
    return lambda keep: first(keep) and second(keep)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise InputError(f"the share {share} to remove is not in [0, 1)", "give one such as 0.5")


def choose(
    graph: Graph, scores: Scores, enough: Enough, pattern: str | None = None, least: int = 1, multiple: int = 1
) -> Kept:
    """What is kept when the lowest channels go, one after the other, until enough is removed.

    Scores are compared over all groups, each divided by its group's mean. pattern: groups made by weights whose names
    match; all that can be removed without it. least: entries kept of each group. multiple: widths, in entries, are
    rounded to the nearest multiple, or left whole. Raises InputError where all that may go is not enough, and for
    channels that match the pattern and cannot be removed.
    """
    if least < 1 or multiple < 1:
        raise InputError(f"least {least} and multiple {multiple} must be at least 1", "give 1 for no bound")
    groups = graph.free if pattern is None else graph.of(pattern)
    if not groups:
        raise InputError("no channels of this model can be removed", "look at `graph.groups` for the reasons")
    ranked = [group.channels[np.argsort(-scores[group.channels], kind="stable")] for group in groups]
    relative = [scores[own] / max(float(scores[own].mean()), 1e-30) for own in ranked]
    owner = np.repeat(np.arange(len(groups)), [len(own) for own in ranked])
    order = owner[np.argsort(np.concatenate(relative), kind="stable")]
    units = [_entries(graph, group) for group in groups]

    def keep(removed: int) -> Bool[np.ndarray, "channels"]:
        result = np.ones(graph.channels, bool)
        gone = np.bincount(order[:removed], minlength=len(groups))
        for own, lost, entries in zip(ranked, gone, units, strict=True):
            result[own[_width(len(own), len(own) - int(lost), entries, least, multiple) :]] = False
        return result

    low, high = 0, len(order)
    if not enough(keep(high)):
        raise InputError("removing all that may go is not enough", "ask for less, or lower `least` and `multiple`")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(keep(middle)) else (middle + 1, high)
    return graph.kept(keep(low))


def _entries(graph: Graph, group: Group) -> int:
    """How many entries of a weight one channel has: a head has as many as its size."""
    first = group.channels[0]
    return min(
        int(np.count_nonzero(graph.leaves[name][dimension] == first))
        for name, dimension, role in group.members
        if role == "output"
    )


def _width(size: int, left: int, entries: int, least: int, multiple: int) -> int:
    """The number of channels nearest to `left` that the rules allow."""
    step = multiple // math.gcd(multiple, entries)
    lowest = math.ceil(max(1, math.ceil(least / entries)) / step) * step
    return size if left == size else min(size, max(lowest, step * round(left / step)))


def remove(state: PyTree, kept: Kept) -> Any:
    """The tree without what is not kept: variables, a TrainState with its optimizer and average, or any of these.

    A leaf is cut as the weight whose path ends its own, as `mesh.shardings` places it; of several the longest. Others
    stay, and so do placeholders of one number. Raises InputError for such a leaf of another shape, and for a weight of
    which nothing would be left.
    """
    for name, masks in kept.items():
        if not all(mask.any() for mask in masks):
            raise InputError(f"nothing would be left of {name}", "keep one channel at least")

    def cut(name: str, leaf: Any) -> Any:
        parts = name.split("/")
        weight = next((end for i in range(len(parts)) if (end := "/".join(parts[i:])) in kept), None)
        if weight is None or (leaf.size <= 1 and len(kept[weight]) != leaf.ndim):
            return leaf
        masks = kept[weight]
        if tuple(leaf.shape) != tuple(map(len, masks)):
            problem = f"{name} has the shape {tuple(leaf.shape)} where {weight} has {tuple(map(len, masks))}"
            raise InputError(problem, "start the optimizer anew: its state is no copy of the weights")
        for axis, mask in enumerate(masks):
            leaf = leaf if mask.all() else leaf.take(np.flatnonzero(mask), axis)
        return leaf

    return tree.map_named(cut, state)
