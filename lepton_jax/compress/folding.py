"""Batch norms folded into the convolutions before them: a network in evaluation with one bias in a norm's place."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jaxtyping import PyTree

from lepton_jax import tree
from lepton_jax.compress import base, leaves, programs
from lepton_jax.compress.evaluation import CALLS, PRODUCTS
from lepton_jax.errors import InputError
from lepton_jax.types import Model, Variables

STATS = "batch_stats"
PASSED = ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "expand_dims", "copy", "name")


class Pair(NamedTuple):
    """A weight whose product goes into a batch norm and nowhere else. bias: the name of what is added between."""

    kernel: str
    bias: str | None
    norm: str
    epsilon: float


class _Leaf(NamedTuple):
    """A variable on its way: `params/stem/conv/kernel`."""

    name: str


class _Product(NamedTuple):
    """The outputs of a weight, and the name of what was added to them."""

    kernel: str
    bias: str | None


class _Found(NamedTuple):
    """What the program says. uses: how often each variable and each product, as it is, goes into something."""

    uses: Counter
    norms: dict[_Product, str]
    epsilons: dict[str, float]


def folded(model: Model, variables: Variables, inputs: Any) -> Variables:
    """Variables of the same model whose outputs in evaluation are the same, with batch norms folded into kernels.

    Kernels may be `leaves.Factored`; no others that are packed. A folded norm has scale 1, mean 0, a variance that
    makes it exactly the identity, and a bias. Only shapes and dtypes of `inputs` matter. Raises InputError where no
    batch norm follows a weight.
    """
    if found := pairs(model, variables, inputs):
        return into(variables, found)
    raise InputError("no batch norm follows a convolution or dense layer", "leave this model as it is")


def into(variables: Variables, found: Sequence[Pair]) -> Variables:
    """The variables with each norm of the pairs folded into the weight before it; as they are where there are none."""
    if not found:
        return variables
    params, stats = variables["params"], variables[STATS]
    for pair in found:
        norm, running = base.at(params, pair.norm), base.at(stats, pair.norm)
        gain = norm.get("scale", 1) / jnp.sqrt(running["var"] + pair.epsilon)
        shift = norm.get("bias", 0) - running["mean"] * gain
        kernel = base.at(params, pair.kernel)
        new: dict[str, Any] = {pair.kernel: _gained(kernel, gain)}
        if pair.bias is not None:
            # it moves into the norm's, so that one of the two is zeros
            bias = base.at(params, pair.bias)
            new[pair.bias], shift = jnp.zeros_like(bias), shift + bias * gain
        new[f"{pair.norm}/bias"] = shift
        if "scale" in norm:
            new[f"{pair.norm}/scale"] = jnp.ones_like(norm["scale"])
        params = base.put(params, new)
        still = {"mean": jnp.zeros_like(running["mean"]), "var": _still(running["var"], pair.epsilon)}
        stats = base.put(stats, {f"{pair.norm}/{part}": value for part, value in still.items()})
    return {**variables, "params": params, STATS: stats}


def _gained(kernel: Any, gain: Any) -> Any:
    """A kernel, or its last factor, of which every output is multiplied by its gain."""
    if isinstance(kernel, leaves.Factored):
        return replace(kernel, factors={**kernel.factors, "up": _gained(kernel.factors["up"], gain)})
    return kernel * gain.reshape((1,) * (kernel.ndim - 1) + (-1,))


def _still(var: Any, epsilon: float) -> Any:
    """A variance that with epsilon added is exactly 1."""
    one, added = np.float32(1), np.float32(epsilon)
    value = one - added
    while value + added != one:
        value = np.nextafter(value, one if value + added < one else np.float32(0))
    return jnp.full_like(var, value)


def pairs(model: Model, variables: Variables, inputs: Any) -> list[Pair]:
    """The weights that batch norms with a bias follow, from the model's program in evaluation.

    A weight in several products, or one whose outputs go elsewhere too, is none of them.
    """

    def program(variables: Any, inputs: Any) -> Any:
        return model.apply(variables, inputs, False, None)[0]

    whole = jax.eval_shape(leaves.unpacked, variables)
    traced = jax.make_jaxpr(program)(whole, inputs)
    names = [_Leaf(name) for name in tree.paths(whole)]
    found = _Found(Counter(), {}, {})
    found.uses.update(filter(None, _followed(traced.jaxpr, [*names, *(None,) * len(jax.tree.leaves(inputs))], found)))
    return [
        Pair(product.kernel.removeprefix("params/"), product.bias, norm, found.epsilons[norm])
        for product, norm in found.norms.items()
        if norm in found.epsilons
        and "bias" in base.at(variables["params"], norm)
        and _is_alone(product, norm, found.uses)
    ]


def _is_alone(product: _Product, norm: str, uses: Counter) -> bool:
    """Whether nothing else takes the product, its weight and bias, or the norm's variables."""
    variables = [product.kernel, f"{STATS}/{norm}/mean", f"{STATS}/{norm}/var", f"params/{norm}/bias"]
    optional = [f"params/{norm}/scale", f"params/{product.bias}"]
    met = [product, product._replace(bias=None), *map(_Leaf, variables)]
    return all(uses[one] == 1 for one in met) and all(uses[_Leaf(one)] <= 1 for one in optional)


def _followed(jaxpr: Jaxpr, arguments: Sequence[Any], found: _Found) -> list[Any]:
    """What comes out of a program for what goes in, each a leaf, a product or None; fills `found`."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))

    def value(var: Any) -> Any:
        return None if isinstance(var, Literal) else known.get(var)

    for equation in jaxpr.eqns:
        operands = [value(var) for var in equation.invars]
        if equation.primitive.name in CALLS:
            results = _followed(programs.body(equation).jaxpr, operands, found)
        else:
            results = [_result(equation, operands, found)] * len(equation.outvars)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [value(var) for var in jaxpr.outvars]


def _result(equation: Any, operands: list[Any], found: _Found) -> Any:
    name, first, last = equation.primitive.name, operands[0] if operands else None, operands[-1] if operands else None
    if name in PASSED and isinstance(first, _Leaf):
        return first
    found.uses.update(filter(None, operands))
    if name in PRODUCTS and isinstance(last, _Leaf) and _is_last(equation):
        return _Product(last.name, None)
    if name == "add" and isinstance(first, _Product) and isinstance(last, _Leaf) and first.bias is None:
        return first._replace(bias=last.name.removeprefix("params/"))
    added = equation.invars[-1] if name == "add" else None
    if isinstance(first, _Leaf) and first.name.endswith("/var") and isinstance(added, Literal):
        found.epsilons[_norm(first.name)] = float(added.val)
    if name == "sub" and isinstance(first, _Product) and isinstance(last, _Leaf) and last.name.endswith("/mean"):
        found.norms[first] = _norm(last.name)
    return None


def _norm(name: str) -> str:
    """`batch_stats/stem/norm/mean` -> `stem/norm`."""
    return name.removeprefix(f"{STATS}/").rpartition("/")[0]


def _is_last(equation: Any) -> bool:
    """Whether outputs lie along the last dimension of the weight and of what comes out, as in our layers."""
    numbers, rank = equation.params["dimension_numbers"], equation.invars[1].aval.ndim
    if equation.primitive.name == "conv_general_dilated":
        return numbers.rhs_spec[0] == rank - 1 and numbers.out_spec[1] == rank - 1
    return rank == 2 and numbers[0][1] == (0,) and numbers[1] == ((), ())


def constants(params: PyTree) -> PyTree:
    """The same tree with a `Constant` where all numbers of an array are one: what is left of folded norms."""

    def packed(leaf: Any) -> Any:
        if leaves.is_packed(leaf) or leaf.size < 2:
            return leaf
        first = np.asarray(leaf).flat[0]
        if not (np.isfinite(first) and np.all(np.asarray(leaf) == first)):
            return leaf
        return leaves.Constant(first, leaf.shape, str(leaf.dtype))

    return jax.tree.map(packed, params, is_leaf=leaves.is_packed)
