"""Exact evaluation and prediction on any mesh: every example counts once, padding counts nothing."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from lepton_jax import keys, metrics
from lepton_jax.errors import InputError
from lepton_jax.losses import Criterion, at_least_float32
from lepton_jax.mesh import batch_sharding, batch_shards, place, replicated
from lepton_jax.metrics import Counts
from lepton_jax.types import Batch, Mean, Model, Params, Stats, Variables

AHEAD = 2  # batches on the way while the next is launched


class Evaluation(NamedTuple):
    """What a model does on a data set; the arrays hold its examples in order, without padding.

    `metrics`: loss, accuracy, top5, {precision,recall,f1}_{macro,micro,weighted} and auc, which is NaN where
    no class has both examples and others.
    """

    metrics: dict[str, float]
    confusion: Int[np.ndarray, "classes classes"]  # rows are the truth, columns the prediction
    per_class: list[dict[str, Any]]
    scores: Float[np.ndarray, "examples classes"]  # softmax probabilities, float64
    predictions: Int[np.ndarray, " examples"]
    labels: Int[np.ndarray, " examples"]


Evaluate = Callable[[Params, Stats, Iterable[Batch]], Evaluation]
Predict = Callable[[Params, Stats, Any], Any]


def batch_size_for(mesh: Mesh, wanted: int) -> int:
    """The smallest batch size of at least `wanted` that the mesh splits evenly. Raises InputError below 1."""
    if wanted < 1:
        raise InputError(f"a batch of {wanted} examples is empty", "give a batch size of at least 1")
    shards = batch_shards(mesh)
    return -(-wanted // shards) * shards


def evaluator(model: Model, criterion: Criterion, mesh: Mesh, classes: int) -> Evaluate:
    """`evaluate(params, stats, batches) -> Evaluation` for a classifier of `classes` outputs.

    `criterion` is (outputs, labels) -> a loss per example. `batches` hold numpy "input", "label" (integers
    [batch]) and maybe "weight", 0 for padding; a batch shorter than the first is padded to it, so that the
    model compiles once. Parameters keep their sharding. Make one evaluator and call it often.
    `evaluate` raises InputError for outputs that are not [batch, classes] or not numbers, labels outside
    0..classes-1, and a data set without examples.
    """

    @partial(jax.jit, out_shardings=replicated(mesh))
    def measure(variables: Variables, batch: Batch) -> tuple[Counts, Any, Any, Any]:
        outputs = _outputs(model, variables, batch["input"])
        _require_shapes(outputs, batch["label"], classes)
        losses = criterion(outputs, batch["label"])
        counts = metrics.count(losses, outputs, batch["label"], batch["weight"])
        return counts, outputs, batch["label"], batch["weight"]

    def evaluate(params: Params, stats: Stats, batches: Iterable[Batch]) -> Evaluation:
        variables = _variables(params, stats)

        def launch(batch: Batch) -> PyTree:
            with jax.set_mesh(mesh):
                return measure(variables, place(batch, mesh))

        results = [_on_host(*result) for result in _fetched(map(launch, _alike(batches, mesh)))]
        if not sum(len(labels) for _, _, labels in results):
            raise InputError("there is no example to evaluate on", "give a data set of at least one example")
        counts, outputs, labels = (list(part) for part in zip(*results, strict=True))
        total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *counts)
        return _evaluation(total, np.concatenate(outputs), np.concatenate(labels))

    return evaluate


def loss_evaluator(model: Model, criterion: Criterion, mesh: Mesh) -> Callable[..., dict[str, float]]:
    """`evaluate(params, stats, batches) -> {"loss": mean}` for labels and outputs of any shape: regression, say.

    Batches are as for `evaluator`, and padded alike.
    """

    @partial(jax.jit, out_shardings=replicated(mesh))
    def measure(variables: Variables, batch: Batch) -> Mean[Array]:
        losses = criterion(_outputs(model, variables, batch["input"]), batch["label"])
        total = jnp.sum(jnp.where(batch["weight"] == 0, 0, losses * batch["weight"]))
        return Mean(total, jnp.sum(batch["weight"]))

    def evaluate(params: Params, stats: Stats, batches: Iterable[Batch]) -> dict[str, float]:
        with jax.set_mesh(mesh):
            launched = (measure(_variables(params, stats), place(batch, mesh)) for batch in _alike(batches, mesh))
            means = [(float(mean.total), float(mean.weight)) for mean in _fetched(launched)]
        total, weight = (sum(part) for part in zip(*means, strict=True))
        return {"loss": total / weight}

    return evaluate


def predictor(model: Model, mesh: Mesh, batch_size: int = 256) -> Predict:
    """`predict(params, stats, inputs) -> outputs`, numpy, for any number of examples [n, ...] including none.

    Inputs go through in batches of about `batch_size`, the last one padded, so the model compiles once. In a
    run of several processes each gives the same inputs and gets all outputs. Floating outputs are at least
    float32.
    """
    size = batch_size_for(mesh, batch_size)
    forward = jax.jit(partial(_outputs, model), out_shardings=replicated(mesh))

    def predict(params: Params, stats: Stats, inputs: Any) -> Any:
        variables, inputs = _variables(params, stats), jax.tree.map(np.asarray, inputs)
        examples = jax.tree.leaves(inputs)[0].shape[0]

        def launch(start: int) -> Any:
            part = jax.tree.map(lambda x: _padded(x[start : start + size], size), inputs)
            with jax.set_mesh(mesh):
                return forward(variables, jax.device_put(part, batch_sharding(mesh)))

        outputs = list(_fetched(map(launch, range(0, max(examples, 1), size))))
        return jax.tree.map(lambda *rows: np.concatenate(rows)[:examples], *outputs)

    return predict


def _variables(params: Params, stats: Stats) -> Variables:
    return {"params": params, **stats.get("model", {})}


def _outputs(model: Model, variables: Variables, inputs: Any) -> Any:
    outputs, _ = model.apply(variables, inputs, False, None)
    return at_least_float32(outputs)


def _require_shapes(outputs: Any, labels: Any, classes: int) -> None:
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != classes:
        found = type(outputs).__name__ if shape is None else f"shape {list(shape)}"
        raise InputError(
            f"the model's outputs have {found} where [batch, {classes}] is needed",
            f"give the model {classes} outputs, or evaluate with its own number of classes",
        )
    if labels.ndim != 1:
        raise InputError(f"the labels have shape {list(labels.shape)}", "give one integer per example")


def _alike(batches: Iterable[Batch], mesh: Mesh) -> Iterator[Batch]:
    """The same batches with a weight, all of the first one's size, rounded up to what the mesh splits."""
    processes = jax.process_count()
    size = 0
    for batch in batches:
        rows = keys.size(batch)
        size = max(size, batch_size_for(mesh, rows * processes) // processes)
        weight = batch.get("weight", np.ones(rows, np.float32))
        used = {"input": batch["input"], "label": batch["label"], "weight": weight}
        yield jax.tree.map(lambda x, size=size: _padded(np.asarray(x), size), used)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(rows)
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]) if missing else rows


def _fetched(results: Iterable[PyTree]) -> Iterator[PyTree]:
    """Results as numpy, each awaited only after the next are launched, so the device need not wait."""
    waiting: deque[PyTree] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > AHEAD:
            yield jax.device_get(waiting.popleft())
    yield from map(jax.device_get, waiting)


def _on_host(
    counts: Counts, outputs: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[Counts, np.ndarray, np.ndarray]:
    """One batch without its padding, its counts in float64 and int64. Raises InputError for wrong numbers."""
    counted = weights != 0
    outputs, labels = outputs[counted], labels[counted]
    classes = outputs.shape[1]
    if bad := int(np.sum(~np.isfinite(outputs.max(axis=1)))):
        raise InputError(
            f"the model's outputs are NaN or infinite for {bad} of {len(outputs)} examples",
            "go back to an earlier checkpoint, and train with a lower learning rate or in float32",
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        remedy = "correct the labels or the number of classes"
        raise InputError(f"the label {wrong} is outside 0..{classes - 1}", remedy)
    wide = {"f": np.float64, "i": np.int64}
    return jax.tree.map(lambda x: x.astype(wide[x.dtype.kind]), counts), outputs, labels


def _evaluation(counts: Counts, outputs: np.ndarray, labels: np.ndarray) -> Evaluation:
    scores = _softmax(outputs)
    areas = metrics.one_vs_rest_auc(scores, labels)
    means = {"loss": counts.loss, "top5": counts.top5}
    values = {name: float(mean.total / mean.weight) for name, mean in means.items()}
    values["accuracy"] = metrics.accuracy(counts.confusion)
    for average in metrics.AVERAGES:
        precision, recall, f1 = metrics.precision_recall_f1(counts.confusion, average)
        values |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    values["auc"] = metrics.macro_auc(areas)
    table = metrics.per_class_table(counts.confusion, areas)
    return Evaluation(values, counts.confusion, table, scores, outputs.argmax(axis=1), labels)


def _softmax(outputs: np.ndarray) -> np.ndarray:
    # In float64: in float32 sure predictions would all round to 1 and tie.
    exponentials = np.exp(np.float64(outputs) - outputs.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
