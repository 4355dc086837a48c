"""Follows channels through a program, operation by operation: products here, the rest by `rules`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lepton_jax.compress import programs, rules
from lepton_jax.compress.programs import CUSTOM, Operation, Program
from lepton_jax.compress.ties import Labels, Nodes, Product, Ties, Use

Rule = Callable[[Ties, Use], list[Labels]]
"""Ties what an operation ties and says what its results' dimensions are."""


def follow(
    ties: Ties, program: Program, arguments: Sequence[Labels], varying: Sequence[bool]
) -> tuple[list[Labels], list[bool]]:
    """(labels, whether it varies) of every value of the program, from those of its arguments."""
    labels: list[Any] = [None] * program.size
    moves = [False] * program.size
    for number, value in program.constants.items():
        labels[number] = ties.fresh(programs.shape_of(value))
    for number, own, moved in zip(program.arguments, arguments, varying, strict=True):
        labels[number], moves[number] = own, moved
    for operation in program.operations:
        use = Use(operation.equation, [labels[n] for n in operation.operands], [moves[n] for n in operation.operands])
        for number, result in zip(operation.results, _followed(ties, operation, use), strict=True):
            labels[number], moves[number] = result, any(use.varying)
    return labels, moves


def _followed(ties: Ties, operation: Operation, use: Use) -> list[Labels]:
    if operation.name in CUSTOM:
        inner = programs.flattened(programs.body(operation.equation))
        labels, _ = follow(ties, inner, use.labels, use.varying)
        return [labels[number] for number in inner.results]
    return RULES.get(operation.name, rules.unknown)(ties, use)


def dot(ties: Ties, use: Use) -> list[Labels]:
    """dot_general: contracted dimensions are tied, batch dimensions too, the rest passes."""
    (contracted, batch), (left, right) = use.params["dimension_numbers"], use.labels
    inner = [ties.tie(use.name, left[a], right[b]) for a, b in zip(*contracted, strict=True)]
    outer = [ties.tie(use.name, left[a], right[b]) for a, b in zip(*batch, strict=True)]
    free = [
        [nodes for d, nodes in enumerate(own) if d not in (*contracted[side], *batch[side])]
        for side, own in enumerate((left, right))
    ]
    for side, own in enumerate((left, right)):
        if not use.varying[side]:
            _weigh(ties, [own[d] for d in contracted[side]], free[side])
    result = (*outer, *free[0], *free[1])
    _count(ties, sum(programs.dot_sizes(use.equation), ()), (*result, *inner))
    return [result]


def convolution(ties: Ties, use: Use) -> list[Labels]:
    """Inputs are tied to the kernel's; of a convolution in groups the unit is a group with all its channels."""
    numbers, groups = use.params["dimension_numbers"], use.params["feature_group_count"]
    if use.params["batch_group_count"] != 1:
        return rules.unknown(ties, use)
    (batch, feature, *places), (out, into, *window) = numbers.lhs_spec, numbers.rhs_spec
    (images, kernel), rank = use.labels, len(use.after[0])
    for nodes in (*(images[d] for d in places), *(kernel[d] for d in window)):
        ties.fix(nodes, f"{use.name} runs over them")
    if groups == 1:
        ties.tie(use.name, images[feature], kernel[into])
        made = kernel[out]
    else:
        ties.fix(kernel[into], f"{use.name} works in groups")
        made = _grouped(ties, use.name, images[feature], kernel[out], groups)
    if not use.varying[1]:
        _weigh(ties, [kernel[into]] if groups == 1 else [], [kernel[out]])
    result: list[Nodes] = [None] * rank
    result[numbers.out_spec[0]], result[numbers.out_spec[1]] = images[batch], made
    inner = [kernel[into] if groups == 1 else None]
    _count(ties, sum(programs.convolution_sizes(use.equation), ()), (*result, *inner))
    return [tuple(result)]


def _grouped(ties: Ties, name: str, read: Nodes, made: Nodes, groups: int) -> Nodes:
    """The outputs, tied to the inputs of their group."""
    if read is None or made is None:
        return ties.tie(name, read, made)
    units = read.reshape(groups, -1)
    ties.same(units[:, :1], units)
    ties.same(units[:, :1], made.reshape(groups, -1))
    return made


def _weigh(ties: Ties, taken: Sequence[Nodes], given: Sequence[Nodes]) -> None:
    """Notes what a weight takes in and gives out."""
    ties.roles += [(nodes, "input") for nodes in taken if nodes is not None]
    ties.roles += [(nodes, "output") for nodes in given if nodes is not None]


def _count(ties: Ties, sizes: Sequence[int], dimensions: Sequence[Nodes]) -> None:
    """Notes what a product costs: `sizes` are of all its dimensions, `dimensions` those that have channels."""
    known = tuple(nodes for nodes in dimensions if nodes is not None)
    ties.products.append(Product(math.prod(sizes) // math.prod(map(len, known)), known))


ELEMENTWISE = (
    *("abs", "add", "add_any", "and", "asin", "asinh", "acos", "acosh", "atan", "atan2", "atanh", "cbrt", "ceil"),
    *("clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv"),
    *("erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p"),
    *("logistic", "lt", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision"),
    *("rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign"),
    *("sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor"),
)
REDUCTIONS = ("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum")
WINDOWS = ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, rules.elementwise),
    **dict.fromkeys(REDUCTIONS, rules.reduce),
    **dict.fromkeys(WINDOWS, rules.window),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), rules.cumulate),
    **dict.fromkeys(("iota", "random_bits"), rules.fresh),
    "bitcast_convert_type": rules.bitcast,
    "broadcast_in_dim": rules.broadcast,
    "concatenate": rules.concatenate,
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "dynamic_slice": rules.dynamic_slice,
    "pad": rules.pad,
    "reshape": rules.reshape,
    "rev": rules.reverse,
    "slice": rules.cut,
    "split": rules.split,
    "squeeze": rules.squeeze,
    "transpose": rules.transpose,
}
