"""Classification metrics: counts that add up on the device, and what the host makes of them in float64.

All agree with scikit-learn, with 0 where it divides by 0.
"""

import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lepton_jax.types import Mean

TOP = 5  # "top5": the truth is among so many best outputs, or among all where there are fewer classes
AVERAGES = ("macro", "micro", "weighted")


class Counts(NamedTuple):
    """What examples add up to: a monoid, so batches may be counted in any split and order.

    `loss` averages by weight, as training does; `top5` and `confusion` count once each example that has one.
    """

    loss: Mean[Any]
    top5: Mean[Any]
    confusion: Any  # int [classes, classes]; rows are the truth, columns the prediction

    def merge(self, other: "Counts") -> "Counts":
        """The counts of both groups together; on numpy arrays in their own precision."""
        return jax.tree.map(operator.add, self, other)


def count(
    losses: Float[Array, " batch"],
    outputs: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    weights: Array,
) -> Counts:
    """The counts of one batch; jittable. An example of weight 0 is padding and counts nothing, even NaN.

    Of equal outputs the first counts as the larger. Labels of counted examples must be in 0..classes-1.
    """
    counted = weights != 0
    labels = jnp.where(counted, labels, 0)
    # where, not *: a padded row may hold NaN
    loss = Mean(jnp.sum(jnp.where(counted, losses * weights, 0)), jnp.sum(weights.astype(losses.dtype)))
    hits = jnp.where(counted, _rank(outputs, labels) < TOP, False)
    top5 = Mean(jnp.sum(hits.astype(losses.dtype)), jnp.sum(counted.astype(losses.dtype)))
    classes = outputs.shape[1]
    confusion = jnp.zeros((classes, classes), jnp.int32)
    confusion = confusion.at[labels, jnp.argmax(outputs, axis=1)].add(counted.astype(jnp.int32))
    return Counts(loss, top5, confusion)


def _rank(outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Int[Array, " batch"]:
    true = jnp.take_along_axis(outputs, labels[:, None], axis=1)
    earlier = jnp.arange(outputs.shape[1])[None, :] < labels[:, None]
    return jnp.sum((outputs > true) | ((outputs == true) & earlier), axis=1)


def accuracy(confusion: Int[Array | np.ndarray, "classes classes"]) -> float:
    """The share of examples predicted right."""
    matrix = np.asarray(confusion, np.float64)
    return float(_ratio(np.trace(matrix), matrix.sum()))


def precision_recall_f1(
    confusion: Int[Array | np.ndarray, "classes classes"],
    average: Literal["macro", "micro", "weighted"] | None = "macro",
) -> tuple[Any, Any, Any]:
    """Precision, recall and F1: floats, or float64 [classes] each where `average` is None.

    macro: the mean over the classes that occur, in the truth or in the predictions (scikit-learn's default
    labels). micro: over all examples together. weighted: by the number of true examples of each class.
    """
    matrix = np.asarray(confusion, np.float64)
    hits, predicted, true = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    if average == "micro":
        hits, predicted, true = hits.sum(), predicted.sum(), true.sum()
    scores = _ratio(hits, predicted), _ratio(hits, true), _ratio(2 * hits, predicted + true)
    if average is None:
        return scores
    if average == "micro":
        precision, recall, f1 = scores
        return float(precision), float(recall), float(f1)
    weight = true if average == "weighted" else (predicted + true > 0).astype(np.float64)
    precision, recall, f1 = (float(_ratio(weight @ score, weight.sum())) for score in scores)
    return precision, recall, f1


def _ratio(part: Any, whole: Any) -> Any:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def one_vs_rest_auc(
    scores: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " classes"]:
    """The exact area under each class's ROC curve against all others (Mann and Whitney 1947).

    It is the share of pairs, one example of the class and one of another, that the class's score puts in the
    right order; ties count half.
    NaN for a class that no example or every example has, where scikit-learn raises or warns.
    """
    return np.array([_auc(scores[:, c], labels == c) for c in range(scores.shape[1])], np.float64)


def _auc(scores: Float[np.ndarray, " examples"], positive: np.ndarray) -> float:
    own, others = scores[positive], np.sort(scores[~positive])
    if not len(own) or not len(others):
        return float("nan")
    below = np.searchsorted(others, own, "left").sum()
    below_or_equal = np.searchsorted(others, own, "right").sum()
    return float((below + below_or_equal) / (2 * len(own) * len(others)))


def macro_auc(areas: Float[np.ndarray, " classes"]) -> float:
    """The mean area over the classes for which it is defined; NaN if there are none."""
    defined = areas[~np.isnan(areas)]
    return float(defined.mean()) if len(defined) else float("nan")


def per_class_table(
    confusion: Int[Array | np.ndarray, "classes classes"],
    areas: Float[np.ndarray, " classes"] | None = None,
    names: list[str] | None = None,
) -> list[dict[str, Any]]:
    """A row for each class: class, examples, precision, recall, f1, and auc where `areas` are given."""
    precision, recall, f1 = precision_recall_f1(confusion, average=None)
    examples = np.asarray(confusion).sum(axis=1)
    rows = []
    for c in range(len(examples)):
        row = {"class": names[c] if names else str(c), "examples": int(examples[c])}
        row |= {"precision": float(precision[c]), "recall": float(recall[c]), "f1": float(f1[c])}
        rows.append(row if areas is None else row | {"auc": float(areas[c])})
    return rows
