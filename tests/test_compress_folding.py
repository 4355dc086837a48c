"""Batch norms folded into the weights before them: the same outputs, and norms that are the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lepton_jax as lp
from lepton_jax.compress import base, folding, leaves
from lepton_jax.errors import InputError
from lepton_jax.models.adapters import linen


class Several(nn.Module):
    """Norms that can be folded, and norms that cannot."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(not train, epsilon=1e-3, name="biased_norm")(nn.Conv(4, (3, 3), name="biased")(x)))
        twice = nn.Conv(4, (3, 3), use_bias=False, name="twice")(x)
        x = nn.relu(nn.BatchNorm(not train, name="twice_norm")(twice)) + twice
        shared = nn.Conv(4, (1, 1), use_bias=False, name="shared")
        x = nn.BatchNorm(not train, name="shared_norm")(shared(shared(x)))
        x = nn.BatchNorm(not train, name="lonely_norm")(nn.relu(x))
        x = nn.Conv(4, (3, 3), feature_group_count=2, use_bias=False, name="grouped")(x)
        x = nn.BatchNorm(not train, use_scale=False, name="grouped_norm")(x)
        x = nn.Dense(6, name="dense")(jnp.mean(x, (1, 2)))
        x = nn.relu(nn.BatchNorm(not train, name="dense_norm")(x))
        return nn.Dense(3, name="head")(nn.BatchNorm(not train, use_bias=False, name="scaled")(nn.Dense(6)(x)))


MODELS = {
    "several": lambda: linen(Several()),
    "resnet": lambda: lp.models.normalized(lp.models.build("resnet8", 5), 0.5, 0.25),
}


def moved(variables):
    """Variables with every number of the norms as after some training."""
    draw = np.random.default_rng(0)

    def change(name, leaf):
        if leaf.ndim != 1:
            return leaf
        low, high = (0.5, 2.0) if name.endswith(("var", "scale")) else (-0.5, 0.5)
        return jnp.asarray(draw.uniform(low, high, leaf.shape), leaf.dtype)

    return lp.tree.map_named(change, variables)


IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def shapes(model):
    """The model's variables without numbers."""
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES)


@pytest.fixture(scope="module", params=["several", "resnet"])
def case(request):
    model = MODELS[request.param]()
    images = jax.random.uniform(jax.random.key(1), (4, 12, 12, 3))
    return model, moved(jax.jit(model.init)(jax.random.key(0), images)), images


def test_a_folded_model_gives_the_same_outputs(case):
    model, variables, images = case
    folded = folding.folded(model, variables, images)
    assert jax.eval_shape(lambda: folded) == jax.eval_shape(lambda: variables)
    apply = jax.jit(lambda variables: model.apply(variables, images, False, None)[0])
    before, after = apply(variables), apply(folded)
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max(), rtol=0)
    for pair in folding.pairs(model, variables, images):
        stats = base.at(folded["batch_stats"], pair.norm)
        np.testing.assert_array_equal(np.float32(stats["var"]) + np.float32(pair.epsilon), 1)
        np.testing.assert_array_equal(stats["mean"], 0)
        np.testing.assert_array_equal(base.at(folded["params"], pair.norm).get("scale", 1), 1)
    # and folding again changes nothing
    again = folding.folded(model, folded, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), again, folded)


def test_pairs_are_those_that_can_be_folded():
    model = MODELS["several"]()
    found = folding.pairs(model, shapes(model), IMAGES)
    assert [pair[:3] for pair in found] == [
        ("biased/kernel", "biased/bias", "biased_norm"),
        ("grouped/kernel", None, "grouped_norm"),
        ("dense/kernel", "dense/bias", "dense_norm"),
    ]
    assert [pair.epsilon for pair in found] == pytest.approx([1e-3, 1e-5, 1e-5])


@pytest.mark.parametrize(("name", "alone"), [("wrn16-4", 6), ("efficientnet-b0", 0)])
def test_norms_before_convolutions_stay(name, alone):
    """A wide ResNet's first norm of a block follows a sum; EfficientNet's all follow convolutions, depthwise too."""
    model = lp.models.build(name, 5)
    variables = shapes(model)
    norms = sum(path.endswith("/var") for path in lp.tree.paths(variables["batch_stats"]))
    assert len(folding.pairs(model, variables, IMAGES)) == norms - alone


@pytest.mark.parametrize("case", ["resnet"], indirect=True)
def test_every_norm_of_a_resnet_is_folded_and_not_stored(case):
    model, variables, images = case
    norms = [name for name in lp.tree.paths(variables["params"]) if name.endswith("/scale")]
    found = folding.pairs(model, variables, images)
    assert sorted(f"{pair.norm}/scale" for pair in found) == sorted(norms)
    small = folding.constants(folding.folded(model, variables, images))
    for pair in found:
        assert isinstance(base.at(small["params"], pair.norm)["scale"], leaves.Constant)
        assert isinstance(base.at(small["batch_stats"], pair.norm)["var"], leaves.Constant)
        assert not leaves.is_packed(base.at(small["params"], pair.norm)["bias"])
    whole = folding.folded(model, variables, images)
    jax.tree.map(np.testing.assert_array_equal, leaves.unpacked(small), whole)
    assert lp.tree.nbytes(small["batch_stats"]) == 0


@pytest.mark.parametrize("case", ["resnet"], indirect=True)
def test_norms_are_folded_into_the_last_of_several_factors(case):
    model, variables, images = case
    parts = lp.compress.factorized(lp.compress.explicit({"stage": 3}), convolution=lp.compress.tucker)
    small = {**variables, "params": parts.pack(*parts.init(variables["params"]))}
    folded = folding.constants(folding.folded(model, small, images))
    assert any(isinstance(leaf, leaves.Factored) for leaf in jax.tree.leaves(folded, is_leaf=leaves.is_packed))
    apply = jax.jit(lambda variables: lp.compress.applied(model).apply(variables, images, False, None)[0])
    before, after = apply(small), apply(folded)
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max(), rtol=0)


def test_constants_are_of_finite_numbers_and_known_to_the_compiler():
    tree = {"ones": jnp.ones(3), "nan": jnp.full(3, jnp.nan), "two": jnp.arange(2), "few": jnp.ones((1,))}
    small = folding.constants(tree)
    assert small["ones"] == leaves.Constant(1.0, (3,), "float32") == leaves.Constant(np.ones(()), (3,), "float32")
    assert not any(leaves.is_packed(small[name]) for name in ("nan", "two", "few"))
    program = jax.jit(lambda x, norm: x * leaves.dense(norm)).lower(jnp.zeros(3), small["ones"]).compile()
    assert "multiply" not in program.as_text()


def test_a_model_without_norms_is_refused():
    model = lp.models.mlp((4,), 3)
    images = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(InputError, match="no batch norm"):
        folding.folded(model, {**model.init(jax.random.key(0), images), "batch_stats": {}}, images)
