"""What weights are held back by where they lie: weight decay and layer-wise learning rates, by path."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from lepton_jax import tree
from lepton_jax.errors import InputError

Mask = Callable[[PyTree], PyTree]
"""Parameters, or updates of their structure, to a tree of booleans."""


def decay_mask(params: PyTree) -> PyTree:
    """True for the leaves that weight decay shrinks: kernels, not scales and biases (`tree.rank` <= 1)."""
    return tree.map_named(lambda name, leaf: tree.rank(name, leaf) > 1, params)


def undecayed(*patterns: str) -> Mask:
    """`decay_mask` without the leaves whose path matches one of the patterns (re.search): positions, class tokens.

    The mask raises InputError for a pattern that matches no leaf.
    """
    for pattern in patterns:
        require_regular(pattern)

    def mask(params: PyTree) -> PyTree:
        spared = [tree.select(pattern, params) for pattern in patterns]
        return jax.tree.map(lambda decays, *spares: decays and not any(spares), decay_mask(params), *spared)

    return mask


def layer_decay(factor: float, layers: Sequence[str]) -> optax.GradientTransformation:
    r"""Smaller updates further down: `optax.chain(optimizer, this)` moves a pretrained network's first layers least.

    A leaf's update, with its weight decay, is multiplied by factor ** (layers above it); see `depths` for `layers`
    (Clark et al. 2020, https://arxiv.org/abs/2003.10555; Bao et al. 2022, https://arxiv.org/abs/2106.08254). For a
    Vision Transformer: `["patches|token|positions", r"block(\d+)/"]`. Raises InputError.
    """
    if not 0 < factor <= 1:
        raise InputError(f"the layer decay {factor} is not above 0 and at most 1", "give one such as 0.75")
    for pattern in layers:
        require_regular(pattern)

    def checked(params: PyTree) -> optax.EmptyState:
        depths(params, layers)
        return optax.EmptyState()

    def scaled(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        depth = depths(updates, layers)
        top = max(jax.tree.leaves(depth))
        return jax.tree.map(lambda leaf, at: leaf * factor ** (top - at), updates, depth), state

    return optax.GradientTransformation(checked, scaled)


def depths(params: PyTree, layers: Sequence[str]) -> PyTree:
    r"""The layer of every leaf, from 0 at the input up, as a tree of integers.

    layers: regular expressions (re.search), from the input upward; the first that matches a leaf's path decides. A
    pattern whose groups catch numbers is a layer for each that it finds, in their order: `stage(\d+)/block(\d+)`.
    What none matches, the head, lies above all. Raises InputError for a pattern that decides for no leaf.
    """
    names = tree.paths(params)
    layer_of = {name: _layer(name, layers) for name in names}
    for number, pattern in enumerate(layers):
        if all(layer[0] != number for layer in layer_of.values()):
            problem = f"the layer {pattern!r} holds no leaf of the parameters that no layer before it holds"
            raise InputError(problem, f"leaves are named like: {', '.join(names[:4])}")
    order = {layer: depth for depth, layer in enumerate(sorted({*layer_of.values(), (len(layers),)}))}
    return tree.map_named(lambda name, _: order[layer_of[name]], params)


def _layer(name: str, layers: Sequence[str]) -> tuple[int, ...]:
    """(the number of the pattern that decides, the numbers that its groups catch ...)."""
    for number, pattern in enumerate(layers):
        if match := re.search(pattern, name):
            return number, *(int(group) for group in match.groups(default="0") if group.isdecimal())
    return (len(layers),)


def require_regular(pattern: str) -> None:
    """Raise InputError for text that is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        problem = f"{pattern!r} is not a regular expression: {error}"
        raise InputError(problem, r"give one that weights' paths match, such as 'block(\d+)/'") from error
