"""What operations that change shapes, or none, do with channels; the products are in `propagation`."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lepton_jax.compress.ties import Labels, Nodes, Ties, Use


def unknown(ties: Ties, use: Use) -> list[Labels]:
    """An operation of which nothing is known fixes whatever it reads."""
    for own in use.labels:
        for nodes in own:
            ties.fix(nodes, f"{use.name} runs over them")
    return [(None,) * len(shape) for shape in use.after]


def elementwise(ties: Ties, use: Use) -> list[Labels]:
    """Entry by entry; operands of size 1 are spread."""
    (shape,) = use.after

    def tied(dimension: int, size: int) -> Nodes:
        full = (own[dimension] for own, known in _ranked(use, len(shape)) if known[dimension] == size)
        return ties.tie(use.name, *full)

    return [tuple(tied(dimension, size) for dimension, size in enumerate(shape))]


def _ranked(use: Use, rank: int) -> list[tuple[Labels, tuple[int, ...]]]:
    return [pair for pair in zip(use.labels, use.before, strict=True) if len(pair[1]) == rank]


def bitcast(ties: Ties, use: Use) -> list[Labels]:
    """Entry by entry, unless numbers are taken apart."""
    return elementwise(ties, use) if use.before == use.after else unknown(ties, use)


def fresh(ties: Ties, use: Use) -> list[Labels]:
    """What is made from a shape alone may have any channels; dimensions of keys are rigid."""
    (shape,) = use.after
    keys = len(use.before[0]) if use.before else 0
    return [(None,) * keys + ties.fresh(shape[keys:])]


def broadcast(ties: Ties, use: Use) -> list[Labels]:
    """broadcast_in_dim: dimensions that are spread may have any channels."""
    (shape,), result = use.after, list(ties.fresh(use.after[0]))
    for own, size, to in zip(use.labels[0], use.before[0], use.params["broadcast_dimensions"], strict=True):
        if size == shape[to]:
            result[to] = own
    return [tuple(result)]


def reshape(ties: Ties, use: Use) -> list[Labels]:
    """Dimensions joined repeat the channel of the one that has some; of dimensions parted one has them."""
    if use.params["dimensions"] is not None or 0 in use.before[0]:
        return unknown(ties, use)
    result: list[Nodes] = [None] * len(use.after[0])
    for joined, parted in blocks(use.before[0], use.after[0]):
        parts, sizes = [use.labels[0][d] for d in joined], [use.before[0][d] for d in joined]
        for d, nodes in zip(parted, _regrouped(ties, parts, sizes, [use.after[0][d] for d in parted]), strict=True):
            result[d] = nodes
    return [tuple(result)]


def blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of two shapes, in the smallest blocks of the same number of entries; those of 1 left out."""
    left, right = ([d for d, size in enumerate(shape) if size != 1] for shape in (before, after))
    while left:
        joined, parted = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[d] for d in joined)) != (b := math.prod(after[d] for d in parted)):
            (joined if a < b else parted).append((left if a < b else right).pop(0))
        yield joined, parted


def _regrouped(ties: Ties, parts: list[Nodes], sizes: list[int], after: list[int]) -> list[Nodes]:
    known = [axis for axis, nodes in enumerate(parts) if nodes is not None]
    if len(known) != 1:
        for nodes in parts:
            ties.fix(nodes, "reshape mixes them with others")
        return [None] * len(after)
    line = np.reshape(np.asarray(parts[known[0]]), [-1 if axis == known[0] else 1 for axis in range(len(sizes))])
    grid = np.broadcast_to(line, sizes).reshape(after)
    sides = [np.moveaxis(grid, axis, 0).reshape(size, -1) for axis, size in enumerate(after)]
    alone = [axis for axis, side in enumerate(sides) if (side == side[:, :1]).all()]
    # where every entry is another channel, the first dimension is that of the units: whole heads, whole groups
    axis = alone[0] if alone else 0
    ties.same(sides[axis][:, :1], sides[axis])
    return [sides[axis][:, 0] if d == axis else None for d in range(len(after))]


def transpose(ties: Ties, use: Use) -> list[Labels]:
    """Dimensions in another order."""
    return [tuple(use.labels[0][d] for d in use.params["permutation"])]


def squeeze(ties: Ties, use: Use) -> list[Labels]:
    """Without some dimensions of size 1."""
    return [tuple(nodes for d, nodes in enumerate(use.labels[0]) if d not in use.params["dimensions"])]


def concatenate(ties: Ties, use: Use) -> list[Labels]:
    """Side by side in one dimension, entry by entry in the others."""
    axis, rank = use.params["dimension"], len(use.after[0])
    result = [ties.tie(use.name, *(own[d] for own in use.labels)) if d != axis else None for d in range(rank)]
    parts = [own[axis] for own in use.labels]
    if any(nodes is not None for nodes in parts):
        result[axis] = np.concatenate(
            [_known(ties, nodes, shape[axis], use.name) for nodes, shape in zip(parts, use.before, strict=True)]
        )
    return [tuple(result)]


def _known(ties: Ties, nodes: Nodes, size: int, name: str) -> np.ndarray:
    """The nodes, or fixed ones in the place of a rigid dimension."""
    if nodes is None:
        ties.count += size
        nodes = np.arange(ties.count - size, ties.count)
        ties.fix(nodes, f"{name} puts them beside others")
    return nodes


def pad(ties: Ties, use: Use) -> list[Labels]:
    """New entries around those that are there may have any channels."""
    result: list[Nodes] = []
    for nodes, (low, high, between) in zip(use.labels[0], use.params["padding_config"], strict=True):
        if nodes is None or (low, high, between) == (0, 0, 0):
            result.append(nodes)
        elif min(low, high) < 0 or between:
            ties.fix(nodes, "pad spaces or cuts them")
            result.append(None)
        else:
            ends = [np.arange(ties.count, ties.count + low), np.arange(ties.count + low, ties.count + low + high)]
            ties.count += low + high
            result.append(np.concatenate([ends[0], nodes, ends[1]]))
    return [tuple(result)]


def cut(ties: Ties, use: Use) -> list[Labels]:
    """slice: a run of entries; steps through channels fix them."""
    steps = use.params["strides"] or (1,) * len(use.before[0])
    result: list[Nodes] = []
    for nodes, start, limit, step in zip(
        use.labels[0], use.params["start_indices"], use.params["limit_indices"], steps, strict=True
    ):
        if step != 1:
            ties.fix(nodes, "slice steps through them")
        result.append(None if nodes is None or limit - start == 1 else nodes[start:limit:step])
        if limit - start == 1:
            ties.fix(nodes, "slice takes one of them")
    return [tuple(result)]


def split(ties: Ties, use: Use) -> list[Labels]:
    """Runs of entries one after the other."""
    axis, ends = use.params["axis"], np.cumsum(use.params["sizes"])[:-1]
    (own,) = use.labels
    pieces = [None] * len(use.after) if own[axis] is None else np.split(own[axis], ends)
    for nodes in pieces:
        if nodes is not None and len(nodes) == 1:
            ties.fix(nodes, "split takes one of them")
    single = [None if nodes is None or len(nodes) == 1 else nodes for nodes in pieces]
    return [(*own[:axis], nodes, *own[axis + 1 :]) for nodes in single]


def dynamic_slice(ties: Ties, use: Use) -> list[Labels]:
    """Dimensions that are taken whole pass."""
    whole = [size == taken for size, taken in zip(use.before[0], use.params["slice_sizes"], strict=True)]
    return [_passed(ties, use, use.labels[0], whole)]


def reverse(ties: Ties, use: Use) -> list[Labels]:
    """rev: entries in the other order."""
    turned = use.params["dimensions"]
    return [tuple(own if own is None or d not in turned else own[::-1] for d, own in enumerate(use.labels[0]))]


def reduce(ties: Ties, use: Use) -> list[Labels]:
    """Sums, extremes and their places over whole dimensions."""
    axes = use.params["axes"]
    passed = _passed(ties, use, use.labels[0], [d not in axes for d in range(len(use.before[0]))])
    return [tuple(nodes for d, nodes in enumerate(passed) if d not in axes)]


def cumulate(ties: Ties, use: Use) -> list[Labels]:
    """Running sums, products and extremes."""
    return [_passed(ties, use, use.labels[0], [d != use.params["axis"] for d in range(len(use.before[0]))])]


def window(ties: Ties, use: Use) -> list[Labels]:
    """Pooling: dimensions with windows of one entry, side by side, pass."""
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    ones = [all(value == 1 for value in values) for values in zip(*(use.params[name] for name in names), strict=True)]
    plain = [one and tuple(edge) == (0, 0) for one, edge in zip(ones, use.params["padding"], strict=True)]
    return [_passed(ties, use, use.labels[0], plain)]


def _passed(ties: Ties, use: Use, own: Labels, passes: Sequence[bool]) -> Labels:
    """The dimensions that pass; the others' entries are fixed."""
    for nodes, free in zip(own, passes, strict=True):
        if not free:
            ties.fix(nodes, f"{use.name} runs over them")
    return tuple(nodes if free else None for nodes, free in zip(own, passes, strict=True))
