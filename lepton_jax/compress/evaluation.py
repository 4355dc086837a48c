"""Models evaluated product by product: where a weight meets its inputs, a rule decides how they are multiplied.

A model's program is read as JAX traced it (a jaxpr), so any model will do. A product is a convolution or a matrix
product whose second operand is a parameter, or one cast to another type. All other uses of a parameter see its array.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

from lepton_jax import tree
from lepton_jax.compress import leaves, programs
from lepton_jax.types import Keys, Model

PRODUCTS = ("conv_general_dilated", "dot_general")
CALLS = (*programs.INLINED, *programs.CUSTOM)


class Site(NamedTuple):
    """A product in the program. name: the weight's path, `stage1/block0/conv1/kernel`."""

    name: str
    equation: Any

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of its primitive."""
        return self.equation.params

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution; else a matrix product."""
        return self.equation.primitive.name == "conv_general_dilated"

    def multiply(self, inputs: Array, weight: Array, **changed: Any) -> Array:
        """The product as the program has it, `changed` in its parameters."""
        return programs.bind(self.equation, (inputs, weight), **changed)[0]


Rule = Callable[[Site, Array, Any], Array]
"""(site, inputs, weight: an array or a packed leaf) -> outputs."""


class _Weight(NamedTuple):
    """A parameter on its way to a product."""

    name: str
    leaf: Any
    dtype: Any

    def array(self) -> Array:
        return jnp.asarray(leaves.dense(self.leaf)).astype(self.dtype)


def multiplied(site: Site, inputs: Array, weight: Any) -> Array:
    """The product by the cheapest way that the packed leaf allows: factors one after the other, all else dense."""
    if isinstance(weight, leaves.Factored) and _is_plain(site):
        return _through_factors(site, inputs, weight)
    return site.multiply(inputs, jnp.asarray(leaves.dense(weight), inputs.dtype))


def applied(model: Model, rule: Rule = multiplied) -> Model:
    """The same model, with its products as `rule` has them; its variables may hold packed leaves.

    init is the model's own. A function with a derivative of its own that takes a weight is opened to find its product,
    and then has the derivative that JAX gives it.
    """

    def apply(variables: Any, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, Any]:
        params = variables["params"]
        others = leaves.unpacked({name: part for name, part in variables.items() if name != "params"})
        named = named_leaves(params)
        shapes = jax.tree.map(lambda leaf: jax.eval_shape(leaves.dense, leaf), params, is_leaf=leaves.is_packed)

        def program(params: Any, others: Any, inputs: Any, keys: Any) -> tuple[Any, Any]:
            return model.apply({"params": params, **others}, inputs, train, keys)

        traced, shape = jax.make_jaxpr(program, return_shape=True)(shapes, others, inputs, keys)
        weights = [
            _Weight(name, leaf, whole.dtype) for (name, leaf), whole in zip(named, jax.tree.leaves(shapes), strict=True)
        ]
        outputs = evaluate(traced, [*weights, *jax.tree.leaves((others, inputs, keys))], rule)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return Model(model.init, apply, model.rules)


def named_leaves(params: Any) -> list[tuple[str, Any]]:
    """(name, leaf) of each parameter; packed leaves are whole."""
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=leaves.is_packed)
    return [(tree.path_name(path), leaf) for path, leaf in found]


def evaluate(traced: ClosedJaxpr, arguments: Sequence[Any], rule: Rule) -> list[Any]:
    """The traced program's results as arrays, from flat arguments of which some are weights."""
    return [_array(value) for value in _evaluate(traced.jaxpr, traced.consts, arguments, rule)]


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], rule: Rule) -> list[Any]:
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else known[var]

    for equation in jaxpr.eqns:
        results = _results(equation, [value(var) for var in equation.invars], rule)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [value(var) for var in jaxpr.outvars]


def _results(equation: Any, operands: list[Any], rule: Rule) -> Sequence[Any]:
    primitive, params = equation.primitive, equation.params
    weighted = any(isinstance(operand, _Weight) for operand in operands)
    if primitive.name in CALLS and weighted:
        inner = programs.body(equation)
        return _evaluate(inner.jaxpr, inner.consts, operands, rule)
    if primitive.name == "convert_element_type" and weighted:
        return [operands[0]._replace(dtype=params["new_dtype"])]
    if primitive.name in PRODUCTS and isinstance(operands[1], _Weight):
        weight, site = operands[1], Site(operands[1].name, equation)
        leaf = weight.leaf if leaves.is_packed(weight.leaf) else weight.array()
        return [rule(site, _array(operands[0]), leaf)]
    return programs.bind(equation, list(map(_array, operands)))


def _array(value: Any) -> Any:
    return value.array() if isinstance(value, _Weight) else value


def _is_plain(site: Site) -> bool:
    """Whether factors can stand in: no groups, and channels where every one of our layers has them."""
    if site.is_convolution:
        dimensions = site.params["dimension_numbers"]
        last = dimensions.lhs_spec[1] == len(dimensions.lhs_spec) - 1 and dimensions.rhs_spec[:2] == (3, 2)
        return last and site.params["feature_group_count"] == 1 and site.params["batch_group_count"] == 1
    (contracted, (row,)), batch = site.params["dimension_numbers"]
    return len(contracted) == 1 and row == 0 and batch == ((), ())


def _through_factors(site: Site, inputs: Array, weight: leaves.Factored) -> Array:
    factors = {name: jnp.asarray(leaves.dense(factor), inputs.dtype) for name, factor in weight.factors.items()}
    if not site.is_convolution:
        return _last(site.multiply(inputs, factors["down"]), factors["up"])
    inner = _last(inputs, factors["down"]) if "down" in factors else inputs
    return _last(site.multiply(inner, factors["core"]), factors["up"])


def _last(inputs: Array, matrix: Array) -> Array:
    """The last dimension times a matrix."""
    return jax.lax.dot_general(inputs, matrix, (((inputs.ndim - 1,), (0,)), ((), ())))
