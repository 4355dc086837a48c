"""Trees of arrays as they travel: by the names of their leaves, and taken only where they are what was expected."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lepton_jax import tree as trees
from lepton_jax.errors import InputError
from lepton_jax.federation.frames import FrameError


def arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves by name, on the host. Raises InputError for two of one name."""
    names, leaves = trees.paths(tree), jax.device_get(jax.tree.leaves(tree))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two leaves of the tree are named {twice}", "leave the separator / out of keys")
    return dict(zip(names, map(np.asarray, leaves), strict=True))


def shapes(like: PyTree) -> dict[str, Any]:
    """Names of leaves and their shapes, of arrays or shapes."""
    return dict(zip(trees.paths(like), jax.tree.leaves(like), strict=True))


def restored(found: Mapping[str, np.ndarray], like: PyTree) -> Any:
    """A tree like `like` of these arrays. Raises FrameError for another name, shape or dtype."""
    expected = shapes(like)
    if strangers := sorted(expected.keys() ^ found.keys()):
        where = "is missing" if strangers[0] in expected else "is not expected"
        raise FrameError(f"the array {strangers[0][:100]} {where}")
    for name, leaf in expected.items():
        for what, there, wanted in (
            ("shape", found[name].shape, tuple(leaf.shape)),
            ("type", found[name].dtype, np.dtype(leaf.dtype)),
        ):
            if there != wanted:
                raise FrameError(f"the array {name} has the {what} {there}, and {wanted} is expected")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in expected])


def require_finite(found: Mapping[str, np.ndarray]) -> None:
    """Raise FrameError where an array has a NaN or an infinity: one such number would be everyone's."""
    for name, array in found.items():
        if trees.is_floating(array) and not np.all(np.isfinite(array)):
            raise FrameError(f"the array {name} has numbers that are not finite")
