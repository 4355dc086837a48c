"""Where randomness comes from: a run has one key, a step folds in its number, an example its global index.

Nothing else is drawn from, so a draw depends on (seed, step, example, purpose) and not on the mesh, the
microbatch or the worker that happened to compute it.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lepton_jax.errors import InputError
from lepton_jax.types import Batch, Key, Keys


def seeded(seed: int) -> Key:
    """The key of a run. Raises InputError for a seed outside 0..2**32-1, beyond which JAX would repeat itself."""
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed {seed} is outside 0..2**32-1", "use a seed from 0 up")
    return jax.random.key(seed)


def named(key: Keys, name: str) -> Keys:
    """`key`, set apart for one purpose; works on a scalar key and on an array of keys."""
    return folded(key, zlib.crc32(name.encode()))


def folded(key: Keys, number: Any) -> Keys:
    """`key`, set apart by a whole number, a traced one too; works on a scalar key and on an array of keys."""
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, number)


def size(batch: Batch) -> int:
    """The number of examples in a batch, padding included."""
    return jax.tree.leaves(dict(batch))[0].shape[0]


def index(batch: Batch) -> Int[Array, "batch ..."]:
    """The global index of each example (of a cohort's, [clients, steps, batch]); its position where none is given."""
    given = batch.get("index")
    return jnp.arange(size(batch)) if given is None else given


def per_example(key: Key, batch: Batch, name: str) -> Keys:
    """One key per example ([batch]), for one purpose: fold_in(named(step key), global index)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(named(key, name), index(batch))
