"""Channels removed for real: the small model is the large one with these channels at zero, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import lepton_jax as lp
from lepton_jax.compress import channels, evaluation, leaves, programs
from lepton_jax.compress.dependencies import graph
from lepton_jax.compress.widths import shrunk
from lepton_jax.errors import InputError
from lepton_jax.models import efficientnet, layers, resnet, vit, wide_resnet
from lepton_jax.models.adapters import functions, linen
from lepton_jax.models.depthwise import Depthwise


class VGG(nn.Module):
    """Convolutions with norm and bias, pooling, flattened into a hidden dense layer."""

    @nn.compact
    def __call__(self, x, train: bool):
        for i, width in enumerate((8, 12)):
            x = nn.Conv(width, (3, 3), name=f"conv{i}")(x)
            x = nn.max_pool(nn.relu(layers.norm(train, f"norm{i}")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(16, name="dense")(x.reshape(len(x), -1)))
        return nn.Dense(5, name="head")(x)


class MobileNet(nn.Module):
    """Depthwise convolutions, ours and Flax's (two outputs for each input), with pointwise ones between."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(layers.norm(train, "norm0")(layers.convolution(8, 3, 2, "stem")(x)))
        x = nn.relu(layers.norm(train, "norm1")(Depthwise(3, name="depth1")(x)))
        x = nn.relu6(layers.norm(train, "norm2")(layers.convolution(12, 1, name="point1")(x)))
        x = nn.Conv(24, (3, 3), feature_group_count=12, use_bias=False, name="depth2")(x)
        x = nn.relu(layers.norm(train, "norm3")(x))
        x = layers.norm(train, "norm4")(layers.convolution(8, 1, name="point2")(x))
        return nn.Dense(5, name="head")(jnp.mean(x, (1, 2)))


class DenseNet(nn.Module):
    """Channels side by side, read by norms, by a convolution in groups and by a group norm."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = layers.convolution(8, 3, name="stem")(x)
        for i in range(2):
            y = nn.relu(layers.norm(train, f"norm{i}")(x))
            x = jnp.concatenate([x, layers.convolution(4, 3, name=f"conv{i}")(y)], axis=-1)
        x = layers.norm(train, "norm2")(x)
        left, right = jnp.split(layers.convolution(16, 1, name="mix")(x), 2, axis=-1)
        x = nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False, name="grouped")(nn.gelu(left) * right)
        x = nn.relu(nn.GroupNorm(4, name="group_norm")(layers.convolution(12, 1, name="last")(x)))
        return nn.Dense(5, name="head")(jnp.mean(x, (1, 2)))


def tiny_efficientnet():
    stages = (efficientnet.Group(1, 8, 1, 1, 3), efficientnet.Group(3, 12, 2, 2, 5))
    return linen(efficientnet.EfficientNet(stages, 8, 24, 5, 0.2, 0.2))


def tiny_vit(**options):
    return vit.standard(vit.Size(24, 2, 3), 5, patch=4, dropout=0.2, stochastic_depth=0.2, **options)


MODELS = {
    "resnet8": lambda: lp.models.build("resnet8", 5),
    "resnet20": lambda: lp.models.build("resnet20", 5),
    "padded": lambda: resnet.small(8, 5, shortcut=resnet.Padding),
    "wide": lambda: wide_resnet.with_batch_norm(10, 1, 5, dropout=0.3),
    "vgg": lambda: linen(VGG()),
    "mobilenet": lambda: linen(MobileNet()),
    "densenet": lambda: linen(DenseNet()),
    "efficientnet": tiny_efficientnet,
    "vit": tiny_vit,
    "vit mean": partial(tiny_vit, pooling=vit.mean_pooling, positions=vit.SinCos),
    "normalized mlp": lambda: lp.models.normalized(lp.models.build("mlp", 5, widths=(16, 12)), 0.5, 0.25),
}
IMAGES = jax.random.uniform(jax.random.key(5), (3, 16, 16, 3))
LABELS = jnp.array([0, 3, 1])


def randomized(variables, seed=0):
    """No scale is one, no bias zero, no variance small: nothing agrees by chance."""
    random = np.random.default_rng(seed)

    def drawn(name, leaf):
        near = {"scale": 1.0, "var": 1.0}.get(name.split("/")[-1], 0.0)
        spread = 0.3 if leaf.ndim < 2 else 1 / np.sqrt(leaf.size / leaf.shape[-1])
        return jnp.asarray(near + spread * random.uniform(-1, 1, leaf.shape), leaf.dtype)

    return lp.tree.map_named(drawn, variables)


def made(model):
    return randomized(jax.eval_shape(model.init, jax.random.key(0), IMAGES))


def chosen(model, variables, share=0.4, seed=1, **options):
    ties = graph(model, variables, IMAGES[:1])
    scores = np.random.default_rng(seed).uniform(0.5, 1.5, ties.channels)
    return channels.choose(ties, scores, channels.fewer_channels(ties, share), **options)


def zeroed(variables, kept):
    """What gives out a removed channel at zero: kernels' outputs, biases, scales; all else as it was."""

    def masked(name, leaf):
        return leaf * jnp.broadcast_to(jnp.asarray(kept[name][-1], leaf.dtype), leaf.shape)

    return {**variables, "params": lp.tree.map_named(masked, variables["params"])}


def close(found, expected, tolerance=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(expected)]
    assert lp.tree.distance(found, expected) < tolerance


@pytest.mark.parametrize("name", MODELS)
def test_removing_channels_is_zeroing_them(name):
    model = MODELS[name]()
    variables = made(model)
    kept = chosen(model, variables)
    small, less = shrunk(model, kept), channels.remove(variables, kept)
    assert lp.tree.count(less["params"]) < 0.9 * lp.tree.count(variables["params"])
    keys = jax.random.split(jax.random.key(3), len(IMAGES))
    for train in (False, True):
        whole, part = (jax.jit(partial(m.apply, train=train, keys=keys)) for m in (model, small))
        expected, moved = whole(zeroed(variables, kept), IMAGES)
        assert float(jnp.std(expected)) > 1e-3
        assert lp.tree.distance(expected, whole(variables, IMAGES)[0]) > 1e-2
        found, stats = part(less, IMAGES)
        close(found, expected)
        close(stats, channels.remove(moved, kept)) if moved else None


@pytest.mark.parametrize("name", ["mobilenet", "densenet", "efficientnet", "vit"])
def test_gradients_of_what_is_left_are_those_of_the_large_model(name):
    model = MODELS[name]()
    variables = made(model)
    kept = chosen(model, variables)
    keys = jax.random.split(jax.random.key(3), len(IMAGES))

    def gradient(model):
        def loss(variables):
            outputs, _ = model.apply(variables, IMAGES, True, keys)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, LABELS))

        return lambda variables: jax.jit(jax.grad(loss))(variables)["params"]

    expected = channels.remove(gradient(model)(zeroed(variables, kept)), kept)
    close(gradient(shrunk(model, kept))(channels.remove(variables, kept)), expected, 1e-4)


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_nothing_removed_is_the_original(name):
    model = MODELS[name]()
    variables = made(model)
    kept = chosen(model, variables, share=0, multiple=5)
    less = channels.remove(variables, kept)
    jax.tree.map(np.testing.assert_array_equal, less, variables)
    same, small = (jax.jit(partial(m.apply, train=False, keys=None)) for m in (model, shrunk(model, kept)))
    jax.tree.map(np.testing.assert_array_equal, small(less, IMAGES), same(variables, IMAGES))


def test_a_shrunk_model_initializes_itself_at_its_widths():
    model = MODELS["mobilenet"]()
    kept = chosen(model, made(model))
    found, whole = (jax.jit(m.init)(jax.random.key(0), IMAGES) for m in (shrunk(model, kept), model))
    jax.tree.map(np.testing.assert_array_equal, found, channels.remove(whole, kept))


def test_optimizer_and_average_are_cut_alike_and_training_goes_on():
    model, optimizer = MODELS["resnet8"](), lp.optimizers.adamw(0.01, weight_decay=0.1)
    batch = {"input": IMAGES, "label": LABELS}

    def step(model):
        loss = lp.supervised(model, lp.cross_entropy())
        return jax.jit(lp.averaged(lp.descend(lp.plain(loss), optimizer), 0.9))

    state = lp.initial(model, optimizer, jax.random.key(0), IMAGES, ema=lp.step.ema)
    state, _ = step(model)(state, batch)
    kept = chosen(model, {"params": state.params, **state.stats["model"]}, multiple=4)
    less = channels.remove(state, kept)
    name, masks = "stage2/block0/conv1/kernel", kept["stage2/block0/conv1/kernel"]
    assert not masks[2].all()
    assert not masks[3].all()
    copies = {path: leaf for path, leaf in zip(lp.tree.paths(less), jax.tree.leaves(less), strict=True) if name in path}
    assert len(copies) == 4  # the weight, its average and two moments
    originals = dict(zip(lp.tree.paths(state), jax.tree.leaves(state), strict=True))
    for path, leaf in copies.items():
        np.testing.assert_array_equal(leaf, np.asarray(originals[path])[:, :, masks[2]][:, :, :, masks[3]])
    assert all(leaf.shape[-1] % 4 == 0 for path, leaf in copies.items())
    after, metrics = step(shrunk(model, kept))(less, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, less)
    assert np.isfinite(metrics["loss"].value())
    assert bool(lp.tree.is_finite(after.params))
    assert lp.tree.distance(after.params, less.params) > 1e-4


@pytest.mark.parametrize(("name", "size"), [("resnet56", 16), ("resnet50", 32), ("convnext-tiny", 32)])
def test_deep_models(name, size):
    model, images = lp.models.build(name, 5), jnp.ones((1, size, size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    ties = graph(model, shapes, images)
    scores = np.random.default_rng(0).random(ties.channels)
    kept = channels.choose(ties, scores, channels.fewer_macs(ties, 0.3), multiple=8)
    small, less = shrunk(model, kept), jax.eval_shape(partial(channels.remove, kept=kept), shapes)
    count, whole = programs.macs(small, less, images), programs.macs(model, shapes, images)
    assert 0.6 * whole < count <= 0.7 * whole
    if name == "convnext-tiny":
        assert {group.producers[0].split("/")[-2] for group in ties.free} == {"dense1"}
    outputs, _ = jax.jit(partial(small.apply, train=False, keys=None))(randomized(less), images)
    assert outputs.shape == (1, 5)
    assert bool(jnp.isfinite(outputs).all())


@pytest.mark.parametrize("name", MODELS)
def test_widths_are_multiples_and_costs_are_those_of_the_small_model(name):
    model = MODELS[name]()
    variables = made(model)
    ties = graph(model, variables, IMAGES[:1])
    whole = ties.macs(np.ones(ties.channels, bool))
    assert whole == programs.macs(model, variables, IMAGES[:1])
    scores = np.random.default_rng(0).random(ties.channels)
    kept = channels.choose(ties, scores, channels.fewer_macs(ties, 0.15), multiple=4)
    for group in ties.groups:
        for member, dimension, _ in (m for m in group.members if m.role == "output"):
            mask, own = kept[member][dimension], ties.leaves[member][dimension]
            left = np.count_nonzero(mask & np.isin(own, group.channels))
            assert left % 4 == 0 or left == np.isin(own, group.channels).sum()
    less = channels.remove(variables, kept)
    assert 0 < programs.macs(shrunk(model, kept), less, IMAGES[:1]) <= 0.85 * whole


def test_packed_weights_and_rules_go_through_a_shrunk_model():
    model = MODELS["mobilenet"]()
    variables = made(model)
    kept = chosen(model, variables)
    small, less = shrunk(model, kept), channels.remove(variables, kept)
    kernel = less["params"]["point1"]["kernel"]
    integers = np.round(np.asarray(kernel) * 100).astype(np.int8)
    packed = leaves.Quantized(integers, np.full((1,) * 4, 0.01, np.float32), None, None, kernel.shape, 8)
    seen = []

    def rule(site, inputs, weight):
        seen.append(site.name)
        return evaluation.multiplied(site, inputs, weight)

    params = {**less["params"], "point1": {"kernel": packed}}
    found, _ = evaluation.applied(small, rule).apply({**less, "params": params}, IMAGES, False, None)
    params["point1"] = {"kernel": jnp.asarray(integers, jnp.float32) * 0.01}
    close(found, small.apply({**less, "params": params}, IMAGES, False, None)[0])
    assert sorted(seen) == [name for name in lp.tree.paths(params) if name.endswith("kernel")]


def test_an_own_reverse_derivative_stays():
    @jax.custom_vjp
    def doubting(x, scale):
        return x * scale[None]

    # its derivative is not the true one, so that one sees whether it is taken
    doubting.defvjp(lambda x, scale: (x * scale[None], (x, scale)), lambda kept, g: (3 * g * kept[1][None], kept[1]))

    def init(key, inputs):
        return {"first": jnp.ones((4, 6)), "scale": jnp.arange(1.0, 7), "last": jnp.ones((6, 2))}

    model = functions(init, lambda params, x: doubting(x @ params["first"], params["scale"]) @ params["last"])
    inputs, variables = jnp.arange(8.0).reshape(2, 4), {"params": init(None, None)}
    ties = graph(model, variables, inputs)
    (group,) = ties.free
    keep = np.ones(ties.channels, bool)
    keep[group.channels[[1, 4]]] = False
    kept = ties.kept(keep)
    found = jax.grad(lambda v: jnp.sum(shrunk(model, kept).apply(v, inputs, False, None)[0]))
    expected = jax.grad(lambda v: jnp.sum(model.apply(v, inputs, False, None)[0]))(variables)
    close(found(channels.remove(variables, kept)), channels.remove(expected, kept))


def test_magnitudes_are_summed_over_all_that_makes_a_channel():
    model = MODELS["resnet8"]()
    variables = made(model)
    ties, params = graph(model, variables, IMAGES[:1]), variables["params"]
    (stream,) = [group for group in ties.groups if "stem/conv/kernel" in group.producers]
    kernels = [np.asarray(params["stem"]["conv"]["kernel"]), np.asarray(params["stage1"]["block0"]["conv2"]["kernel"])]
    assert sorted(stream.producers) == ["stage1/block0/conv2/kernel", "stem/conv/kernel"]
    ones = sum(np.abs(kernel).sum((0, 1, 2)) for kernel in kernels)
    np.testing.assert_allclose(channels.l1(ties, params)[stream.channels], ones, rtol=1e-5)
    squares = np.sqrt(sum(np.square(kernel).sum((0, 1, 2)) for kernel in kernels))
    np.testing.assert_allclose(channels.l2(ties, params)[stream.channels], squares, rtol=1e-5)
    scales = sum(np.abs(p["scale"]) for p in (params["stem"]["norm"], params["stage1"]["block0"]["norm2"]))
    np.testing.assert_allclose(channels.norm_scale(ties, params)[stream.channels], scales, rtol=1e-5)


def test_a_head_is_scored_whole():
    model = MODELS["vit"]()
    variables = made(model)
    ties, attention = graph(model, variables, IMAGES[:1]), variables["params"]["block0"]["attention"]
    (heads,) = [group for group in ties.free if "block0/attention/query/kernel" in group.producers]
    expected = sum(
        np.abs(attention[part]["kernel"]).reshape(24, 3, 8).sum((0, 2)) for part in ("query", "key", "value")
    )
    np.testing.assert_allclose(channels.l1(ties, variables["params"])[heads.channels], expected, rtol=1e-5)


def test_taylor_is_the_derivative_by_a_gate_on_the_channel():
    model = MODELS["resnet8"]()
    variables = made(model)

    def loss(params, gates):
        norm = params["stage1"]["block0"]["norm1"]
        # the rectifier lets a positive gate through, so that one on the norm is one on the channel
        gated = {"scale": norm["scale"] * gates, "bias": norm["bias"] * gates}
        params = {**params, "stage1": {"block0": {**params["stage1"]["block0"], "norm1": gated}}}
        outputs, _ = model.apply({**variables, "params": params}, IMAGES, True, None)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(outputs, LABELS))

    by_params, by_gates = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], jnp.ones(16))
    ties = graph(model, variables, IMAGES[:1])
    (group,) = [group for group in ties.free if group.producers == ["stage1/block0/conv1/kernel"]]
    found = channels.taylor(ties, variables["params"], by_params)[group.channels]
    np.testing.assert_allclose(found, np.abs(by_gates), rtol=1e-3, atol=1e-5)


def test_the_lowest_of_all_groups_go_first():
    model = lp.models.build("mlp", 5, widths=(6, 4))
    variables = made(model)
    ties = graph(model, variables, IMAGES[:1])
    first, second = (group.channels for group in ties.free)
    scores = np.zeros(ties.channels)
    # by means of 2 and 30: .5 1 1.5 .25 2 .75, and .1 .3 1.6 2
    scores[first], scores[second] = [1, 2, 3, 0.5, 4, 1.5], [3, 9, 48, 60]
    kept = channels.choose(ties, scores, channels.fewer_channels(ties, 0.4))
    names = [group.producers[0] for group in ties.free]
    np.testing.assert_array_equal(kept[names[0]][1], [False, True, True, False, True, True])
    np.testing.assert_array_equal(kept[names[1]][1], [False, False, True, True])
    kept = channels.choose(ties, scores, channels.fewer_channels(ties, 0.4), least=3)
    np.testing.assert_array_equal(kept[names[0]][1], [False, True, True, False, True, False])
    np.testing.assert_array_equal(kept[names[1]][1], [False, True, True, True])
    kept = channels.choose(ties, scores, channels.fewer_channels(ties, 0.1), pattern=names[1])
    assert kept[names[0]][1].all()
    np.testing.assert_array_equal(kept[names[1]][1], [False, True, True, True])


def test_costs_by_hand():
    model = linen(VGG())
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    by_hand = 16 * 16 * 9 * 3 * 8 + 8 * 8 * 9 * 8 * 12 + 4 * 4 * 12 * 16 + 16 * 5
    assert programs.macs(model, variables, IMAGES[:1]) == by_hand
    assert programs.macs(model, variables, IMAGES) == 3 * by_hand
    # He et al. 2015, table 1: 3.8e9 with the stride on the 1x1 convolutions; 4.1e9 where it is on the 3x3
    deep, images = lp.models.build("resnet50", 1000), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    count = programs.macs(deep, jax.eval_shape(deep.init, jax.random.key(0), images), images)
    assert abs(count - 4.09e9) < 0.01e9


def test_costs_of_loops():
    def looped(params, x):
        return jax.lax.scan(lambda x, _: (x @ params["w"], None), x, length=7)[0]

    def waiting(params, x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ params["w"], x)

    def branching(params, x):
        return jax.lax.cond(jnp.sum(x) > 0, lambda x: x @ params["w"], lambda x: x @ params["w"] @ params["w"], x)

    variables, x = {"params": {"w": jnp.ones((4, 4))}}, jnp.ones((2, 4))
    assert programs.macs(functions(lambda key, x: {}, looped), variables, x) == 7 * 2 * 4 * 4
    assert programs.macs(functions(lambda key, x: {}, branching), variables, x) == 2 * 2 * 4 * 4
    with pytest.raises(InputError, match="while loop"):
        programs.macs(functions(lambda key, x: {}, waiting), variables, x)


def test_bad_input():
    model = MODELS["resnet8"]()
    variables = made(model)
    ties = graph(model, variables, IMAGES[:1])
    scores = np.ones(ties.channels)
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"not in \[0, 1\)"):
            channels.fewer_macs(ties, share)
        with pytest.raises(InputError, match=r"not in \[0, 1\)"):
            channels.fewer_channels(ties, share)
    some = channels.fewer_channels(ties, 0.5)
    with pytest.raises(InputError, match="at least 1"):
        channels.choose(ties, scores, some, least=0)
    with pytest.raises(InputError, match="is not enough"):
        channels.choose(ties, scores, some, least=1000)
    other = MODELS["vgg"]()
    params = made(other)
    without = graph(other, params, IMAGES[:1])
    with pytest.raises(InputError, match="no norm whose scale"):
        channels.norm_scale(without, params["params"])
    kept = chosen(model, variables)
    less, small = channels.remove(variables, kept), shrunk(model, kept)
    with pytest.raises(InputError, match="is what is kept"):
        small.apply(variables, IMAGES, False, None)
    with pytest.raises(InputError, match="nothing is known of the variable 'more'"):
        small.apply({"params": {**less["params"], "more": jnp.ones(3)}}, IMAGES, False, None)
    with pytest.raises(InputError, match="start the optimizer anew"):
        channels.remove({"rows": {"stem": {"conv": {"kernel": jnp.ones((3, 3, 3))}}}}, kept)
    with pytest.raises(InputError, match="nothing would be left"):
        channels.remove(variables, {**kept, "head/bias": (np.zeros(5, bool),)})
    # an output of one kernel without the input of the next, and a class
    mask = kept["stem/conv/kernel"][3].copy()
    mask[np.flatnonzero(mask)[0]] = False
    torn = {**kept, "stem/conv/kernel": (*kept["stem/conv/kernel"][:3], mask)}
    with pytest.raises(InputError, match="does not fit together"):
        shrunk(model, torn).apply(channels.remove(variables, torn), IMAGES, False, None)


def test_enough_by_two_measures():
    model = lp.models.build("resnet8", 10)
    images = jnp.zeros((1, 8, 8, 1))
    variables = model.init(jax.random.key(0), images)
    ties = graph(model, variables, images)
    scores = channels.l2(ties, variables["params"])
    enough = channels.both(channels.fewer_macs(ties, 0.4), channels.fewer_numbers(ties, 0.5))
    kept = channels.choose(ties, scores, enough)
    small = channels.remove(variables, kept)
    assert lp.tree.count(small) <= 0.5 * lp.tree.count(variables)
    assert programs.macs(shrunk(model, kept), small, images) <= 0.6 * programs.macs(model, variables, images)
    with pytest.raises(InputError, match="share 1"):
        channels.fewer_numbers(ties, 1)
