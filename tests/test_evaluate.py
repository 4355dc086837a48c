"""Exact evaluation: N = 1..17 examples on three meshes of simulated devices equal scikit-learn on one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn import metrics as sk

from lepton_jax import mesh as meshes
from lepton_jax.errors import InputError
from lepton_jax.evaluate import batch_size_for, evaluator, predictor
from lepton_jax.losses import cross_entropy
from lepton_jax.types import Model

CLASSES, FEATURES = 7, 5
DEFINED: Any = 0  # scikit-learn types its zero_division as a string
MESHES = ("8x1", "4x2", "1x1")
generator = np.random.default_rng(0)
KERNEL = generator.normal(size=(FEATURES, CLASSES)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(KERNEL)}
STATS = {"model": {"batch_stats": {"mean": generator.normal(size=FEATURES).astype(np.float32)}}, "other": {}}
INPUTS = generator.normal(size=(17, FEATURES)).astype(np.float32)
LABELS = generator.integers(0, CLASSES, 17).astype(np.int32)


def linear(traces=None):
    def apply(variables, inputs, train, keys):
        assert not train
        assert keys is None
        if traces is not None:
            traces.append(inputs.shape)
        mean = variables["batch_stats"]["mean"] if "batch_stats" in variables else jnp.zeros(FEATURES)
        return (inputs - mean[None, :]) @ variables["params"]["kernel"], {}

    return Model(init=lambda key, inputs: {"params": PARAMS}, apply=apply)


def batches(n, size, filler=np.nan):
    """The first n examples in batches of `size`, the last one padded with weight 0 and what does harm."""
    for start in range(0, n, size):
        stop = min(start + size, n)
        rows = np.full((size, FEATURES), filler, np.float32)
        labels, weight = np.full(size, -7, np.int32), np.zeros(size, np.float32)
        rows[: stop - start], labels[: stop - start], weight[: stop - start] = (
            INPUTS[start:stop],
            LABELS[start:stop],
            1,
        )
        yield {"input": rows, "label": labels, "weight": weight}


def plain_scores(n, centred=True):
    """Softmax scores in plain numpy, in double precision."""
    centre = STATS["model"]["batch_stats"]["mean"] if centred else 0
    outputs = np.exp((INPUTS[:n] - centre).astype(np.float64) @ KERNEL.astype(np.float64))
    return outputs / outputs.sum(axis=1, keepdims=True)


def expected_metrics(scores, labels):
    predictions, every = scores.argmax(axis=1), range(CLASSES)
    expected = {
        "loss": sk.log_loss(labels, scores, labels=every),
        "accuracy": sk.accuracy_score(labels, predictions),
        "top5": sk.top_k_accuracy_score(labels, scores, k=5, labels=every),
    }
    for average in ("macro", "micro", "weighted"):
        scores_of = sk.precision_recall_fscore_support
        three = scores_of(labels, predictions, average=average, zero_division=DEFINED)[:3]
        for name, value in zip(("precision", "recall", "f1"), three, strict=True):
            expected[f"{name}_{average}"] = value
    present = [c for c in every if 0 < np.sum(labels == c) < len(labels)]
    areas = [sk.roc_auc_score(labels == c, scores[:, c]) for c in present]
    return expected | {"auc": np.mean(areas) if areas else np.nan}


@pytest.mark.parametrize("name", MESHES)
def test_every_number_of_examples_equals_scikit_learn(name):
    mesh = meshes.make(name)
    traces = []
    evaluate = evaluator(linear(traces), cross_entropy(), mesh, CLASSES)
    for n in range(1, 18):
        result = evaluate(PARAMS, STATS, batches(n, 8))
        scores, labels = plain_scores(n), LABELS[:n]
        expected = expected_metrics(scores, labels)
        assert result.metrics.keys() == expected.keys()
        for key, value in expected.items():
            assert result.metrics[key] == pytest.approx(value, rel=1e-6, nan_ok=True), (n, key)
        matrix = sk.confusion_matrix(labels, scores.argmax(axis=1), labels=range(CLASSES))
        np.testing.assert_array_equal(result.confusion, matrix)
        np.testing.assert_allclose(result.scores, scores, rtol=1e-5)
        np.testing.assert_array_equal(result.predictions, scores.argmax(axis=1))
        np.testing.assert_array_equal(result.labels, labels)
        assert [row["examples"] for row in result.per_class] == np.bincount(labels, minlength=CLASSES).tolist()
    assert len(traces) == 1  # 17 data sets, one compilation


def test_auc_equals_scikit_learn_s_own_macro_where_it_has_one():
    labels = np.arange(17, dtype=np.int32) % CLASSES
    batch = {"input": INPUTS, "label": labels}
    result = evaluator(linear(), cross_entropy(), meshes.make("8x1"), CLASSES)(PARAMS, STATS, [batch])
    theirs = sk.roc_auc_score(labels, plain_scores(17), multi_class="ovr", average="macro")
    assert result.metrics["auc"] == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", MESHES)
def test_ragged_batches_without_weight_are_padded(name):
    traces = []
    evaluate = evaluator(linear(traces), cross_entropy(), meshes.make(name), CLASSES)
    ragged = [{"input": INPUTS[i : i + 5], "label": LABELS[i : i + 5]} for i in range(0, 17, 5)]
    result = evaluate(PARAMS, STATS, ragged)
    expected = expected_metrics(plain_scores(17), LABELS)
    assert result.metrics == pytest.approx(expected, rel=1e-6)
    assert len(traces) == 1


def test_model_without_stats_and_many_batches():
    evaluate = evaluator(linear(), cross_entropy(), meshes.make("4x2"), CLASSES)
    result = evaluate(PARAMS, {}, batches(17, 4))
    assert result.metrics == pytest.approx(expected_metrics(plain_scores(17, centred=False), LABELS), rel=1e-6)


def test_sharded_parameters_stay_sharded():
    mesh = meshes.make("4x2")
    kernel = jnp.concatenate([KERNEL, -KERNEL[:, :1]], axis=1)  # 8 classes over "model"
    sharded = jax.device_put({"kernel": kernel}, NamedSharding(mesh, P(None, "model")))
    result = evaluator(linear(), cross_entropy(), mesh, 8)(sharded, {}, batches(17, 8))
    whole = evaluator(linear(), cross_entropy(), meshes.make("1x1"), 8)({"kernel": kernel}, {}, batches(17, 8))
    assert result.metrics == pytest.approx(whole.metrics, rel=1e-6)
    np.testing.assert_array_equal(result.confusion, whole.confusion)
    assert sharded["kernel"].sharding.spec == P(None, "model")


def test_batches_are_launched_before_the_first_is_awaited():
    launched = []

    def source():
        for batch in batches(17, 1, 0.0):
            launched.append(len(fetched))
            yield batch

    fetched = []
    fetch = jax.device_get
    evaluate = evaluator(linear(), cross_entropy(), meshes.make("1x1"), CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_get", lambda x: (fetched.append(1), fetch(x))[1])
        evaluate(PARAMS, STATS, source())
    assert launched == [0, 0, 0, *range(1, 15)]  # the host is two batches ahead all the way
    assert len(fetched) == 17


def test_low_precision_outputs_are_widened_before_the_criterion():
    half = Model(linear().init, lambda *arguments: (linear().apply(*arguments)[0].astype(jnp.bfloat16), {}))
    seen = []

    def criterion(outputs, labels):
        seen.append(outputs.dtype)
        return cross_entropy()(outputs, labels)

    evaluator(half, criterion, meshes.make("1x1"), CLASSES)(PARAMS, STATS, batches(3, 3))
    assert seen == [jnp.float32]


def test_sure_predictions_do_not_tie():
    """In float32 both scores of class 0 would round to 1, and the area would be a half."""
    batch = {"input": np.array([[40.0, 0.0], [30.0, 0.0]], np.float32), "label": np.array([0, 1], np.int32)}
    identity = Model(lambda key, inputs: {}, lambda variables, inputs, train, keys: (inputs, {}))
    result = evaluator(identity, cross_entropy(), meshes.make("1x1"), 2)({}, {}, [batch])
    assert result.metrics["auc"] == 1


def one_batch(**changes):
    return [{"input": INPUTS[:8], "label": LABELS[:8], **changes}]


@pytest.mark.parametrize(
    ("classes", "data", "message"),
    [
        (5, one_batch(), r"shape \[8, 7\] where \[batch, 5\]"),
        (
            CLASSES,
            one_batch(input=np.where(np.arange(8)[:, None] < 3, np.nan, INPUTS[:8])),
            "for 3 of 8 examples",
        ),
        (CLASSES, one_batch(input=np.full((8, FEATURES), 3e38, np.float32)), "NaN or infinite for 8 of 8"),
        (CLASSES, one_batch(label=np.arange(8, dtype=np.int32)), r"label 7 is outside 0\.\.6"),
        (CLASSES, one_batch(label=np.full(8, -1, np.int32)), "label -1 is outside"),
        (CLASSES, one_batch(label=np.eye(8, CLASSES, dtype=np.int32)), r"labels have shape \[8, 7\]"),
        (CLASSES, one_batch(weight=np.zeros(8, np.float32)), "no example"),
        (CLASSES, [], "no example"),
    ],
)
def test_refusals(classes, data, message):
    with pytest.raises(InputError, match=message):
        evaluator(linear(), cross_entropy(), meshes.make("8x1"), classes)(PARAMS, STATS, data)


@pytest.mark.parametrize("name", MESHES)
def test_predictor_answers_any_number_of_examples(name):
    traces = []
    predict = predictor(linear(traces), meshes.make(name), batch_size=6)
    whole = (INPUTS - STATS["model"]["batch_stats"]["mean"]) @ KERNEL
    for n in (1, 5, 8, 16, 17, 0):
        outputs = predict(PARAMS, STATS, INPUTS[:n])
        assert isinstance(outputs, np.ndarray)
        assert outputs.shape == (n, CLASSES)
        np.testing.assert_allclose(outputs, whole[:n], rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_predictor_keeps_trees_of_inputs_and_outputs():
    def apply(variables, inputs, train, keys):
        return {"sum": inputs["a"] + inputs["b"], "half": inputs["a"].astype(jnp.bfloat16)}, {}

    predict = predictor(Model(lambda key, inputs: {}, apply), meshes.make("8x1"), batch_size=8)
    outputs = predict({}, {}, {"a": np.arange(11, dtype=np.float32), "b": np.ones(11, np.float32)})
    np.testing.assert_array_equal(outputs["sum"], np.arange(11) + 1)
    assert outputs["half"].dtype == np.float32


def test_batch_size_for():
    assert [batch_size_for(meshes.make("8x1"), n) for n in (1, 8, 9, 100)] == [8, 8, 16, 104]
    assert [batch_size_for(meshes.make("4x2"), n) for n in (1, 9)] == [4, 12]
    assert batch_size_for(meshes.make("1x1"), 9) == 9
    with pytest.raises(InputError, match="batch of 0"):
        batch_size_for(meshes.make("1x1"), 0)
