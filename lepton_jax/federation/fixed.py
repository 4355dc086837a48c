"""Numbers as integers modulo 2^64, so that sums are exact in any order and masks can hide them perfectly.

A float is held to FRACTION bits after the point; a sum over all parties has to stay below 2^63 / 2^FRACTION.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jax.errors import InputError

FRACTION = 32  # bits after the point: a step of 2.3e-10
LIMIT = 2.0 ** (63 - FRACTION)  # what a sum stays below: 2.1e9


def encoded(arrays: Mapping[str, Any], parties: int) -> np.ndarray:
    """All arrays, in the order of their names, as one vector uint64. Raises InputError for what it cannot hold."""
    parts = []
    for name in sorted(arrays):
        wide = np.ravel(np.asarray(arrays[name], np.float64))
        if not np.all(np.abs(wide) < LIMIT / parties):  # so too for NaN
            problem = f"{name} has a number that is not below {LIMIT / parties:.3g}, the most that a secure sum takes"
            raise InputError(f"{problem} of {parties} parties", "clip the clients' updates, or lower the learning rate")
        parts.append(np.rint(wide * 2.0**FRACTION).astype(np.int64).view(np.uint64))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def decoded(vector: np.ndarray, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of the names, shapes and dtypes of `like` from a vector or a sum of vectors."""
    wide = vector.view(np.int64).astype(np.float64) / 2.0**FRACTION
    names: Sequence[str] = sorted(like)
    ends = np.cumsum([int(np.prod(like[name].shape)) for name in names])
    if len(vector) != (ends[-1] if names else 0):
        raise ValueError(f"a vector of {len(vector)} numbers is not one of {ends[-1] if names else 0}")
    parts = np.split(wide, ends[:-1])
    return {n: p.reshape(like[n].shape).astype(like[n].dtype) for n, p in zip(names, parts, strict=True)}
