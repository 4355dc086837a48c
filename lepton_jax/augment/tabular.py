"""Augmentation of rows of numbers: (key, features [features]) -> features, and swaps within a batch.

Rows are blended with one another by `mixup`, which takes inputs of any shape.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lepton_jax import keys
from lepton_jax.augment.image import product
from lepton_jax.errors import InputError
from lepton_jax.types import Batch, Key

Row = Float[Array, " features"]
PerFeature = float | Sequence[float] | np.ndarray  # one number, or one per feature
RowTransform = Callable[[Key, Row], Row]


def gaussian_noise(deviation: PerFeature) -> RowTransform:
    """Normal noise of mean 0 and the given deviation added to each feature. Raises InputError."""
    if np.min(np.asarray(deviation)) < 0:
        raise InputError(f"noise of deviation {deviation} is negative", "give 0 for none, or one number per feature")

    def transform(key: Key, features: Row) -> Row:
        noise = jax.random.normal(key, features.shape, jnp.float32).astype(features.dtype)
        return features + product(_per_feature(deviation, features), noise)

    return transform


def feature_dropout(p: float, replacement: PerFeature = 0.0) -> RowTransform:
    """Each feature replaced with probability `p`, by 0 or by a number such as its mean. Raises InputError."""
    check_probability(p)

    def transform(key: Key, features: Row) -> Row:
        dropped = jax.random.uniform(key, features.shape, jnp.float32) < p
        return jnp.where(dropped, _per_feature(replacement, features), features)

    return transform


def swap_noise(p: float) -> Callable[[Key, Batch], Batch]:
    """Each feature of "input" [batch, features] replaced with probability `p` by that of another row, drawn for each.

    The other row is drawn uniformly from the batch's examples of weight other than 0, and may be the row itself. Labels
    stay. The draws depend on the key and the global index only; which row they mean depends on the batch, as for
    `mixup`, and it enters a loss the same way. Raises InputError. After the denoising autoencoders of Vincent et al.
    2010, https://jmlr.org/papers/v11/vincent10a.html
    """
    check_probability(p)

    def mixing(key: Key, batch: Batch) -> Batch:
        inputs = batch["input"]
        if inputs.ndim != 2:
            raise InputError(f"inputs of shape {inputs.shape} are not rows of features", "give [batch, features]")
        count, rows = _counting(batch)

        def swapped(key: Key, row: Shaped[Array, " features"]) -> Shaped[Array, " features"]:
            chance, choice = jax.random.split(key)
            taken = jax.random.uniform(chance, row.shape, jnp.float32) < p
            part = jax.random.uniform(choice, row.shape, jnp.float32)
            rank = jnp.minimum((part * count).astype(jnp.int32), count - 1)
            return jnp.where(taken & (count > 0), inputs[rows[rank], jnp.arange(row.size)], row)

        return {**batch, "input": jax.vmap(swapped)(keys.per_example(key, batch, "swap_noise"), inputs)}

    return mixing


def _counting(batch: Batch) -> tuple[Array, Array]:
    """How many examples count, and the rows of the batch with those first."""
    size = keys.size(batch)
    counts = batch["weight"] != 0 if "weight" in batch else jnp.ones(size, bool)
    return jnp.sum(counts, dtype=jnp.int32), jnp.argsort(~counts, stable=True)


def _per_feature(given: PerFeature, features: Row) -> Array:
    """One number for each feature. Raises InputError where there are too few or too many."""
    numbers = jnp.asarray(given, features.dtype)
    if numbers.shape not in ((), features.shape):
        raise InputError(
            f"{numbers.size} numbers for {features.size} features", "give one for all, or one for each feature"
        )
    return jnp.broadcast_to(numbers, features.shape)


def check_probability(p: float) -> None:
    """Raise InputError for what is no probability."""
    if not 0 <= p <= 1:
        raise InputError(f"features replaced with probability {p} are outside [0, 1]", "give p from 0 (none) to 1")
