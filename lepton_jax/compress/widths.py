"""A model at other widths: the original's program, evaluated on the smaller arrays.

Every operation is bound again on what is left; parameters of operations that speak of shapes are adapted. What is made
from a shape alone (masks of dropout, constants) is made whole and cut: a channel draws what it drew before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.compress import programs, propagation
from lepton_jax.compress.channels import remove
from lepton_jax.compress.dependencies import Kept, named_variables, reasons_of
from lepton_jax.compress.programs import CUSTOM, Operation, Program
from lepton_jax.compress.ties import Labels, Ties
from lepton_jax.errors import InputError
from lepton_jax.types import Key, Keys, Model, Variables

Masks = tuple[Any, ...]
"""Per dimension which entries are left, bool [original size], or None for a rigid one."""


def shrunk(model: Model, kept: Kept) -> Model:
    """The model whose variables are `channels.remove(variables, kept)`; `kept` of `channels.choose`.

    Same contract: it trains, and can be compiled, differentiated, and evaluated by `evaluation.applied`, with any
    batch. `apply` traces the original at its own widths, so call it compiled. Raises InputError for variables of other
    shapes, and where an operation in training stands in the way of what was removed.
    """

    def init(key: Key, inputs: Any) -> Variables:
        return remove(model.init(key, inputs), kept)

    def apply(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        whole = _whole(variables, kept)
        program = lambda v, x, k: model.apply(v, x, train, k)  # noqa: E731
        traced, shape = jax.make_jaxpr(program, return_shape=True)(whole, inputs, keys)
        masks = [kept[name] for name, _ in named_variables(variables)]
        others = jax.tree.leaves((inputs, keys))
        masks += [(None,) * np.ndim(leaf) for leaf in others]
        outputs = evaluate(programs.flattened(traced), masks, [*jax.tree.leaves(variables), *others])
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return Model(init, apply, model.rules)


def _whole(variables: Variables, kept: Kept) -> Variables:
    """The original shapes."""

    def shape(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
        if name not in kept:
            raise InputError(f"nothing is known of the variable {name!r}", "give what `choose` returned for this model")
        if tuple(leaf.shape) != (left := tuple(_count(mask) for mask in kept[name])):
            problem = f"{name} has the shape {tuple(leaf.shape)} and {left} is what is kept"
            raise InputError(problem, "give `remove(variables, kept)`")
        return jax.ShapeDtypeStruct(tuple(map(len, kept[name])), leaf.dtype)

    shapes = [shape(name, leaf) for name, leaf in named_variables(variables)]
    return jax.tree.unflatten(jax.tree.structure(variables), shapes)


def evaluate(program: Program, masks: Sequence[Masks], arguments: Sequence[Any]) -> list[Any]:
    """The program's results from smaller arguments, of which `masks` say what is left.

    Raises InputError where what was removed cannot be, or does not fit together.
    """
    left = _left(program, masks)
    known = {number: _cut(value, left[number]) for number, value in program.constants.items()}
    known |= dict(zip(program.arguments, arguments, strict=True))
    for operation in program.operations:
        read = [left[number] for number in operation.operands]
        made = [left[number] for number in operation.results]
        results = _results(operation, read, made, [known[number] for number in operation.operands])
        known |= dict(zip(operation.results, results, strict=True))
    return [known[number] for number in program.results]


def _left(program: Program, masks: Sequence[Masks]) -> list[Masks]:
    """What is left of every value."""
    ties = Ties()
    own = [tuple(None if mask is None else ties.new(len(mask)) for mask in given) for given in masks]
    labels, _ = propagation.follow(ties, program, own, [True] * len(own))
    components = ties.components()
    keep = np.ones(len(components) + 1, bool)
    pairs = [
        (nodes, mask)
        for nodes_of, given in zip(own, masks, strict=True)
        for nodes, mask in zip(nodes_of, given, strict=True)
        if nodes is not None
    ]
    for nodes, mask in pairs:
        keep[components[nodes[~mask]]] = False
    if any((keep[components[nodes]] != mask).any() for nodes, mask in pairs):
        raise InputError("what is kept of the weights does not fit together", "give what `choose` returned")
    for component, reason in reasons_of(ties, components).items():
        if not keep[component]:
            raise InputError(f"channels cannot be removed: {reason}", "leave this weight whole")

    def of(nodes_of: Labels) -> Masks:
        return tuple(None if nodes is None else keep[components[nodes]] for nodes in nodes_of)

    return [of(nodes_of) for nodes_of in labels]


def _results(operation: Operation, read: list[Masks], made: list[Masks], operands: list[Any]) -> list[Any]:
    if _is_whole(*read, *made):
        return operation.bind(operands)
    if operation.name in CUSTOM:
        return derived(operation, read, made)(*operands)
    if operation.name in GENERATED:
        return [_cut(value, mask) for value, mask in zip(operation.bind(operands), made, strict=True)]
    adapt = ADAPTED.get(operation.name, lambda operation, read, made: {})
    return operation.bind(operands, **adapt(operation, read, made))


def _is_whole(*masks: Masks) -> bool:
    return all(mask is None or mask.all() for given in masks for mask in given)


def _cut(value: Any, masks: Masks) -> Any:
    """What is left of a whole array."""
    for axis, mask in enumerate(masks):
        if mask is not None and not mask.all():
            value = jnp.take(value, np.flatnonzero(mask), axis)
    return value


def derived(operation: Operation, read: list[Masks], made: list[Masks]) -> Callable[..., list[Any]]:
    """A function with a derivative of its own, at smaller widths: the derivative is the original's, made smaller."""
    inner = programs.flattened(programs.body(operation.equation))
    shapes, results = (
        [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in variables]
        for variables in (operation.equation.invars, operation.equation.outvars)
    )

    def whole(*operands: Any) -> list[Any]:
        return operation.bind(operands)

    def small(*operands: Any) -> list[Any]:
        return evaluate(inner, read, operands)

    def forward(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        traced = jax.make_jaxpr(lambda primals, tangents: jax.jvp(whole, primals, tangents))(
            tuple(shapes), tuple(shapes)
        )
        outputs = evaluate(programs.flattened(traced), [*read, *read], [*primals, *tangents])
        return outputs[: len(made)], outputs[len(made) :]

    def backward(operands: Any, gradients: Any) -> tuple[Any, ...]:
        traced = jax.make_jaxpr(lambda operands, gradients: jax.vjp(whole, *operands)[1](gradients))(shapes, results)
        return tuple(evaluate(programs.flattened(traced), [*read, *made], [*operands, *gradients]))

    if not all(jnp.issubdtype(shape.dtype, jnp.inexact) for shape in shapes):
        return small
    if operation.name == "custom_jvp_call":
        function = jax.custom_jvp(small)
        function.defjvp(forward)
        return function
    reverse = jax.custom_vjp(small)
    reverse.defvjp(lambda *operands: (small(*operands), operands), backward)
    return reverse


def _count(mask: Any) -> int:
    return int(np.count_nonzero(mask))


def _sizes(operation: Operation, masks: Masks) -> tuple[int, ...]:
    whole = operation.equation.outvars[0].aval.shape
    return tuple(size if mask is None else _count(mask) for size, mask in zip(whole, masks, strict=True))


def _groups(operation: Operation, read: list[Masks], made: list[Masks]) -> dict[str, Any]:
    groups, features = operation.equation.params["feature_group_count"], operation.equation.params["dimension_numbers"]
    mask = read[0][features.lhs_spec[1]]
    if groups == 1 or mask is None:
        return {}
    return {"feature_group_count": _count(mask.reshape(groups, -1)[:, 0])}


def _ends(operation: Operation, read: list[Masks], made: list[Masks]) -> dict[str, Any]:
    """pad: how many of the new entries are left on each side."""

    def left(mask: Any, low: Any, high: Any, between: Any) -> tuple[Any, Any, Any]:
        if mask is None:
            return low, high, between
        return _count(mask[:low]), _count(mask[len(mask) - high :]), between

    config = operation.equation.params["padding_config"]
    return {"padding_config": tuple(left(mask, *ends) for mask, ends in zip(made[0], config, strict=True))}


def _bounds(operation: Operation, read: list[Masks], made: list[Masks]) -> dict[str, Any]:
    """slice: where the run begins and ends among what is left."""
    params = operation.equation.params

    def moved(bounds: Sequence[int]) -> tuple[int, ...]:
        pairs = zip(read[0], bounds, strict=True)
        return tuple(bound if mask is None else _count(mask[:bound]) for mask, bound in pairs)

    return {name: moved(params[name]) for name in ("start_indices", "limit_indices")}


def _parts(operation: Operation, read: list[Masks], made: list[Masks]) -> dict[str, Any]:
    """split: how much is left of each part."""
    axis, sizes = operation.equation.params["axis"], operation.equation.params["sizes"]
    own = [masks[axis] for masks in made]
    left = [size if mask is None else _count(mask) for size, mask in zip(sizes, own, strict=True)]
    return {"sizes": tuple(left)}


GENERATED = ("iota", "random_bits")
ADAPTED: dict[str, Callable[[Operation, list[Masks], list[Masks]], dict[str, Any]]] = {
    "broadcast_in_dim": lambda operation, read, made: {"shape": _sizes(operation, made[0])},
    "reshape": lambda operation, read, made: {"new_sizes": _sizes(operation, made[0])},
    "dynamic_slice": lambda operation, read, made: {"slice_sizes": _sizes(operation, made[0])},
    "conv_general_dilated": _groups,
    "pad": _ends,
    "slice": _bounds,
    "split": _parts,
}
