"""Models for images, one table of families through one table of contracts: sizes, names, dtypes, keys, meshes."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import InputError, keys, mesh, models, tree
from lepton_jax.models import convnext, efficientnet, vit, wide_resnet
from lepton_jax.models.efficientnet import Group
from lepton_jax.types import Model
from tests import laws

KEY = jax.random.key(0)
IMAGES = (8, 8, 8, 3)
SMALL = vit.Size(width=16, depth=2, heads=4)
GROUPS = (Group(1, 8, 1, 1, 3), Group(4, 16, 2, 2, 5))

FAMILIES: dict[str, Model] = {
    "vit": vit.standard(SMALL, 10, patch=4, dropout=0.1, stochastic_depth=0.5),
    "vit-mean": vit.standard(SMALL, 10, patch=4, pooling=vit.mean_pooling, positions=vit.SinCos, dropout=0.1),
    "wrn": wide_resnet.with_batch_norm(10, 1, 10, dropout=0.1),
    "wrn-group": wide_resnet.with_group_norm(10, 1, 10, dropout=0.1),
    "convnext": models.linen(convnext.ConvNeXt((1, 1), (8, 16), 10, 2, 0.5), convnext.RULES),
    "efficientnet": models.linen(
        efficientnet.EfficientNet(GROUPS, 8, 32, 10, dropout=0.1, stochastic_depth=0.5), efficientnet.RULES
    ),
}
WITHOUT_BATCH_NORM = ("vit", "vit-mean", "wrn-group", "convnext")
family = pytest.mark.parametrize("name", list(FAMILIES))


@functools.cache
def run(name: str, train: bool) -> Any:
    """A family's jitted apply, compiled once for all tests."""
    model = FAMILIES[name]
    return jax.jit(lambda variables, x, example_keys: model.apply(variables, x, train, example_keys))


def images(shape: tuple[int, ...] = IMAGES, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(KEY, shape).astype(dtype)


def example_keys(rows: int = IMAGES[0]) -> jax.Array:
    return keys.per_example(KEY, {"input": np.zeros(rows)}, "model")


def shapes(model: Model, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape)))


@functools.cache
def weights(name: str) -> Any:
    """Variables at random values, so that no zero or one of an initializer hides a mistake."""
    random = np.random.default_rng(1)

    def draw(path: str, leaf: Any) -> jax.Array:
        values = random.normal(size=leaf.shape) / np.sqrt(int(np.prod(leaf.shape[:-1])) or 1)
        return jnp.asarray(np.abs(values) + 0.5 if path.endswith(("var", "scale", "gain")) else values, jnp.float32)

    return tree.map_named(draw, shapes(FAMILIES[name], IMAGES))


# --- sizes and names ---------------------------------------------------------------------------------------------


def wide_resnet_size(depth: int, width: int, classes: int) -> int:
    """Kernels without biases, a scale and a bias per normalized channel, and a head, added up layer by layer."""
    count, before = 3 * 9 * 16, 16
    for features in (16 * width, 32 * width, 64 * width):
        for block in range((depth - 4) // 6):
            count += 2 * before + 9 * before * features + 2 * features + 9 * features**2
            count += before * features if block == 0 else 0
            before = features
    return count + 2 * before + before * classes + classes


def group_norm_size(depth: int, width: int, classes: int) -> int:
    """And with a gain and a bias per convolved channel, and a norm on the carried input of each stage."""
    count, before = wide_resnet_size(depth, width, classes) + 2 * 16, 16
    for features in (16 * width, 32 * width, 64 * width):
        count += 2 * before + 2 * features + (depth - 4) // 6 * 4 * features
        before = features
    return count


def transformer_size(width: int, patch: int, tokens: int, classes: int) -> int:
    """Twelve blocks: four dense layers of attention, two of the mlp, two norms; patches, token, positions, head."""
    block = 4 * (width**2 + width) + 8 * width**2 + 5 * width + 4 * width
    around = (3 * patch**2 + 1) * width + width + (tokens + 1) * width + 2 * width
    return 12 * block + around + (width + 1) * classes


@pytest.mark.parametrize(
    ("name", "classes", "pixels", "published", "derived"),
    [
        ("vit-tiny", 1000, 224, 5_717_416, transformer_size(192, 16, 196, 1000)),
        ("vit-small", 1000, 224, 22_050_664, transformer_size(384, 16, 196, 1000)),
        ("vit-base", 1000, 224, 86_567_656, transformer_size(768, 16, 196, 1000)),
        ("vit-tiny-28", 10, 28, 5_359_882, transformer_size(192, 4, 49, 10)),
        ("vit-tiny-32", 10, 32, 5_362_762, transformer_size(192, 4, 64, 10)),
        ("wrn16-4", 10, 32, 2_748_890, wide_resnet_size(16, 4, 10)),
        ("wrn28-10", 10, 32, 36_479_194, wide_resnet_size(28, 10, 10)),
        ("wrn40-4", 10, 32, 8_949_210, wide_resnet_size(40, 4, 10)),
        ("wrn16-4-group", 10, 32, 2_753_818, group_norm_size(16, 4, 10)),
        ("convnext-tiny", 1000, 32, 28_589_128, 28_589_128),
        ("efficientnet-b0", 1000, 32, 5_288_548, 5_288_548),
    ],
)
def test_parameter_counts_are_the_published_ones_and_every_rule_matches(name, classes, pixels, published, derived):
    model = models.build(name, classes)
    variables = shapes(model, (1, pixels, pixels, 3))
    assert tree.count(variables["params"]) == published == derived
    mesh.shardings(variables, mesh.make("2x4"), model.rules)  # raises for a rule that matches nothing


def test_mean_pooling_and_fixed_positions_have_no_parameters():
    model = vit.standard("small", 1000, pooling=vit.mean_pooling, positions=vit.SinCos)
    assert tree.count(shapes(model, (1, 224, 224, 3))["params"]) == 22_050_664 - 384 - 197 * 384


def test_weights_have_their_public_names():
    names = [path for name in FAMILIES for path in tree.paths(shapes(FAMILIES[name], IMAGES))]
    for name in (
        "params/patches/kernel",
        "params/token/embedding",
        "params/positions/embedding",
        "params/block0/attention/query/kernel",
        "params/block1/mlp/dense1/kernel",
        "params/stage1/block0/conv1/gain",
        "params/stage2/block0/shortcut/kernel",
        "batch_stats/stage1/block0/norm1/mean",
        "params/downsample2/conv/kernel",
        "params/stage2/block0/layer_scale",
        "params/stage2/block1/depthwise/conv/kernel",
        "batch_stats/stage2/block0/expand/norm/var",
        "params/stage2/block0/squeeze/dense1/kernel",
    ):
        assert name in names


@family
def test_blocks_are_tagged_for_rematerialization(name):
    model = FAMILIES[name]
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, False, None))(weights(name), images())
    tags = [eqn.params["name"] for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "name"]
    assert tags == ["block"] * {"wrn": 3, "wrn-group": 3, "efficientnet": 3}.get(name, 2)


# --- contracts ---------------------------------------------------------------------------------------------------


@family
def test_evaluation_moves_nothing_and_needs_no_keys(name):
    variables = weights(name)
    outputs, stats = run(name, False)(variables, images(), None)
    assert outputs.shape == (8, 10)
    assert tree.is_finite(outputs)
    jax.tree.map(np.testing.assert_array_equal, stats, {k: v for k, v in variables.items() if k != "params"})
    with pytest.raises(InputError, match="no keys"):
        FAMILIES[name].apply(variables, images(), True, None)


@family
def test_computation_follows_the_parameters(name, float64):
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        given = {**weights(name), "params": tree.cast(weights(name)["params"], dtype)}
        x = images(dtype=dtype)
        outputs, stats = jax.eval_shape(lambda v, x, k: FAMILIES[name].apply(v, x, True, k), given, x, example_keys())
        assert outputs.dtype == dtype
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_microbatches_draw_what_the_batch_draws(name):
    """Also row by row: a draw belongs to the example, not to its place."""
    variables, x, own = weights(name), images(), example_keys()
    whole, _ = run(name, True)(variables, x, own)
    for rows in (np.arange(1, 8, 2), np.array([6, 3, 0, 5])):
        part, _ = run(name, True)(variables, x[rows], own[rows])
        np.testing.assert_allclose(part, whole[rows], rtol=1e-4, atol=1e-5)
    assert not np.allclose(whole, run(name, False)(variables, x, None)[0])


@functools.cache
def alone(name: str) -> laws.Run:
    return trained(name, "1x1")


def trained(name: str, axes: str) -> laws.Run:
    model = models.normalized(FAMILIES[name], 0.3, 0.4)
    return laws.train(model, laws.TECHNIQUES["plain"], axes, 4, jnp.float64)


@family
@pytest.mark.parametrize(
    "axes", ["data=2,fsdp=2,model=2", *(pytest.param(x, marks=pytest.mark.long) for x in ("4x2", "2x4"))]
)
def test_the_same_run_on_every_mesh(name, axes, float64, unoptimized):
    run = trained(name, axes)
    np.testing.assert_allclose(run.losses, alone(name).losses, rtol=1e-9)
    # leaf by leaf, with momenta, which are sums of gradients: a wrong one that is small would drown in the rest
    for part in ("params", "opt_state", "stats"):
        here, there = getattr(run.state, part), getattr(alone(name).state, part)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-13), here, there)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_images_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"30x32 .* 4x4\n.*patch"):
        shapes(models.build("vit-tiny-32", 10), (1, 30, 32, 3))
    with pytest.raises(InputError, match=r"28x28 .*\n.*32x32"):
        shapes(models.build("convnext-tiny", 10), (1, 28, 28, 3))
    with pytest.raises(InputError, match=r"3x2 patches make 7 tokens, and positions of 5.*\n.*SinCos"):
        FAMILIES["vit"].apply(weights("vit"), images((1, 12, 8, 3)), False, None)
    outputs, _ = FAMILIES["vit-mean"].apply(weights("vit-mean"), images((1, 12, 8, 3)), False, None)
    assert outputs.shape == (1, 10)


def test_impossible_sizes_name_the_possible_ones():
    with pytest.raises(InputError, match=r"'tinny'\ndid you mean 'tiny'"):
        vit.standard("tinny", 10)
    with pytest.raises(InputError, match="3 heads do not divide a width of 16"):
        vit.standard(vit.Size(16, 1, 3), 10)
    with pytest.raises(InputError, match="multiple of 4"):
        shapes(vit.standard(vit.Size(6, 1, 3), 10, patch=4, positions=vit.SinCos), IMAGES)
    for depth in (4, 15, 20):
        with pytest.raises(InputError, match=rf"{depth} is not\n.*10, 16, 22, 28"):
            wide_resnet.with_batch_norm(depth, 1, 10)
    with pytest.raises(InputError, match="3 groups"):
        wide_resnet.with_group_norm(16, 4, 10, groups=3)
