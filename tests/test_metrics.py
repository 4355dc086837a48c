"""Metrics against scikit-learn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from lepton_jax import metrics

CLASSES = 7


def examples(seed, n, classes=CLASSES):
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(n, classes)).astype(np.float32)
    labels = generator.integers(0, classes, n).astype(np.int32)
    return generator.gamma(1, size=n).astype(np.float32), outputs, labels


def tolerant(function: Any, *arguments: Any, **options: Any) -> Any:
    """scikit-learn with 0 for 0 / 0."""
    return function(*arguments, zero_division=0, **options)


counted = jax.jit(metrics.count)


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_counts_are_scikit_learn_s(n):
    losses, outputs, labels = examples(n, n)
    counts = counted(losses, outputs, labels, np.ones(n, np.float32))
    predictions = outputs.argmax(axis=1)
    expected = sk.confusion_matrix(labels, predictions, labels=range(CLASSES))
    np.testing.assert_array_equal(counts.confusion, expected)
    np.testing.assert_allclose(counts.loss.value(), losses.astype(np.float64).mean(), rtol=1e-6)
    top5 = sk.top_k_accuracy_score(labels, outputs, k=5, labels=range(CLASSES))
    np.testing.assert_allclose(counts.top5.value(), top5, rtol=1e-6)
    assert metrics.accuracy(counts.confusion) == sk.accuracy_score(labels, predictions)


def test_padding_counts_nothing_even_if_it_is_nan():
    losses, outputs, labels = examples(0, 6)
    alone = counted(losses, outputs, labels, np.ones(6, np.float32))
    nan = np.full(2, np.nan, np.float32)
    padded = counted(
        np.concatenate([nan, losses]),
        np.concatenate([np.tile(nan[:, None], (1, CLASSES)), outputs]),
        np.concatenate([np.array([-1, 10**6], np.int32), labels]),
        np.array([0, 0, 1, 1, 1, 1, 1, 1], np.float32),
    )
    jax.tree.map(np.testing.assert_array_equal, padded, alone)


def test_loss_is_weighted_and_counts_are_whole():
    losses, outputs, labels = examples(1, 8)
    weights = np.array([0, 0.5, 2, 1, 0, 3, 1, 0.25], np.float32)
    counts = counted(losses, outputs, labels, weights)
    np.testing.assert_allclose(counts.loss.value(), np.average(losses, weights=weights), rtol=1e-6)
    assert int(counts.confusion.sum()) == int(counts.top5.weight) == 6


def test_ties_go_to_the_first():
    outputs = jnp.zeros((7, 7))
    counts = counted(jnp.zeros(7), outputs, jnp.arange(7, dtype=jnp.int32), jnp.ones(7))
    np.testing.assert_array_equal(counts.confusion, np.tile(np.eye(7)[0], (7, 1)))
    assert float(counts.top5.total) == 5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 11))
def test_counts_merge(seed, cut):
    losses, outputs, labels = examples(seed, 12)
    first = (np.arange(12) < cut).astype(np.float32)
    whole = counted(losses, outputs, labels, np.ones(12, np.float32))
    merged = counted(losses, outputs, labels, first).merge(counted(losses, outputs, labels, 1 - first))
    np.testing.assert_array_equal(merged.confusion, whole.confusion)
    np.testing.assert_allclose(merged.loss.value(), whole.loss.value(), rtol=1e-5)
    np.testing.assert_array_equal(merged.top5.total, whole.top5.total)


def test_merge_keeps_the_precision_of_numpy():
    loss = metrics.Mean(np.float64(1), np.float64(2**53))
    one = metrics.Counts(loss, metrics.Mean(0.0, 0.0), np.array([[2**40]], np.int64))
    merged = one.merge(one)
    assert merged.loss.weight == 2**54
    assert merged.confusion == 2**41


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), classes=st.integers(2, 8))
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
def test_precision_recall_f1_are_scikit_learn_s(average, seed, n, classes):
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(0, classes, (2, n))  # often with classes that do not occur
    confusion = sk.confusion_matrix(truth, predicted, labels=range(classes))
    labels = range(classes) if average is None else None
    expected = tolerant(sk.precision_recall_fscore_support, truth, predicted, average=average, labels=labels)[:3]
    for ours, theirs in zip(metrics.precision_recall_f1(confusion, average), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        assert average is None or isinstance(ours, float)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), ties=st.booleans())
def test_auc_is_scikit_learn_s(seed, n, ties):
    _, scores, labels = examples(seed, n, 4)
    scores = np.round(scores) if ties else scores
    areas = metrics.one_vs_rest_auc(scores, labels)
    for c in range(4):
        if 0 < (labels == c).sum() < n:
            np.testing.assert_allclose(areas[c], sk.roc_auc_score(labels == c, scores[:, c]), rtol=1e-12)
        else:
            assert np.isnan(areas[c])


def test_macro_auc_is_scikit_learn_s_where_that_is_defined():
    _, outputs, labels = examples(3, 50, 4)
    scores = np.array(jax.nn.softmax(outputs), np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    expected = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    np.testing.assert_allclose(metrics.macro_auc(metrics.one_vs_rest_auc(scores, labels)), expected, rtol=1e-12)


def test_macro_auc_averages_over_what_is_defined():
    assert metrics.macro_auc(np.array([0.5, np.nan, 1.0])) == 0.75
    assert np.isnan(metrics.macro_auc(np.array([np.nan, np.nan])))


def test_per_class_table():
    truth, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    confusion = sk.confusion_matrix(truth, predicted, labels=range(4))
    table = metrics.per_class_table(confusion, np.array([0.1, 0.2, 0.3, np.nan]), ["a", "b", "c", "d"])
    report = tolerant(sk.classification_report, truth, predicted, labels=range(4), output_dict=True)
    for c, row in enumerate(table):
        theirs = report[str(c)]
        ours = (row["precision"], row["recall"], row["f1"], row["examples"])
        assert ours == pytest.approx((theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"]))
    assert [row["class"] for row in table] == ["a", "b", "c", "d"]
    assert table[1]["auc"] == 0.2
    assert "auc" not in metrics.per_class_table(confusion)[0]


def test_nothing_counted_is_zero():
    nothing = np.zeros((3, 3), np.int64)
    assert metrics.accuracy(nothing) == 0
    assert metrics.precision_recall_f1(nothing, "weighted") == (0, 0, 0)
