"""Rematerialization: activations inside a block are computed again for the gradient instead of being kept.

Models tag each block's output with `jax.ad_checkpoint.checkpoint_name(x, "block")`. The loss is cut at the tags and
each piece becomes a `jax.checkpoint` of its own. One checkpoint around the whole loss would save no memory: all is then
computed again at once, before the backward pass begins.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Var

from lepton_jax.errors import unknown
from lepton_jax.types import Aux, Batch, Loss, Mean

TAG = "block"
POLICIES = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable")


def rematerialized(loss: Loss, policy: str = "nothing_saveable") -> Loss:
    """The same loss, keeping between blocks what the next one needs and inside a block what `policy` says.

    policy: a name in `jax.checkpoint_policies`. A model without tags is one block; tags inside a scan or a jit are
    not seen. Chen et al. 2016, https://arxiv.org/abs/1604.06174. Raises InputError for an unknown policy.
    """
    if policy not in POLICIES:
        raise unknown("rematerialization policy", policy, POLICIES)
    keep = getattr(jax.checkpoint_policies, policy)

    def rematerialized_loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        arguments = (params, stats, dict(batch), key)
        traced, shape = jax.make_jaxpr(loss, return_shape=True)(*arguments)
        outputs = by_block(traced, keep)(jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return rematerialized_loss


def by_block(traced: ClosedJaxpr, policy: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """The traced function, flat arrays to flat arrays, as one `jax.checkpoint` after the other."""
    jaxpr = traced.jaxpr
    pieces = blocks(jaxpr.eqns)

    def run(arguments: Sequence[Any]) -> list[Any]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*traced.consts, *arguments), strict=True))
        for number, piece in enumerate(pieces):
            after = [eqn for later in pieces[number + 1 :] for eqn in later]
            inputs, outputs = borders(piece, after, jaxpr.outvars)
            part = jax.checkpoint(functools.partial(evaluate, piece, inputs, outputs), policy=policy)
            known |= dict(zip(outputs, part(*(known[var] for var in inputs)), strict=True))
        return [known[var] if isinstance(var, Var) else var.val for var in jaxpr.outvars]

    return run


def evaluate(piece: Sequence[Any], inputs: Sequence[Var], outputs: Sequence[Var], *values: Any) -> list[Any]:
    """The values of `outputs`, computed equation by equation from those of `inputs`."""
    known = dict(zip(inputs, values, strict=True))
    for equation in piece:
        operands = [known[var] if isinstance(var, Var) else var.val for var in equation.invars]
        with equation.ctx.manager:
            made = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
        known |= dict(zip(equation.outvars, made if equation.primitive.multiple_results else [made], strict=True))
    return [known[var] for var in outputs]


def blocks(equations: Sequence[Any]) -> list[list[Any]]:
    """The equations, cut after each tag."""
    pieces: list[list[Any]] = [[]]
    for equation in equations:
        pieces[-1].append(equation)
        if equation.primitive.name == "name" and equation.params["name"] == TAG:
            pieces.append([])
    return pieces


def borders(piece: Sequence[Any], after: Sequence[Any], results: Sequence[Any]) -> tuple[list[Var], list[Var]]:
    """(what the piece reads from before it, what is read of it later), in order of first appearance."""
    made = {var for equation in piece for var in equation.outvars}
    read = [var for equation in piece for var in equation.invars if isinstance(var, Var) and var not in made]
    wanted = {var for equation in after for var in equation.invars if isinstance(var, Var)}
    wanted |= {var for var in results if isinstance(var, Var)}
    return list(dict.fromkeys(read)), [var for equation in piece for var in equation.outvars if var in wanted]
