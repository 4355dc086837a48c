"""Losses against torch and numpy; views; rematerialization saves memory and changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name, print_saved_residuals

import lepton_jax as lp
from lepton_jax import data, losses, models, rematerialization
from lepton_jax.errors import InputError
from tests import laws

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(12, 5)).astype(np.float32) * 3
LABELS = RANDOM.integers(0, 5, 12).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_cross_entropy_by_hand(smoothing):
    logits = LOGITS.astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.eye(5)[LABELS] * (1 - smoothing) + smoothing / 5
    criterion = lp.cross_entropy(smoothing)
    np.testing.assert_allclose(
        criterion(jnp.array(LOGITS), jnp.array(LABELS)), -(targets * logs).sum(axis=1), rtol=1e-5
    )
    soft = jnp.array(np.eye(5, dtype=np.float32)[LABELS])
    np.testing.assert_allclose(
        criterion(jnp.array(LOGITS), soft), criterion(jnp.array(LOGITS), jnp.array(LABELS)), rtol=1e-6
    )


def test_cross_entropy_equals_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(LABELS).long(), reduction="none", label_smoothing=0.1
    )
    ours = lp.cross_entropy(0.1)(jnp.array(LOGITS), jnp.array(LABELS))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_squared_error():
    outputs, labels = jnp.array([[1.0], [2.0]]), jnp.array([0.0, 4.0])
    assert losses.squared_error(outputs, labels).tolist() == [1.0, 4.0]


def test_a_view_is_differentiated_through():
    model = lp.Model(lambda key, x: {"params": jnp.ones(3)}, lambda v, x, train, keys: (x @ v["params"], {}))
    loss = lp.supervised(model, losses.squared_error)
    batch = {"input": jnp.eye(3), "label": jnp.zeros(3)}
    masked = lp.through(loss, lambda params: params * jnp.array([1.0, 0.0, 2.0]))
    mean, _ = lp.plain(masked)(jnp.ones(3), {}, batch, jax.random.key(0))
    assert mean.value().tolist() == pytest.approx([2 / 3, 0, 8 / 3])


def test_rematerialization_keeps_only_what_lies_between_blocks(capsys):
    """Counted in arrays kept for the backward pass; XLA's CPU scheduler frees none of them early."""

    def apply(variables, x, train, keys):
        for weight in variables["params"]:
            for _ in range(4):
                x = jnp.sin(x @ weight)
            x = checkpoint_name(x, "block")
        return x, {}

    params = [jnp.eye(8)] * 6
    batch = {"input": jnp.ones((64, 8)), "label": jnp.zeros(64, jnp.int32)}
    loss = lp.supervised(lp.Model(lambda key, x: {"params": params}, apply), lp.cross_entropy())

    def kept(loss):
        print_saved_residuals(lambda p: loss(p, {}, batch, jax.random.key(0))[0].total, params)
        return capsys.readouterr().out.count("f32[64,8]")

    assert kept(loss) >= 6 * 4
    assert kept(lp.rematerialized(loss)) <= 6 + 2
    assert kept(lp.rematerialized(loss, "everything_saveable")) >= 6 * 4


@pytest.mark.parametrize(("name", "policy"), [("resnet", "nothing_saveable"), ("dropout", "dots_saveable")])
def test_rematerialization_changes_no_gradient(name, policy):
    """Batch statistics and random masks included."""
    model, batch = laws.models()[name](), data.Stream(laws.digits(), 16, 1).batch(0)
    plain, _ = laws.gradient_of(model, laws.TECHNIQUES["plain"], batch)
    again = laws.Technique(loss=lambda loss: lp.rematerialized(loss, policy))
    assert lp.tree.distance(laws.gradient_of(model, again, batch)[0], plain) < 1e-6


def test_the_built_in_models_tag_their_blocks():
    model = models.resnet.small(8, 10)
    inputs = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    traced = jax.make_jaxpr(lambda v: model.apply(v, inputs, True, None))(variables)
    assert len(rematerialization.blocks(traced.jaxpr.eqns)) == 3 + 1


def test_an_unknown_policy_is_named():
    with pytest.raises(InputError, match="unknown rematerialization policy 'dots'\ndid you mean 'dots_saveable'"):
        lp.rematerialized(lambda *_: None, "dots")


def test_accumulation_refuses_what_does_not_divide():
    model = models.mlp((4,), 10)
    loss = lp.accumulate(lp.plain(lp.supervised(model, lp.cross_entropy())), 3)
    with pytest.raises(InputError, match="3 microbatches do not divide a batch of 16"):
        laws.gradient_of(model, laws.Technique(gradient=lambda _: loss), data.Stream(laws.digits(), 16, 1).batch(0))
