"""Augmentation of token sequences: (key, tokens [length]) -> tokens, of static shape, for `vmap` over per-example keys.

Ordinary tokens are all but padding and the special ids (separators, class tokens), which are never touched, moved or
chosen. Draws do not depend on the batch.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lepton_jax.errors import InputError
from lepton_jax.types import Key

Tokens = Array  # integers [length]
Flags = Bool[Array, " length"]
TextTransform = Callable[[Key, Tokens], Tokens]


def token_dropout(p: float, replacement: int, pad: int = 0, special: Sequence[int] = ()) -> TextTransform:
    """Each ordinary token replaced by the id `replacement` with probability `p` (Bowman et al. 2016).

    https://arxiv.org/abs/1511.06349. Raises InputError.
    """
    check_probability(p)
    check_ids(replacement)

    def transform(key: Key, tokens: Tokens) -> Tokens:
        dropped = ordinary(tokens, pad, special) & (uniform(key, tokens) < p)
        return jnp.where(dropped, jnp.asarray(replacement, tokens.dtype), tokens)

    return transform


def token_deletion(p: float, pad: int = 0, special: Sequence[int] = ()) -> TextTransform:
    """Each ordinary token deleted with probability `p`; the rest moves up, and padding follows (Wei and Zou 2019).

    Of nothing but ordinary tokens, one at least is left. https://arxiv.org/abs/1901.11196. Raises InputError.
    """
    check_probability(p)

    def transform(key: Key, tokens: Tokens) -> Tokens:
        plain, number = ordinary(tokens, pad, special), uniform(key, tokens)
        last = jnp.arange(tokens.size) == jnp.argmax(jnp.where(plain, number, -1))
        gone = (plain & (number < p) & ~last) | (tokens == pad)
        order = jnp.argsort(gone, stable=True)
        return jnp.where(gone[order], jnp.asarray(pad, tokens.dtype), tokens[order])

    return transform


def random_swap(swaps: int, pad: int = 0, special: Sequence[int] = ()) -> TextTransform:
    """Two ordinary tokens, drawn uniformly, exchanged, `swaps` times over (Wei and Zou 2019).

    https://arxiv.org/abs/1901.11196. Raises InputError.
    """
    if swaps < 0:
        raise InputError(f"{swaps} swaps are negative", "give 0 or more")

    def transform(key: Key, tokens: Tokens) -> Tokens:
        plain = ordinary(tokens, pad, special)
        count, places = jnp.sum(plain, dtype=jnp.int32), jnp.argsort(~plain, stable=True)

        def swap(tokens: Tokens, key: Key) -> tuple[Tokens, None]:
            pair = places[jax.random.randint(key, (2,), 0, jnp.maximum(count, 1), jnp.int32)]
            return tokens.at[pair].set(tokens[pair[::-1]]), None

        swapped = jax.lax.scan(swap, tokens, jax.random.split(key, swaps))[0]
        return jnp.where(plain, swapped, tokens)

    return transform


def ordinary(tokens: Tokens, pad: int, special: Sequence[int]) -> Flags:
    """Which tokens may be touched. Raises InputError for what is not one sequence of ids."""
    if tokens.ndim != 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(
            f"tokens of shape {tokens.shape} and dtype {tokens.dtype} are not a sequence of ids",
            "give integers [length]; over a batch, use jax.vmap with one key per example",
        )
    kept = jnp.asarray((pad, *special), tokens.dtype)
    return jnp.all(tokens[:, None] != kept[None, :], axis=1)


def uniform(key: Key, tokens: Tokens) -> Float[Array, " length"]:
    """A number in [0, 1) for each token."""
    return jax.random.uniform(key, tokens.shape, jnp.float32)


def check_probability(p: float) -> None:
    """Raise InputError for what is no probability."""
    if not 0 <= p <= 1:
        raise InputError(f"tokens touched with probability {p} are outside [0, 1]", "give p from 0 (none) to 1 (all)")


def check_ids(*ids: int) -> None:
    """Raise InputError for an id below 0."""
    if min(ids) < 0:
        raise InputError(f"the token id {min(ids)} is negative", "give ids of the vocabulary, from 0 up")
