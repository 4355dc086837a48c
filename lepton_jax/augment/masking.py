"""Masked language modelling: which tokens are to be predicted, and what stands in their place.

(key, tokens [length]) -> {"input": tokens with masks, "label": the tokens themselves, "masked": which are to be
predicted [length]}. Ordinary tokens are as in `text`. Exactly max(1, round(p * n)) of n ordinary tokens are masked, as
in BERT's own code; none where there are none.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lepton_jax.augment.text import Flags, Tokens, check_ids, check_probability, ordinary, uniform
from lepton_jax.errors import InputError
from lepton_jax.types import Key

Masked = dict[str, Array]
Masking = Callable[[Key, Tokens], Masked]
MASKED, RANDOM = 0.8, 0.1  # the shares of chosen tokens that are masked, or replaced by random ones; the rest stays


def token_masking(mask: int, vocabulary: int, p: float = 0.15, pad: int = 0, special: Sequence[int] = ()) -> Masking:
    """BERT's masking: of the chosen tokens 80 % become `mask`, 10 % a random id below `vocabulary`, 10 % stay.

    Raises InputError. Devlin et al. 2019, https://arxiv.org/abs/1810.04805
    """
    _check(mask, vocabulary, p)

    def masking(key: Key, tokens: Tokens) -> Masked:
        choice, action, words = jax.random.split(key, 3)
        plain = ordinary(tokens, pad, special)
        order = jnp.argsort(jnp.where(plain, uniform(choice, tokens), 2))
        rank = jnp.zeros(tokens.shape, jnp.int32).at[order].set(jnp.arange(tokens.size, dtype=jnp.int32))
        return _masked(tokens, rank < budget(plain, p), uniform(action, tokens), words, mask, vocabulary)

    return masking


def span_masking(
    mask: int,
    vocabulary: int,
    p: float = 0.15,
    stop: float = 0.2,
    longest: int = 10,
    pad: int = 0,
    special: Sequence[int] = (),
) -> Masking:
    """SpanBERT's masking: whole spans are chosen, and masked, replaced or kept together, in BERT's shares.

    Lengths are geometric with parameter `stop`, drawn anew beyond `longest` (mean 3.8 by default); starts are uniform
    over what is not chosen yet. A span ends early at a token that is not ordinary, or when enough are chosen.
    Raises InputError. Joshi et al. 2020, https://arxiv.org/abs/1907.10529
    """
    _check(mask, vocabulary, p)
    if not 0 < stop <= 1 or longest < 1:
        raise InputError(
            f"spans that stop with {stop} and are at most {longest} long", "give a stop in (0, 1] and a length from 1"
        )
    ends = jnp.cumsum(stop * (1 - stop) ** jnp.arange(longest, dtype=jnp.float32))

    def masking(key: Key, tokens: Tokens) -> Masked:
        choice, action, words = jax.random.split(key, 3)
        plain = ordinary(tokens, pad, special)
        enough = budget(plain, p)

        def short(state: tuple[Int[Array, ""], Int[Array, " length"]]) -> Array:
            return jnp.sum(state[1] >= 0) < enough

        def extend(
            state: tuple[Int[Array, ""], Int[Array, " length"]],
        ) -> tuple[Int[Array, ""], Int[Array, " length"]]:
            number, span = state
            start_key, length_key = jax.random.split(jax.random.fold_in(choice, number))
            free = plain & (span < 0)
            start = jnp.argmax(jnp.where(free, uniform(start_key, tokens), -1))
            drawn = ends[-1] * jax.random.uniform(length_key, (), jnp.float32)
            place = jnp.arange(tokens.size)
            reach = (place >= start) & (place <= start + jnp.searchsorted(ends, drawn, side="right"))
            cut = jnp.cumsum(reach & ~plain) > 0
            new = reach & free & ~cut
            new &= jnp.cumsum(new) <= enough - jnp.sum(span >= 0)
            return number + 1, jnp.where(new, number, span)

        _, span = jax.lax.while_loop(short, extend, (jnp.int32(0), jnp.full(tokens.shape, -1, jnp.int32)))
        together = uniform(action, tokens)[jnp.maximum(span, 0)]  # one number a span
        return _masked(tokens, span >= 0, together, words, mask, vocabulary)

    return masking


def budget(plain: Flags, p: float) -> Int[Array, ""]:
    """How many of the ordinary tokens are chosen."""
    count = jnp.sum(plain, dtype=jnp.int32)
    wanted = jnp.round(p * count.astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(jnp.maximum(wanted, 1), count)


def _masked(tokens: Tokens, chosen: Flags, action: Array, words: Key, mask: int, vocabulary: int) -> Masked:
    """The chosen tokens replaced by the shares; `action` holds numbers in [0, 1)."""
    random = jax.random.randint(words, tokens.shape, 0, vocabulary, jnp.int32).astype(tokens.dtype)
    replaced = jnp.where(action < MASKED, jnp.asarray(mask, tokens.dtype), random)
    changed = chosen & (action < MASKED + RANDOM)
    return {"input": jnp.where(changed, replaced, tokens), "label": tokens, "masked": chosen}


def _check(mask: int, vocabulary: int, p: float) -> None:
    check_probability(p)
    check_ids(mask)
    if mask >= vocabulary:
        raise InputError(
            f"the mask's id {mask} is outside of a vocabulary of {vocabulary}", "give the size with the mask counted in"
        )
