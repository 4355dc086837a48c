"""A model's program as one flat list of operations, and what it costs in multiply-accumulates."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from lepton_jax.errors import InputError
from lepton_jax.types import Model, Variables

INLINED = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def bind(equation: Any, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """The results of a program's equation for these operands, with `changed` in its primitive's parameters."""
    primitive = equation.primitive
    with equation.ctx.manager:
        made = primitive.bind(*operands, **primitive.get_bind_params({**equation.params, **changed}))
    return list(made) if primitive.multiple_results else [made]


class Operation(NamedTuple):
    """One primitive at work. operands, results: numbers of values in the program."""

    equation: Any
    operands: tuple[int, ...]
    results: tuple[int, ...]

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.equation.primitive.name

    def bind(self, operands: Sequence[Any], **changed: Any) -> list[Any]:
        """The results for these operands, with `changed` in the primitive's parameters."""
        return bind(self.equation, operands, **changed)


class Program(NamedTuple):
    """Operations in order. arguments, results: numbers of values; constants: values by number; size: of how many."""

    operations: tuple[Operation, ...]
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    constants: dict[int, Any]
    size: int


def flattened(traced: ClosedJaxpr) -> Program:
    """The traced function with its calls put in their places; functions with derivatives of their own stay whole."""
    operations: list[Operation] = []
    constants: dict[int, Any] = {}
    size = 0

    def new() -> int:
        nonlocal size
        size += 1
        return size - 1

    def constant(value: Any) -> int:
        constants[number := new()] = value
        return number

    def walk(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[int]) -> list[int]:
        known: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= {var: constant(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}

        def place(var: Any) -> int:
            return constant(var.val) if isinstance(var, Literal) else known[var]

        for equation in jaxpr.eqns:
            operands = [place(var) for var in equation.invars]
            if equation.primitive.name in INLINED:
                inner = body(equation)
                results = walk(inner.jaxpr, inner.consts, operands)
            else:
                results = [new() for _ in equation.outvars]
                operations.append(Operation(equation, tuple(operands), tuple(results)))
            known |= dict(zip(equation.outvars, results, strict=True))
        return [place(var) for var in jaxpr.outvars]

    arguments = [new() for _ in traced.jaxpr.invars]
    results = walk(traced.jaxpr, traced.consts, arguments)
    return Program(tuple(operations), tuple(arguments), tuple(results), constants, size)


def body(equation: Any) -> ClosedJaxpr:
    """What a call calls."""
    params = equation.params
    inner = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


def macs(model: Model, variables: Variables, inputs: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products in one evaluation of `inputs`; give one example.

    variables, inputs: arrays or shapes; nothing is computed. A scan counts for each of its rounds, a `shard_map` for
    each of its devices, of branches the dearest. Raises InputError for products in a while loop, whose rounds only the
    data know.
    """
    return multiplications(jax.make_jaxpr(lambda v, x: model.apply(v, x, False, None))(variables, inputs).jaxpr)


def multiplications(jaxpr: Jaxpr, rounds: bool = True) -> int:
    """Those of a program, counted as `macs` says; without `rounds`, a scan counts once, as XLA's cost analysis has it.

    Raises InputError for products in a while loop.
    """
    return sum(_of_equation(equation, rounds) for equation in jaxpr.eqns)


def _of_equation(equation: Any, rounds: bool) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return math.prod(sum(dot_sizes(equation), ()))
    if name == "conv_general_dilated":
        return math.prod(sum(convolution_sizes(equation), ()))
    inner = [multiplications(jaxpr, rounds) for jaxpr in inside(params)]
    if name == "while" and sum(inner):
        raise InputError("the model multiplies in a while loop, whose rounds are unknown", "use a scan or a fori_loop")
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        return sum(inner) * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return sum(inner) * (params["length"] if name == "scan" and rounds else 1)


def dot_sizes(equation: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sizes of the result, sizes contracted) of a matrix product."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return tuple(equation.outvars[0].aval.shape), tuple(left[d] for d in contracted)


def convolution_sizes(equation: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sizes of the result, sizes of the kernel but for its outputs) of a convolution."""
    _, *others = equation.params["dimension_numbers"].rhs_spec
    kernel = equation.invars[1].aval.shape
    return tuple(equation.outvars[0].aval.shape), tuple(kernel[d] for d in others)


def inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(np.shape(value))
