"""Adapters: Linen, NNX and plain functions pass one table of contracts."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lepton_jax as lp
from lepton_jax import InputError, models, step, tree
from lepton_jax.types import Model

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
KEYS = jax.random.split(KEY, 6)


class Foreign(nn.Module):
    """A Linen module as people write them, with Flax's own dropout and batch norm."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(5)(x)


class Silent(nn.Module):
    """A Linen module that takes nothing but its input."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(x.reshape(len(x), -1))


class Net(nnx.Module):
    """An NNX module with batch norm, dropout and a numbered list."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Plain(nnx.Module):
    """An NNX module without state."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(192, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


def dense_init(key: Any, inputs: Any) -> Any:
    return {"kernel": jax.random.normal(key, (inputs[0].size, 5)) / 10}


def dense(params: Any, inputs: Any) -> Any:
    return inputs.reshape(len(inputs), -1) @ params["kernel"]


def noisy(params: Any, inputs: Any, train: bool, keys: Any) -> Any:
    outputs = dense(params, inputs)
    return outputs + jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys) if train else outputs


def in_tree_mode(model: Model) -> Model:
    """The model with every call under NNX's tree mode."""

    def init(key: Any, inputs: Any) -> Any:
        with nnx.set_graph_mode(False):
            return model.init(key, inputs)

    def apply(*arguments: Any) -> Any:
        with nnx.set_graph_mode(False):
            return model.apply(*arguments)

    return Model(init, apply, model.rules)


def tree_made() -> Model:
    with nnx.set_graph_mode(False):
        return in_tree_mode(models.nnx(Net))


ADAPTED = {  # name: (model, has state, is random in training)
    "linen": (models.linen(Foreign()), True, True),
    "linen, silent": (models.linen(Silent()), False, False),
    "linen, ours": (models.cnn(5, (4,), 8, dropout=0.5), False, True),
    "nnx": (models.nnx(Net), True, True),
    "nnx, ready": (models.nnx(Net(nnx.Rngs(0))), True, True),
    "nnx, tree mode": (tree_made(), True, True),
    "nnx, graph-made in tree mode": (in_tree_mode(models.nnx(Net)), True, True),
    "nnx, stateless": (models.nnx(Plain), False, False),
    "functions": (models.functions(dense_init, dense), False, False),
    "functions, noisy": (models.functions(dense_init, noisy), False, True),
}
everyone = pytest.mark.parametrize(
    ("model", "stateful", "random"), [pytest.param(*row, id=name) for name, row in ADAPTED.items()]
)


def jitted(model: Model, train: bool) -> Any:
    return jax.jit(lambda variables, x, keys: model.apply(variables, x, train, keys))


@everyone
def test_variables_are_plain_nested_dicts_of_arrays(model, stateful, random):
    variables = model.init(KEY, X)
    assert (set(variables) != {"params"}) == stateful

    def check(node: Any) -> None:
        if type(node) is dict:
            assert all(type(name) is str for name in node)
            for part in node.values():
                check(part)
        else:
            assert isinstance(node, jax.Array)
            assert not jnp.issubdtype(node.dtype, jax.dtypes.prng_key)

    check(variables)
    shapes = jax.eval_shape(lambda key: model.init(key, X), KEY)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    again = jax.jit(model.init)(KEY, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), variables, again)


@everyone
def test_stats_are_complete_and_move_only_in_training(model, stateful, random):
    variables = model.init(KEY, X)
    others = {name: value for name, value in variables.items() if name != "params"}
    outputs, still = jitted(model, False)(variables, X, None)
    assert outputs.shape == (6, 5)
    jax.tree.map(np.testing.assert_array_equal, still, others)
    _, moved = jitted(model, True)(variables, X, KEYS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), moved) == jax.tree.map(lambda x: (x.shape, x.dtype), others)
    if stateful:
        assert all(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (moved, others)), strict=True))


@everyone
def test_apply_is_pure(model, stateful, random):
    variables = model.init(KEY, X)
    before = jax.tree.map(np.array, variables)
    run = jitted(model, True)
    first, second = run(variables, X, KEYS), run(variables, X, KEYS)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    other, _ = run(variables, X, jax.random.split(jax.random.key(9), 6))
    assert np.array_equal(first[0], other) == (not random)
    calm, _ = jitted(model, False)(variables, X, KEYS)
    alone, _ = jitted(model, False)(variables, X, None)
    np.testing.assert_array_equal(calm, alone)


@everyone
def test_a_training_step_compiles_once_and_learns(model, stateful, random):
    traces = 0

    def counted(*arguments: Any) -> Any:
        nonlocal traces
        traces += 1
        return model.apply(*arguments)

    loss = lp.supervised(Model(model.init, counted), lp.cross_entropy())
    optimizer = optax.sgd(0.1)
    update = jax.jit(lp.descend(lp.plain(loss), optimizer), donate_argnums=0)
    batch = {"input": X, "label": jnp.arange(6) % 5}
    norms = []
    for _ in range(2):  # a second run from the start: the first gave its buffers away
        state = step.initial(model, optimizer, KEY, X)
        for _ in range(3):
            state, metrics = update(state, batch)
            norms.append(float(metrics["gradient_norm"].value()))
    assert traces == 1
    assert norms[:3] == norms[3:]
    assert all(norm > 0 and np.isfinite(norm) for norm in norms)


def test_a_ready_nnx_module_keeps_its_weights_and_ignores_the_key():
    module = Net(nnx.Rngs(3))
    model = models.nnx(module)
    first, second = model.init(KEY, X), model.init(jax.random.key(5), X)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(first["params"]["layers"]["1"]["kernel"], module.layers[1].kernel[...])
    outputs, _ = model.apply(first, X, False, None)
    module.eval()
    np.testing.assert_allclose(outputs, module(X), rtol=1e-5, atol=1e-6)
    made = models.nnx(Net)
    drawn = [made.init(key, X)["params"]["conv"]["kernel"] for key in (KEY, jax.random.key(5))]
    assert not np.array_equal(*drawn)


def test_training_an_adapted_nnx_module_leaves_the_module_as_it_was():
    module = Net(nnx.Rngs(3))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    model = models.nnx(module)
    variables = model.init(KEY, X)
    jax.jit(lambda v: tree.scale(v, 2.0), donate_argnums=0)(variables)
    assert variables["params"]["head"]["kernel"].is_deleted()
    model.apply(model.init(KEY, X), X, True, KEYS)
    after = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert module.dropout.deterministic is False


class Tied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = self.first

    def __call__(self, x):
        return self.second(self.first(x))


def test_tied_nnx_weights_are_one_parameter():
    model = models.nnx(Tied)
    x = jnp.ones((2, 4))
    variables = model.init(KEY, x)
    assert tree.paths(variables) == ["params/first/bias", "params/first/kernel"]
    kernel = variables["params"]["first"]["kernel"]
    outputs, _ = model.apply(variables, x, True, None)
    np.testing.assert_allclose(outputs, x @ kernel @ kernel, rtol=1e-5)  # biases start at zero


class Deep(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return x


def test_numbered_nnx_layers_keep_their_order_past_nine():
    module = Deep(nnx.Rngs(0))
    model = models.nnx(module)
    outputs, _ = model.apply(model.init(KEY, jnp.ones((3, 2))), jnp.ones((3, 2)), False, None)
    np.testing.assert_allclose(outputs, module(jnp.ones((3, 2))), rtol=1e-6)


def test_randomness_without_keys_is_refused():
    model = models.nnx(Net)
    variables = model.init(KEY, X)
    with pytest.raises(InputError, match="no keys"):
        model.apply(variables, X, True, None)


def test_as_model_takes_all_kinds():
    ready = ADAPTED["functions"][0]
    assert models.as_model(ready) is ready
    for given in (Foreign(), Net(nnx.Rngs(0)), (dense_init, dense)):
        model = models.as_model(given)
        assert model.apply(model.init(KEY, X), X, False, None)[0].shape == (6, 5)
    for given in (Net, "resnet20", (dense_init,), None):
        with pytest.raises(InputError, match="is not a model"):
            models.as_model(given)


class Sown(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic: bool):
        self.sow("intermediates", "x", x)
        x = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("data", "model")))(x)
        return nn.Dropout(0.5, rng_collection="other")(x, deterministic=deterministic)


def test_linen_metadata_sown_values_and_other_streams():
    model = models.linen(Sown())
    x = jnp.ones((3, 4))
    variables = model.init(KEY, x)
    assert set(variables) == {"params"}
    assert isinstance(variables["params"]["Dense_0"]["kernel"], jax.Array)
    outputs, stats = model.apply(variables, x, True, KEYS[:3])
    assert stats == {}
    assert set(np.unique(outputs)) == {0, 8}
    outputs, _ = model.apply(variables, x, False, None)
    np.testing.assert_array_equal(outputs, 4)


def test_statistics_keep_float32_in_double_precision(float64):
    for name in ("linen", "nnx"):
        model = ADAPTED[name][0]
        variables = model.init(KEY, X)
        variables["params"] = tree.cast(variables["params"], jnp.float64)
        x = X.astype(jnp.float64)
        outputs, stats = jax.eval_shape(lambda v, x, model=model: model.apply(v, x, True, KEYS), variables, x)
        assert outputs.dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}


def test_adapters_use_nothing_that_flax_is_about_to_drop():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (models.linen(Foreign()), models.nnx(Net)):
            model.apply(model.init(KEY, X), X, True, KEYS)
