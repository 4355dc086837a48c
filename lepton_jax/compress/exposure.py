"""What a model computes inside: the activations that it has tagged, read off its program."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from lepton_jax.compress import programs
from lepton_jax.errors import InputError
from lepton_jax.types import Keys, Model

CALLS = ("jit", "pjit", "closed_call")


def exposed(model: Model, tag: str = "block") -> Model:
    """The same model with outputs {"output": its own, "blocks": [activations]}, in the order in which they are made.

    The activations are those tagged by `jax.ad_checkpoint.checkpoint_name(x, tag)`; the built-in ResNets and Vision
    Transformers tag each block's output. Gradients flow through them. Tags inside `jax.jit` are found. The model
    raises InputError for a tag inside a scan, a branch or a checkpoint, which has no one value, and for no tag at all.
    """

    def apply(variables: Any, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        def program(variables: Any, inputs: Any, keys: Any) -> tuple[Any, Any]:
            return model.apply(variables, inputs, train, keys)

        traced, shape = jax.make_jaxpr(program, return_shape=True)(variables, inputs, keys)
        blocks: list[Any] = []
        results = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves((variables, inputs, keys)), tag, blocks)
        if not blocks:
            problem = f"the model tags no activation {tag!r}"
            raise InputError(problem, "name one in it: x = jax.ad_checkpoint.checkpoint_name(x, 'block')")
        outputs, moved = jax.tree.unflatten(jax.tree.structure(shape), results)
        return {"output": outputs, "blocks": blocks}, moved

    return Model(model.init, apply, model.rules)


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], tag: str, blocks: list[Any]) -> list[Any]:
    """The program's results; what it tags goes to the end of `blocks`."""
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else known[var]

    for equation in jaxpr.eqns:
        results = _results(equation, [value(var) for var in equation.invars], tag, blocks)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [value(var) for var in jaxpr.outvars]


def _results(equation: Any, operands: list[Any], tag: str, blocks: list[Any]) -> Sequence[Any]:
    primitive, params = equation.primitive, equation.params
    if any(_tags(inner, tag) for inner in programs.inside(params)):
        if primitive.name not in CALLS:
            problem = f"an activation {tag!r} is tagged inside {primitive.name}, where it has no one value"
            raise InputError(problem, "tag it outside of scans, branches and checkpoints")
        inner = programs.body(equation)
        return _evaluate(inner.jaxpr, inner.consts, operands, tag, blocks)
    results = programs.bind(equation, operands)
    if _is_tag(equation, tag):
        blocks.append(results[0])
    return results


def _is_tag(equation: Any, tag: str) -> bool:
    return equation.primitive.name == "name" and equation.params["name"] == tag


def _tags(jaxpr: Jaxpr, tag: str) -> bool:
    """Whether this program, or one inside it, has the tag."""
    return any(
        _is_tag(equation, tag) or any(_tags(inner, tag) for inner in programs.inside(equation.params))
        for equation in jaxpr.eqns
    )
