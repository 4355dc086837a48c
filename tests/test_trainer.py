"""The notebook's face of the library: every kind of model, data, optimizer, schedule and loss that it says it takes."""

import logging
import pathlib

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from lepton_jax.errors import InputError

CLASSES, FEATURES = 3, 6


def blobs(examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds that a linear model tells apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(examples) % CLASSES
    centers = 3 * np.eye(CLASSES, FEATURES)
    return (centers[labels] + 0.3 * random.standard_normal((examples, FEATURES))).astype(np.float32), labels


TRAIN, VALID = blobs(96), blobs(30, seed=1)


class Net(flax.linen.Module):
    """A Linen module."""

    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(CLASSES)(flax.linen.relu(flax.linen.Dense(16)(x)))


class NNXNet(flax.nnx.Module):
    """An NNX module, with batch statistics."""

    def __init__(self, rngs):
        self.dense = flax.nnx.Linear(FEATURES, 16, rngs=rngs)
        self.norm = flax.nnx.BatchNorm(16, rngs=rngs)
        self.head = flax.nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(flax.nnx.relu(self.norm(self.dense(x))))


def init(key, inputs):
    return {"w": jax.random.normal(key, (inputs.shape[1], CLASSES)) * 0.1, "b": jnp.zeros(CLASSES)}


def apply(params, inputs):
    return inputs @ params["w"] + params["b"][None]


def trainer(**options):
    return lp.Trainer(**{"mesh": "1x1", "verbose": False, **options})


def fit(model=None, train=TRAIN, valid=VALID, on=None, **options):
    settings = {"batch_size": 16, "epochs": 4, "learning_rate": 0.05, **options}
    return (on or trainer()).fit(model or (init, apply), train, valid, **settings)


MODELS = {
    "linen": Net,
    "nnx": lambda: NNXNet(flax.nnx.Rngs(0)),
    "pair": lambda: (init, apply),
    "model": lambda: lp.models.mlp((16,), CLASSES),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_learns(name):
    done = fit(MODELS[name]())
    assert done.results["accuracy"] > 0.95
    outputs = done.predict(VALID[0])
    assert isinstance(outputs, np.ndarray)
    assert outputs.shape == (30, CLASSES)
    assert np.mean(outputs.argmax(1) == VALID[1]) == pytest.approx(done.results["accuracy"])
    assert done.evaluate(VALID) == done.results
    assert int(done.state.step) == 24


class Lazy:
    """Anything with a length and items."""

    def __init__(self, inputs, labels):
        self.rows = list(zip(inputs, labels, strict=True))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input": self.rows[i][0], "label": self.rows[i][1]}


KINDS = {
    "tuple": lambda inputs, labels: (inputs, labels),
    "jax": lambda inputs, labels: (jnp.asarray(inputs), jnp.asarray(labels)),
    "column": lambda inputs, labels: (inputs, labels[:, None]),
    "dict": lambda inputs, labels: {"input": inputs, "label": labels},
    "dicts": lambda inputs, labels: [{"input": x, "label": y} for x, y in zip(inputs, labels, strict=True)],
    "object": Lazy,
    "source": lambda inputs, labels: lp.data.as_source((inputs, labels)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_run(kind):
    make = KINDS[kind]
    same = fit(train=make(*TRAIN), valid=make(*VALID), epochs=1)
    assert same.results == fit(epochs=1).results
    np.testing.assert_array_equal(same.predict(VALID[0]), fit(epochs=1).predict(VALID[0]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb", "lion", optax.adam(0.05), optax.sgd(0.1)])
def test_optimizers_by_name_and_optax(optimizer):
    assert fit(optimizer=optimizer, epochs=20).results["accuracy"] > 0.9


def test_schedules_by_name_and_callable():
    rate = 0.1
    named, own = (
        fit(optimizer="sgd", schedule=schedule, learning_rate=rate) for schedule in ("constant", lambda count: rate)
    )
    np.testing.assert_array_equal(named.predict(VALID[0]), own.predict(VALID[0]))
    falling = fit(optimizer="sgd", schedule="cosine", learning_rate=rate)
    assert not np.array_equal(named.predict(VALID[0]), falling.predict(VALID[0]))


def test_a_loss_of_ones_own_is_the_loss():
    def focal(outputs, labels):
        log_p = jax.nn.log_softmax(outputs)[jnp.arange(len(labels)), labels]
        return -((1 - jnp.exp(log_p)) ** 2) * log_p

    done = fit(loss=focal)
    expected = float(np.mean(focal(jnp.asarray(done.predict(VALID[0])), jnp.asarray(VALID[1]))))
    assert done.results["loss"] == pytest.approx(expected, rel=1e-5)
    assert done.results["accuracy"] > 0.95


@pytest.mark.parametrize("whole", [False, True])
def test_regression_has_a_loss_and_no_accuracy(whole):
    """Also where the numbers to predict happen to be integers."""
    inputs = TRAIN[0]
    targets = inputs @ np.arange(1.0, FEATURES + 1) + 1
    targets = np.round(targets).astype(np.int32) if whole else targets.astype(np.float32)
    model = lp.models.mlp((), 1)
    done = fit(model, (inputs, targets), (inputs, targets), loss="squared_error", epochs=40, learning_rate=0.2)
    assert set(done.results) == {"loss"}
    assert done.results["loss"] < 0.05 * np.var(targets)
    assert done.results["loss"] == pytest.approx(np.mean((done.predict(inputs)[:, 0] - targets) ** 2), rel=1e-4)


def test_augmentation_is_for_training_only():
    """Inputs turned to zeros teach nothing but the labels' shares; evaluation sees the real ones."""
    blind = fit(augment=lambda key, x: 0 * x)
    assert blind.results["accuracy"] < 0.9
    assert blind.history[-2]["train/loss"] > 1.0
    shifted = fit(augment=lambda key, x: x + 0.01 * jax.random.normal(key, x.shape))
    assert shifted.results["accuracy"] > 0.95


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precisions_learn_and_keep_float32_parameters(precision):
    done = fit(on=trainer(precision=precision))
    assert done.results["accuracy"] > 0.95
    assert {leaf.dtype for leaf in jax.tree.leaves(done.state.params)} == {jnp.dtype("float32")}
    assert ("loss_scale" in done.state.stats) == (precision == "float16")


@pytest.mark.parametrize("options", [{"microbatches": 4}, {"mesh": "4x2"}, {"mesh": "data=2,fsdp=2,model=2"}])
def test_microbatches_and_meshes_change_nothing(options):
    model = lp.models.mlp((16,), CLASSES)
    alone, other = fit(model), fit(model, on=trainer(**options))
    np.testing.assert_allclose(other.predict(VALID[0]), alone.predict(VALID[0]), rtol=1e-4, atol=1e-4)


def test_history_has_the_rows_in_order_and_results_the_last():
    done = fit(on=trainer(log_every=3))
    steps = [row["step"] for row in done.history]
    assert steps == sorted(steps)
    evaluations = [row for row in done.history if "test/loss" in row]
    assert [row["epoch"] for row in evaluations] == [1, 2, 3, 4]
    assert {name.removeprefix("test/"): value for name, value in evaluations[-1].items() if "test/" in name} == (
        done.results
    )
    assert all(np.isfinite(row["train/loss"]) for row in done.history if "test/loss" not in row)


def test_without_validation_there_are_no_results():
    done = fit(valid=None)
    assert done.results == {}
    assert done.evaluate(VALID)["accuracy"] > 0.95


def test_a_run_directory_goes_on_where_it_stopped(tmp_path):
    whole = fit(epochs=4, schedule="constant")
    first = fit(epochs=2, schedule="constant", on=trainer(run=tmp_path))
    assert int(first.state.step) == 12
    rest = fit(epochs=4, schedule="constant", on=trainer(run=tmp_path))
    assert [row["epoch"] for row in rest.history if "test/loss" in row] == [3, 4]
    assert rest.results == whole.results
    for a, b in zip(jax.tree.leaves(rest.state.params), jax.tree.leaves(whole.state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    again = fit(epochs=4, schedule="constant", on=trainer(run=tmp_path))
    assert (again.results, again.history) == (whole.results, [])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"on": {"seed": 1}}, "seed = 0, not 1"),
        ({"batch_size": 8}, "batch_size = 16, not 8"),
        ({"train": VALID}, "data = "),
        ({"model": lp.models.mlp((8,), CLASSES)}, "does not fit this model"),
        ({"optimizer": "sgd"}, "does not fit this model and optimizer"),
    ],
)
def test_a_run_directory_of_another_run_is_refused(options, problem, tmp_path):
    fit(epochs=1, on=trainer(run=tmp_path))
    on = trainer(run=tmp_path, **options.pop("on", {}))
    with pytest.raises(InputError, match=problem):
        fit(**options, epochs=2, on=on)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss": "cross_entropi"}, "unknown loss 'cross_entropi'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'"),
        ({"learning_rate": -1.0}, "learning rate -1.0"),
        ({"batch_size": 0}, "batch size 0"),
        ({"model": "resnet8"}, "'resnet8' is not a model"),
        ({"train": (TRAIN[0], TRAIN[1][:5])}, "input 96, label 5"),
        ({"train": "images"}, "data of type str"),
        ({"train": (TRAIN[0], TRAIN[1].astype(np.float32))}, "labels are float32 numbers, and the loss is cross"),
        ({"train": {"input": TRAIN[0]}}, "train split has no labels"),
        ({"valid": (VALID[0], VALID[1] + 1)}, r"valid label at index 2 is 3, outside 0\.\.2"),
    ],
)
def test_mistakes_are_named_before_training(options, problem):
    with pytest.raises(InputError, match=problem):
        fit(**options)


def test_mistakes_at_the_start():
    with pytest.raises(InputError, match="does not divide"):
        fit(on=trainer(mesh="8x1"), batch_size=12)
    with pytest.raises(InputError, match="unknown precision 'float8'"):
        trainer(precision="float8")
    with pytest.raises(InputError, match="seed -1"):
        fit(on=trainer(seed=-1))
    for use in (lambda t: t.predict(VALID[0]), lambda t: t.evaluate(VALID), lambda t: t.state):
        with pytest.raises(InputError, match="has not been fitted"):
            use(trainer())


def test_distributions_are_labels_too():
    done = fit(train=(TRAIN[0], np.eye(CLASSES, dtype=np.float32)[TRAIN[1]]))
    assert done.results["accuracy"] > 0.95


def test_it_is_quiet_and_leaves_logging_alone(capfd, tmp_path):
    root = logging.getLogger()
    before = root.level, list(root.handlers), logging.getLogger("absl").level
    fit(epochs=1, on=trainer(run=tmp_path))
    assert (root.level, list(root.handlers), logging.getLogger("absl").level) == before
    assert capfd.readouterr() == ("", "")


def test_by_default_it_says_what_it_does(capfd):
    fit(epochs=1, on=lp.Trainer(mesh="1x1"))
    out, err = capfd.readouterr()
    assert "accuracy" in out
    assert err == ""


def test_it_stays_short():
    """The trainer only arranges; what grows here belongs elsewhere."""
    assert len(pathlib.Path(lp.trainer.__file__).read_text().splitlines()) < 200
