"""Arithmetic, norms and paths over parameter trees."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lepton_jax.errors import InputError


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as the public name of a weight: `stage1/block0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: PyTree) -> list[str]:
    """The names of all leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` where `function` gets the leaf's name first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def select(pattern: str, tree: PyTree) -> PyTree:
    """A tree of booleans, True where the leaf's name matches `pattern` (re.search).

    Raises InputError where nothing matches: a rule that does nothing is a mistake.
    """
    mask = map_named(lambda name, _: re.search(pattern, name) is not None, tree)
    if not any(jax.tree.leaves(mask)):
        some = ", ".join(paths(tree)[:4])
        raise InputError(f"the pattern {pattern!r} matches no leaf of the tree", f"leaves are named like: {some}")
    return mask


def rank(name: str, leaf: Any) -> int:
    """The number of a leaf's own axes: without that of the layers where blocks are stacked (`models.stacked`)."""
    return leaf.ndim - bool(re.search(r"(^|/)blocks/", name))


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Floating-point leaves in `dtype`; all others (counts, keys, masks) as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_floating(x) else x, tree)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of floating-point numbers."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def zeros(tree: PyTree) -> PyTree:
    """Leaf by leaf, zeros of the same shape and dtype."""
    return jax.tree.map(jnp.zeros_like, tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    """Leaf by leaf, a + b."""
    return jax.tree.map(jnp.add, a, b)


def scale(tree: PyTree, factor: Any) -> PyTree:
    """Leaf by leaf, factor * leaf, in the leaf's dtype."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def where(condition: Any, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the scalar condition holds, else `b`; keys included."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def pairwise(stacked: PyTree) -> PyTree:
    """The sum over the leading axis, a power of two long, in one fixed order: neighbors first, then their sums."""

    def total(x: Array) -> Array:
        while len(x) > 1:
            x = x[0::2] + x[1::2]
        return x[0]

    return jax.tree.map(total, stacked)


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all leaves together, accumulated in at least float32."""
    wide = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in gathered(jax.tree.leaves(tree)))
    return jnp.sqrt(sum((jnp.sum(jnp.square(x)) for x in wide), jnp.zeros((), jnp.float32)))


def gathered(leaves: Sequence[Array], small: int = 2**14) -> list[Array]:
    """The same numbers in fewer arrays: small leaves of one shape and type stacked, larger ones as they are.

    To reduce hundreds of small arrays one by one costs more in starting than in adding.
    """
    alike: dict[Any, list[Array]] = {}
    for number, leaf in enumerate(leaves):
        alike.setdefault((leaf.shape, leaf.dtype) if leaf.size <= small else number, []).append(leaf)
    return [jnp.stack(group) if len(group) > 1 else group[0] for group in alike.values()]


def distance(tree: PyTree, reference: PyTree) -> float:
    """|tree - reference| / |reference| over all leaves together, in float64 on the host."""
    flat = [np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (tree, reference)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def is_finite(tree: PyTree) -> Array:
    """A boolean scalar: no NaN and no infinity in any leaf."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def count(tree: PyTree) -> int:
    """The number of numbers in all leaves."""
    return sum(x.size for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """The bytes that all leaves take."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
