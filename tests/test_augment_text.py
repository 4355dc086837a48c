"""Token dropout, deletion, swaps and masking: what is never touched, how often the rest is, and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.augment import masking, text
from lepton_jax.errors import InputError

PAD, CLS, SEP, MASK, UNKNOWN, VOCABULARY = 0, 1, 2, 3, 4, 50
SPECIAL = (CLS, SEP)
LENGTH = 24
TRANSFORMS = {
    "dropout": jax.jit(text.token_dropout(0.4, UNKNOWN, PAD, SPECIAL)),
    "deletion": jax.jit(text.token_deletion(0.4, PAD, SPECIAL)),
    "swap": jax.jit(text.random_swap(5, PAD, SPECIAL)),
}
MASKINGS = {
    "token": jax.jit(masking.token_masking(MASK, VOCABULARY, 0.3, PAD, SPECIAL)),
    "span": jax.jit(masking.span_masking(MASK, VOCABULARY, 0.3, pad=PAD, special=SPECIAL)),
}
sentences = st.lists(st.sampled_from([CLS, SEP, *range(5, 12)]), min_size=0, max_size=LENGTH)
seeds = st.integers(0, 2**31 - 1)


def padded(words) -> np.ndarray:
    return np.array([*words, *[PAD] * (LENGTH - len(words))], np.int32)


def is_plain(tokens) -> np.ndarray:
    return ~np.isin(tokens, (PAD, *SPECIAL))


@pytest.mark.parametrize("name", ["dropout", "swap"])
@given(words=sentences, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_padding_and_special_ids_stay_where_they_are(name, words, seed):
    tokens = padded(words)
    changed = np.asarray(TRANSFORMS[name](jax.random.key(seed), tokens))
    assert changed.dtype == tokens.dtype
    np.testing.assert_array_equal(changed[~is_plain(tokens)], tokens[~is_plain(tokens)])
    if name == "swap":
        np.testing.assert_array_equal(np.sort(changed), np.sort(tokens))
    else:
        touched = changed != tokens
        assert set(changed[touched]) <= {UNKNOWN}


@given(words=sentences, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_deletion_keeps_order_special_ids_and_at_least_one_word(words, seed):
    tokens = padded(words)
    left = np.asarray(TRANSFORMS["deletion"](jax.random.key(seed), tokens)).tolist()
    kept = [token for token in left if token != PAD]
    assert left == padded(kept).tolist()
    rest = iter(tokens.tolist())
    assert all(token in rest for token in kept)  # a subsequence
    assert [t for t in kept if t in SPECIAL] == [t for t in tokens if t in SPECIAL]
    assert any(is_plain(kept)) == any(is_plain(tokens))


def test_rates():
    tokens = jnp.asarray(padded(range(10, 10 + LENGTH)))
    keys = jax.random.split(jax.random.key(0), 5000)
    dropped = np.asarray(jax.vmap(TRANSFORMS["dropout"], (0, None))(keys, tokens)) == UNKNOWN
    assert abs(dropped.mean() - 0.4) < 5 * np.sqrt(0.24 / dropped.size)
    deleted = np.asarray(jax.vmap(TRANSFORMS["deletion"], (0, None))(keys, tokens)) == PAD
    assert abs(deleted.mean() - 0.4) < 5 * np.sqrt(0.24 / deleted.size)
    one = jax.vmap(text.random_swap(1, PAD), (0, None))(keys, tokens)
    places = np.bincount(np.nonzero(np.asarray(one) != np.asarray(tokens))[1], minlength=LENGTH)
    assert scipy.stats.chisquare(places).pvalue > 1e-4


@pytest.mark.parametrize("name", list(MASKINGS))
@given(words=sentences, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_masking_chooses_its_share_and_labels_are_the_tokens(name, words, seed):
    tokens = padded(words)
    masked = {key: np.asarray(value) for key, value in MASKINGS[name](jax.random.key(seed), tokens).items()}
    count = int(is_plain(tokens).sum())
    assert masked["masked"].sum() == min(count, max(1, round(0.3 * count)))
    assert not masked["masked"][~is_plain(tokens)].any()
    np.testing.assert_array_equal(masked["label"], tokens)
    np.testing.assert_array_equal(masked["input"][~masked["masked"]], tokens[~masked["masked"]])


@pytest.mark.parametrize("name", list(MASKINGS))
def test_chosen_tokens_are_masked_replaced_and_kept_by_80_10_10(name):
    # nothing but the id 49 before, so that a random replacement shows, but for 1 in 50
    tokens = np.full(LENGTH, 49, np.int32)
    keys = jax.random.split(jax.random.key(1), 4000)
    masked = jax.vmap(MASKINGS[name], (0, None))(keys, tokens)
    chosen, after = np.asarray(masked["masked"]), np.asarray(masked["input"])
    total = chosen.sum()
    share = np.array([0.8 + 0.1 / 50, 0.1 * 48 / 50, 0.1 + 0.1 / 50])
    counts = np.array([(chosen & (after == MASK)).sum(), 0, (chosen & (after == 49)).sum()])
    counts[1] = total - counts.sum()
    # tokens of a span go together: up to 7 of them to one draw
    width = 1 if name == "token" else 7
    assert scipy.stats.chisquare(counts / width, share * total / width).pvalue > 1e-4
    random = after[chosen & ~np.isin(after, (MASK, 49))]
    assert set(np.unique(random)) == set(range(VOCABULARY)) - {MASK, 49}


def test_tokens_are_chosen_uniformly():
    tokens = padded(range(10, 30))
    keys = jax.random.split(jax.random.key(2), 5000)
    chosen = np.asarray(jax.vmap(MASKINGS["token"], (0, None))(keys, tokens)["masked"])
    assert scipy.stats.chisquare(chosen.sum(0)[:20]).pvalue > 1e-4


def test_first_spans_are_geometric():
    # one token is enough for most sentences to hold a single span: compare runs of a long sentence, far from its ends
    masked = masking.span_masking(MASK, VOCABULARY, 0.02, pad=PAD)
    tokens = jnp.full(512, 7, jnp.int32)  # 10 are chosen: the first span is never cut short by the budget
    keys = jax.random.split(jax.random.key(3), 6000)
    chosen = np.asarray(jax.vmap(masked, (0, None))(keys, tokens)["masked"])
    assert (chosen.sum(1) == 10).all()
    runs = (np.diff(np.pad(chosen, ((0, 0), (1, 0))).astype(int), axis=1) == 1).sum(1)
    lengths = np.arange(1, 11)
    chance = 0.2 * 0.8 ** (lengths - 1)
    chance /= chance.sum()
    reached = np.zeros(11)  # how probable it is that spans drawn one after the other end exactly at a total
    reached[0] = 1
    expected_spans = 0.0
    for total in range(10):
        expected_spans += reached[total]  # a span begins here, and at no total of 10 or more
        for length, p in zip(lengths, chance, strict=True):
            if total + length <= 10:
                reached[total + length] += reached[total] * p
    # spans that touch or overlap count once, which is rare here: at most 10 * 10 * 2 places of 512
    assert expected_spans * 0.93 < runs.mean() < expected_spans * 1.02


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: text.token_dropout(1.5, UNKNOWN),
        lambda: text.token_dropout(0.1, -1),
        lambda: text.token_deletion(-0.1),
        lambda: text.random_swap(-1),
        lambda: masking.token_masking(50, 50),
        lambda: masking.span_masking(MASK, VOCABULARY, stop=0),
        lambda: masking.span_masking(MASK, VOCABULARY, longest=0),
        lambda: text.token_dropout(0.1, UNKNOWN)(jax.random.key(0), jnp.zeros((2, 3), jnp.int32)),
        lambda: masking.token_masking(MASK, VOCABULARY)(jax.random.key(0), jnp.zeros(3)),
    ],
)
def test_bad_input(wrong):
    with pytest.raises(InputError) as error:
        wrong()
    assert error.value.remedy
