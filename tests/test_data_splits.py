"""Splits, class weights and mixtures: parts of a source, and several as one."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lepton_jax.data import Arrays, Stream, Subset, class_weights, gather, labels, mixture, split, weighted
from lepton_jax.data.mixing import apportioned, interleaved
from lepton_jax.data.sources import in_memory
from lepton_jax.errors import InputError

SHARES = st.lists(st.integers(1, 9), min_size=1, max_size=4)
COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6)


class Lazy:
    """A source that says nothing of itself, and counts what is read."""

    def __init__(self, columns, bad=()):
        self.columns, self.bad, self.reads = columns, bad, 0

    def __len__(self):
        return len(self.columns["input"])

    def __getitem__(self, i):
        self.reads += 1
        return {name: column[i] for name, column in self.columns.items()}


def of_classes(counts):
    """An example per count, numbered, in an order that mixes the classes."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    numbers = np.random.default_rng(0).permutation(numbers)
    return Arrays({"input": np.arange(len(numbers), dtype=np.float32)[:, None], "label": numbers})


def positions(view):
    return gather(view, np.arange(len(view)))["input"][:, 0].astype(int)


def fractions_of(shares):
    return [share / sum(shares) for share in shares]


# Splits


@settings(max_examples=150, deadline=None)
@given(counts=COUNTS, shares=SHARES, seed=st.integers(0, 2**64 - 1), stratify=st.booleans())
def test_every_example_is_in_one_part_and_every_class_has_its_share(counts, shares, seed, stratify):
    source, fractions = of_classes(counts), fractions_of(shares)
    try:
        views = split(source, fractions, seed, stratify)
    except InputError:  # of so few examples that a part is empty
        assume(False)
        raise
    parts = [positions(view) for view in views]
    assert sorted(np.concatenate(parts).tolist()) == list(range(sum(counts)))
    for part, view, fraction in zip(parts, views, fractions, strict=True):
        assert np.all(np.diff(part) > 0)  # the order of the source
        np.testing.assert_array_equal(labels(view), gather(source, part)["label"])
        groups = np.bincount(labels(view), minlength=len(counts)) if stratify else np.array([len(view)])
        wanted = np.array(counts if stratify else [sum(counts)]) * fraction
        assert np.all(np.abs(groups - wanted) < 1 + 1e-6)


@pytest.mark.parametrize("shares", [(8, 2), (7, 2, 1), (1, 1, 1)])
def test_roundings_of_the_classes_cancel(shares):
    """A hundred classes of seven each round by up to one, all of them together too."""
    views = split(of_classes([7] * 100), fractions_of(shares), seed=5)
    for fraction, view in zip(fractions_of(shares), views, strict=True):
        assert abs(len(view) - 700 * fraction) < 1 + 1e-6


def test_a_split_is_drawn_by_the_seed_alone_and_evenly():
    source = of_classes([20, 20])
    first, again, other = (positions(split(source, (0.5, 0.5), seed)[0]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    times = np.zeros(40)
    for seed in range(400):
        times[positions(split(source, (0.25, 0.75), seed)[0])] += 1
    # 400 draws of probability 1/4: 5 deviations around 100
    assert np.all(np.abs(times - 100) < 5 * np.sqrt(400 * 0.25 * 0.75))


def test_a_split_does_not_depend_on_how_the_source_is_read():
    source = of_classes([9, 13])
    for one, two in zip(split(source, (0.6, 0.4), 1), split(Lazy(source.columns), (0.6, 0.4), 1), strict=True):
        np.testing.assert_array_equal(one.indices, two.indices)
        assert (in_memory(one), in_memory(two)) == (True, False)


def test_a_view_reads_its_own_examples():
    source = Lazy(of_classes([30]).columns, bad=("a.png",))
    view = Subset(source, np.array([5, 2, 9]))
    assert (len(view), view[1]["input"][0], view.bad) == (3, 2, ("a.png",))
    np.testing.assert_array_equal(positions(Subset(view, np.array([2, 0]))), [9, 5])
    source.reads = 0
    batch = Stream(view, 2, seed=0).batch(0)
    assert source.reads == 2
    np.testing.assert_array_equal(batch["input"][:, 0], np.array([5, 2, 9])[batch["index"]])


@pytest.mark.parametrize(
    ("fractions", "options", "words"),
    [
        ((0.5, 0.4), {}, "do not make a split\n.*add up to 1"),
        ((1.5, -0.5), {}, "do not make a split"),
        ((), {}, "do not make a split"),
        ((float("nan"), 0.5), {}, "do not make a split"),
        ((0.99, 0.01), {}, "a part of 0.01 of 8 examples is empty"),
        ((0.5, 0.5), {"seed": -1}, "seed -1"),
    ],
)
def test_splits_that_cannot_be(fractions, options, words):
    with pytest.raises(InputError, match=words):
        split(of_classes([4, 4]), fractions, **{"seed": 0, **options})


def test_examples_without_a_class_split_without_stratifying():
    source = Arrays({"input": np.zeros((10, 2))})
    with pytest.raises(InputError, match="no class each"):
        split(source, (0.5, 0.5), 0)
    assert [len(view) for view in split(source, (0.7, 0.3), 0, stratify=False)] == [7, 3]


# Weights


@pytest.mark.parametrize("kind", [Lazy, Arrays])
def test_class_weights_are_scikit_learns(kind):
    from sklearn.utils.class_weight import compute_class_weight

    source = kind(of_classes([3, 40, 11, 300]).columns)
    truth = compute_class_weight("balanced", classes=np.arange(4), y=labels(source))
    made = class_weights(source, 4)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, truth, rtol=1e-6)
    weights = gather(weighted(source, made), np.arange(len(source)))["weight"]
    assert weights.dtype == np.float32
    np.testing.assert_allclose(np.bincount(labels(source), weights), np.full(4, len(source) / 4), rtol=1e-5)


def test_a_weight_that_is_there_stays_a_factor():
    source = Lazy({**of_classes([3, 3]).columns, "weight": np.array([1, 0, 0.5, 1, 0, 1], np.float32)}, ("b.png",))
    made = weighted(source, [2.0, 4.0])
    rows = gather(made, np.arange(6))
    np.testing.assert_array_equal(rows["weight"], np.array([2, 4])[rows["label"]] * source.columns["weight"])
    assert made[2]["weight"] == rows["weight"][2]
    assert (made.bad, in_memory(made), len(made)) == (("b.png",), False, 6)
    np.testing.assert_array_equal(labels(made), rows["label"])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], "labels from 0 to 1 and weights for 1 classes"),
        ([1.0, -1.0], "do not weigh classes"),
        ([1.0, np.inf], "do not weigh classes"),
        ([[1.0, 1.0]], "do not weigh classes"),
    ],
)
def test_weights_that_cannot_be(weights, words):
    with pytest.raises(InputError, match=words):
        weighted(of_classes([2, 2]), weights)


def test_classes_that_cannot_be_weighed():
    with pytest.raises(InputError, match="class 1 has no examples"):
        class_weights(of_classes([2, 0, 2]), 3)
    with pytest.raises(InputError, match=r"labels from 0 to 2, outside 0\.\.1"):
        class_weights(of_classes([2, 0, 2]), 2)


# Mixtures


def sources_of(sizes):
    """Sources whose inputs are (source, example)."""
    return [
        Arrays({"input": np.stack([np.full(n, k), np.arange(n)], 1), "label": np.zeros(n, int)})
        for k, n in enumerate(sizes)
    ]


@settings(max_examples=100, deadline=None)
@given(shares=SHARES, total=st.integers(1, 300))
def test_whole_numbers_follow_the_shares(shares, total):
    counts = apportioned(np.array(fractions_of(shares)), total)
    assert counts.sum() == total
    assert np.all(np.abs(counts - np.array(fractions_of(shares)) * total) < 1 + 1e-6)


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any))
def test_every_beginning_has_the_proportions_of_the_whole(counts):
    """Turn j of n at (j + 1/2) / n: the classical bound for such a merge, half the sources more than a half."""
    counts = np.array(counts)
    origin, turn = interleaved(counts)
    seen = np.cumsum(origin[:, None] == np.arange(len(counts)), axis=0)
    np.testing.assert_array_equal(seen[-1], counts)
    np.testing.assert_array_equal(turn, seen[np.arange(len(origin)), origin] - 1)
    wanted = np.arange(1, len(origin) + 1)[:, None] * counts / counts.sum()
    assert np.all(np.abs(seen - wanted) <= 1 + len(counts) / 2 * counts / counts.sum())


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), data=st.data(), seed=st.integers(0, 2**64 - 1))
def test_a_mixture_holds_every_source_whole_in_proportion(sizes, data, seed):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    made = mixture(sources_of(sizes), weights, seed)
    rows = gather(made, np.arange(len(made)))["input"]
    counts = np.bincount(rows[:, 0], minlength=len(sizes))
    assert np.all(np.abs(counts - np.array(fractions_of(weights)) * len(made)) < 1 + 1e-6)
    for number, size in enumerate(sizes):
        mine = rows[rows[:, 0] == number, 1]
        assert len(mine) >= size  # whole at least once
        for start in range(0, len(mine) - size + 1, size):
            np.testing.assert_array_equal(np.sort(mine[start : start + size]), np.arange(size))
    for p in range(0, len(made), 7):
        np.testing.assert_array_equal(made[p]["input"], rows[p])


def test_a_mixture_is_a_function_of_its_seed():
    first, again, other = (mixture(sources_of([50, 20]), (0.7, 0.3), seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.example, again.example)
    np.testing.assert_array_equal(first.origin, other.origin)
    assert not np.array_equal(first.example, other.example)


def test_a_mixture_streams_like_any_source():
    sources = [sources_of([30, 6])[0], Lazy(sources_of([30, 6])[1].columns, ("c.png",))]
    made = mixture(sources, (3, 1), seed=2, examples=40)
    assert (made.bad, in_memory(made)) == (("c.png",), False)
    stream = Stream(made, 16, seed=9, threads=2)
    epoch = []
    for step, batch in enumerate(stream.batches(0, 5)):
        np.testing.assert_array_equal(batch["index"], stream.indices(step))
        np.testing.assert_array_equal(batch["input"], gather(made, batch["index"])["input"])
        assert batch["label"].dtype == np.int32
        epoch.extend(batch["input"][:, 0])
    assert np.bincount(epoch[:40]).tolist() == np.bincount(epoch[40:]).tolist() == [30, 10]


@pytest.mark.parametrize(
    ("sources", "weights", "words"),
    [
        ([], [], "0 sources"),
        (sources_of([2, 2]), [1], "2 sources with 1 weights"),
        (sources_of([2, 2]), [1, 0], "not all positive"),
        (sources_of([2, 2]), [1, float("nan")], "not all positive"),
        (sources_of([2, 0]), [1, 1], "source 1 of the mixture has no examples"),
        (
            [sources_of([2])[0], Arrays({"input": np.zeros((2, 3)), "label": [0, 1]})],
            [1, 1],
            r"source 1 of the mixture has input float32 \[3\], label",
        ),
        (sources_of([9, 9]), [1, 1e-12], "mixture of"),
    ],
)
def test_mixtures_that_cannot_be(sources, weights, words):
    with pytest.raises(InputError, match=words):
        mixture(sources, weights, 0)
