"""Weight decay and layer-wise rates by path, on the trees of real models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import config, decay, models, optimizers, tree
from lepton_jax.errors import InputError

VIT = {
    "patches": {"kernel": jnp.ones((2, 3))},
    "token": {"embedding": jnp.ones((1, 3))},
    "positions": {"embedding": jnp.ones((4, 3))},
    **{f"block{n}": {"mlp": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}} for n in range(12)},
    "norm": {"scale": jnp.ones(3)},
    "head": {"kernel": jnp.ones((3, 2))},
}
LAYERS = ("patches|token|positions", r"block(\d+)/")


def beit(name, depth=12):
    """BEiT's get_num_layer_for_vit, by our names; the final norm goes with the head."""
    if name.split("/")[0] in ("patches", "token", "positions"):
        return 0
    return int(name.split("/")[0].removeprefix("block")) + 1 if name.startswith("block") else depth + 1


def params(name):
    shapes = jax.eval_shape(
        models.build(name, 10).init, jax.random.key(0), jax.ShapeDtypeStruct((2, 32, 32, 3), "uint8")
    )
    return shapes["params"]


@pytest.mark.parametrize("layers", [LAYERS, config.LAYERS])
def test_depths_are_beits(layers):
    found = decay.depths(VIT, layers)
    assert dict(zip(tree.paths(VIT), jax.tree.leaves(found), strict=True)) == {n: beit(n) for n in tree.paths(VIT)}


def test_updates_shrink_by_layer_with_their_weight_decay():
    plain = optimizers.build("adamw", 0.1, weight_decay=0.3)
    layered = optax.chain(plain, decay.layer_decay(0.5, LAYERS))
    grads = jax.tree.map(lambda x: 0.1 * x, VIT)
    one, _ = plain.update(grads, plain.init(VIT), VIT)
    other, _ = jax.jit(layered.update)(grads, layered.init(VIT), VIT)
    for name, a, b in zip(tree.paths(VIT), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a * 0.5 ** (13 - beit(name)), rtol=1e-6, err_msg=name)


def test_stages_and_blocks_are_layers_in_order():
    tree_ = params("resnet18")
    depth = dict(zip(tree.paths(tree_), jax.tree.leaves(decay.depths(tree_, config.LAYERS)), strict=True))
    of = {
        f"stage{s}/block{b}": {d for n, d in depth.items() if n.startswith(f"stage{s}/block{b}/")}
        for s in (1, 2, 3, 4)
        for b in (0, 1)
    }
    assert list(of.values()) == [{d} for d in range(1, 9)]
    assert {d for n, d in depth.items() if n.startswith("stem/")} == {0}
    assert {d for n, d in depth.items() if n.startswith("head/")} == {9}


@pytest.mark.parametrize("name", ["resnet8", "resnet50", "cnn", "mlp"])
def test_the_rule_by_dimensions_is_the_rule_by_names(name):
    by_name = tree.map_named(lambda path, _: not path.endswith(("bias", "scale")), params(name))
    assert decay.decay_mask(params(name)) == by_name == decay.undecayed(r"(bias|scale)$")(params(name))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_positions_and_tokens_can_be_spared(name):
    optimizer = optimizers.build(name, 0.1, weight_decay=0.1, mask=decay.undecayed("positions/", "token/"))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, VIT), optimizer.init(VIT), VIT)
    moved = {path for path, leaf in zip(tree.paths(VIT), jax.tree.leaves(updates), strict=True) if np.any(leaf != 0)}
    assert moved == {path for path in tree.paths(VIT) if path.endswith("kernel")}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: decay.layer_decay(0.5, ["stem", r"block(\d+)"]).init(VIT), "the layer 'stem' holds no leaf"),
        (lambda: decay.layer_decay(0.5, ["", r"block(\d+)"]).init(VIT), "that no layer before it holds"),
        (lambda: decay.layer_decay(0.0, LAYERS), "layer decay 0.0"),
        (lambda: decay.layer_decay(1.5, LAYERS), "layer decay 1.5"),
        (lambda: decay.layer_decay(0.5, ["("]), r"'\(' is not a regular expression"),
        (lambda: decay.undecayed("["), r"'\[' is not a regular expression"),
        (lambda: decay.undecayed("stem")(VIT), "'stem' matches no leaf"),
        (lambda: optimizers.build("muon", 0.1, adam="("), "not a regular expression"),
    ],
)
def test_refusals(make, problem):
    with pytest.raises(InputError, match=problem):
        make()
