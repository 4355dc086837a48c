"""Models: sizes, names, dtypes, references in torch, dropout's laws, sharding, and raw images."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from lepton_jax import InputError, keys, mesh, models, tree
from lepton_jax.models import resnet
from lepton_jax.models.inputs import unit
from lepton_jax.models.layers import Dropout
from lepton_jax.types import Model

KEY = jax.random.key(0)
IMAGES = (8, 8, 8, 3)

FAMILIES: dict[str, Model] = {
    "mlp": models.mlp((16, 12), 10, dropout=0.1),
    "linear": models.mlp((), 10),
    "cnn": models.cnn(10, widths=(4, 8), hidden=16, dropout=0.1),
    "basic": resnet.small(8, 10),
    "bottleneck": models.linen(
        resnet.ResNet(partial(resnet.PooledStem, 8), resnet.Bottleneck, (1, 1), 4, 10), resnet.RULES
    ),
}
family = pytest.mark.parametrize("name", list(FAMILIES))


@functools.cache
def run(name: str, train: bool) -> Any:
    """A family's jitted apply, compiled once for all tests."""
    model = FAMILIES[name]
    return jax.jit(lambda variables, x, example_keys: model.apply(variables, x, train, example_keys))


def images(key: Any = KEY, shape: tuple[int, ...] = IMAGES, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(key, shape).astype(dtype)


def weights(model: Model, shape: tuple[int, ...], seed: int = 1) -> Any:
    """Variables at random values, so that no zero or one of an initializer hides a mistake."""
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape)))
    random = np.random.default_rng(seed)

    def draw(name: str, leaf: Any) -> jax.Array:
        fan = int(np.prod(leaf.shape[:-1])) or 1
        values = random.normal(size=leaf.shape) / np.sqrt(fan)
        return jnp.asarray(np.abs(values) + 0.5 if name.endswith(("var", "scale")) else values, jnp.float32)

    return tree.map_named(draw, shapes)


def size(model: Model, shape: tuple[int, ...]) -> int:
    return tree.count(jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape)))["params"])


# --- sizes and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (resnet.imagenet(18, 1000), (1, 64, 64, 3), 11_689_512),
        (resnet.imagenet(34, 1000), (1, 64, 64, 3), 21_797_672),
        (resnet.imagenet(50, 1000), (1, 64, 64, 3), 25_557_032),
        (resnet.imagenet(101, 1000), (1, 64, 64, 3), 44_549_160),
        (resnet.small(20, 10), (1, 32, 32, 3), 272_474),
        (resnet.small(20, 10, shortcut=resnet.Padding), (1, 32, 32, 3), 269_722),
        (resnet.imagenet(18, 10, stem=resnet.Stem), (1, 32, 32, 3), 11_173_962),
        (models.cnn(10), (1, 28, 28, 1), 320 + 18_496 + 3136 * 128 + 128 + 1290),
        (models.mlp((32,), 10), (1, 28, 28, 1), 784 * 32 + 32 + 330),
    ],
)
def test_parameter_counts_are_the_published_ones(model, shape, count):
    assert size(model, shape) == count


@family
def test_shapes_of_outputs_and_finite_gradients(name):
    model = FAMILIES[name]
    variables = weights(model, IMAGES)
    example_keys = jax.random.split(KEY, len(images()))

    def loss(params):
        outputs, stats = model.apply({**variables, "params": params}, images(), True, example_keys)
        return jnp.sum(jax.nn.log_softmax(outputs)[:, 0]), (outputs, stats)

    gradient, (outputs, stats) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert outputs.shape == (8, 10)
    assert tree.is_finite((gradient, outputs, stats))
    assert tree.norm(gradient) > 0


def test_weights_have_their_public_names():
    names = tree.paths(jax.eval_shape(lambda: resnet.small(8, 10).init(KEY, images())))
    for name in ("stem/conv/kernel", "stage1/block0/conv1/kernel", "stage1/block0/norm1/scale", "head/kernel"):
        assert f"params/{name}" in names
    assert "batch_stats/stage2/block0/shortcut/norm/mean" in names


@pytest.mark.parametrize("kind", [resnet.Basic, resnet.Bottleneck])
def test_a_last_scale_of_zero_makes_blocks_the_identity(kind):
    x = jnp.abs(images(shape=(2, 4, 4, 8)))
    features = 8 if kind is resnet.Basic else 2
    zero, variables = kind(features, 1, last_scale=nn.initializers.zeros).init_with_output(KEY, x, False)
    norms = {name: bool(tree.norm(part["scale"]) > 0) for name, part in variables["params"].items() if "norm" in name}
    assert [name for name, scaled in norms.items() if not scaled] == [max(norms)]
    np.testing.assert_array_equal(zero, x)
    other, _ = kind(features, 1).init_with_output(KEY, x, False)
    assert not np.allclose(other, x)


def test_padding_takes_every_second_pixel_and_adds_zero_channels():
    out = resnet.Padding(features=7, strides=2).apply({}, images(), False)
    expected = np.zeros((8, 4, 4, 7), np.float32)
    expected[..., 2:5] = np.asarray(images())[:, ::2, ::2]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("depth", [1, 2, 3, 21, 50 + 1])
def test_impossible_depths_name_the_possible_ones(depth):
    with pytest.raises(InputError, match=rf"{depth}.*\n.*8, 14, 20, 32"):
        resnet.small(depth, 10)
    with pytest.raises(InputError, match=rf"{depth}.*\n.*18, 34, 50, 101"):
        resnet.imagenet(depth, 10)


def test_blocks_are_tagged_for_rematerialization():
    model = resnet.small(8, 10)
    variables = jax.eval_shape(lambda: model.init(KEY, images()))
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, True, None))(variables, images())
    tags = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "name"]
    assert len(tags) == 3
    assert all(eqn.params["name"] == "block" for eqn in tags)


def test_cnn_works_from_four_pixels_on_and_says_so_below():
    model = models.cnn(3)
    outputs, _ = model.apply(model.init(KEY, jnp.ones((2, 4, 5, 1))), jnp.ones((2, 4, 5, 1)), False, None)
    assert outputs.shape == (2, 3)
    with pytest.raises(InputError, match=r"3x9 .*\n.*4x4"):
        model.init(KEY, jnp.ones((2, 3, 9, 1)))
    with pytest.raises(InputError, match="at least"):
        models.cnn(3, widths=())


# --- references --------------------------------------------------------------------------------------------------


def state_dict(module: Any) -> Any:
    """The weights of a torch module as Linen variables, by its names: convolutions OIHW -> HWIO, dense transposed."""
    params, stats = {}, {}
    names = {"running_mean": "mean", "running_var": "var"}
    for path, value in module.state_dict().items():
        *start, last = path.split(".")
        array = jnp.asarray(value.numpy())
        if last in names:
            stats[(*start, names[last])] = array
        elif last == "weight":
            kinds = {4: ("kernel", (2, 3, 1, 0)), 2: ("kernel", (1, 0)), 1: ("scale", (0,))}
            name, axes = kinds[array.ndim]
            params[(*start, name)] = array.transpose(axes)
        elif last == "bias":
            params[(*start, "bias")] = array
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def torch_block(torch: Any, width: int, features: int, stride: int) -> Any:
    """A basic block written with torch.nn alone, its parts named like ours."""
    conv = partial(torch.nn.Conv2d, bias=False)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(width, features, 3, stride, 1)
            self.norm1 = torch.nn.BatchNorm2d(features)
            self.conv2 = conv(features, features, 3, 1, 1)
            self.norm2 = torch.nn.BatchNorm2d(features)
            if stride > 1 or width != features:
                self.shortcut = torch.nn.ModuleDict(
                    {"conv": conv(width, features, 1, stride), "norm": torch.nn.BatchNorm2d(features)}
                )

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            if hasattr(self, "shortcut"):
                x = self.shortcut["norm"](self.shortcut["conv"](x))
            return torch.relu(x + y)

    return Block()


def torch_resnet18(torch: Any) -> Any:
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.ModuleDict(
                {"conv": torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), "norm": torch.nn.BatchNorm2d(64)}
            )
            widths = (64, 64, 128, 256, 512)
            for i in range(4):
                first = torch_block(torch, widths[i], widths[i + 1], 1 if i == 0 else 2)
                second = torch_block(torch, widths[i + 1], widths[i + 1], 1)
                setattr(self, f"stage{i + 1}", torch.nn.ModuleDict({"block0": first, "block1": second}))
            self.head = torch.nn.Linear(512, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.stem["norm"](self.stem["conv"](x)))
            x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
            for i in range(4):
                for block in getattr(self, f"stage{i + 1}").values():
                    x = block(x)
            return self.head(x.mean((2, 3)))

    return Network()


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def unsettled(torch: Any, module: Any) -> Any:
    """The module with scales, biases and running statistics away from zero and one."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if "norm" in name and value.dtype.is_floating_point:
                value.copy_(torch.rand_like(value) + 0.5)
    return module


@pytest.mark.parametrize("stride", [1, 2])
def test_block_agrees_with_torch_in_training_and_evaluation(torch, stride):
    reference = unsettled(torch, torch_block(torch, 4, 6, stride))
    variables = state_dict(reference)
    block = models.linen(resnet.Basic(features=6, strides=stride))
    x = images(shape=(3, 7, 8, 4))
    given = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    after, moved = block.apply(variables, x, True, None)
    expected = reference.train()(given).detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(after, expected, atol=1e-5)
    # torch keeps the running variance unbiased, so only the means are comparable
    means = state_dict(reference)["batch_stats"]
    np.testing.assert_allclose(moved["batch_stats"]["norm2"]["mean"], means["norm2"]["mean"], atol=1e-6)
    still, _ = block.apply(state_dict(reference), x, False, None)
    expected = reference.eval()(given).detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(still, expected, atol=1e-5)


def test_resnet18_agrees_with_torch(torch):
    reference = unsettled(torch, torch_resnet18(torch)).eval()
    model = resnet.imagenet(18, 10)
    x = images(shape=(2, 37, 45, 3))  # odd sizes, where paddings differ if anywhere
    shapes = jax.eval_shape(lambda: model.init(KEY, x))
    variables = state_dict(reference)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    logits, _ = model.apply(variables, x, False, None)
    with torch.no_grad():
        expected = reference(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


# --- dtypes ------------------------------------------------------------------------------------------------------


@family
def test_computation_follows_the_parameters(name, float64):
    model = FAMILIES[name]
    variables = weights(model, IMAGES)
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        given = {**variables, "params": tree.cast(variables["params"], dtype)}
        x = images(dtype=dtype)
        example_keys = jax.random.split(KEY, 8)
        outputs, stats = jax.eval_shape(lambda v, x, k: model.apply(v, x, True, k), given, x, example_keys)
        assert outputs.dtype == dtype
        # statistics keep their dtype, or a second step would not fit the first
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))


@family
def test_evaluation_moves_nothing(name):
    variables = weights(FAMILIES[name], IMAGES)
    _, stats = run(name, False)(variables, images(), None)
    jax.tree.map(np.testing.assert_array_equal, stats, {k: v for k, v in variables.items() if k != "params"})
    _, moved = run(name, True)(variables, images(), jax.random.split(KEY, 8))
    assert jax.tree.structure(moved) == jax.tree.structure(stats)
    for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(moved), strict=True):
        assert not np.array_equal(before, after)


# --- dropout -----------------------------------------------------------------------------------------------------


def dropped(x: jax.Array, example_keys: jax.Array, rate: float = 0.4, name: str = "a") -> jax.Array:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train, keys):
            return Dropout(rate, name=name)(x, train, keys)

    return models.linen(Net()).apply({"params": {}}, x, True, example_keys)[0]


def test_a_mask_belongs_to_the_example_not_to_its_row():
    x, example_keys = jnp.ones((7, 5, 3)), jax.random.split(KEY, 7)
    whole = dropped(x, example_keys)
    order = np.array([4, 2, 6, 0])
    np.testing.assert_array_equal(dropped(x[order], example_keys[order]), whole[order])
    np.testing.assert_array_equal(dropped(x[3:4], example_keys[3:4]), whole[3:4])
    sharded = jax.device_put((x[:4], example_keys[:4]), mesh.batch_sharding(mesh.make("4x1")))
    np.testing.assert_array_equal(jax.jit(dropped)(*sharded), whole[:4])
    assert not np.array_equal(whole[0], whole[1])


def test_layers_draw_apart():
    x, example_keys = jnp.ones((4, 64)), jax.random.split(KEY, 4)
    assert not np.array_equal(dropped(x, example_keys, name="a"), dropped(x, example_keys, name="b"))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate):
    out = dropped(jnp.ones((100, 400)), jax.random.split(KEY, 100), rate)
    share = float((out == 0).mean())
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / out.size) + 1e-9
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_is_the_identity_in_evaluation_and_refuses_the_impossible():
    x = images()
    assert Dropout(0.9).apply({}, x, False) is x
    with pytest.raises(InputError, match="no keys"):
        Dropout(0.5).apply({}, x, True)
    for rate in (1.0, -0.1):
        with pytest.raises(InputError, match="rate"):
            Dropout(rate).apply({}, x, False)


def test_microbatches_draw_what_the_batch_draws():
    apply, x = run("mlp", True), images()
    variables = weights(FAMILIES["mlp"], IMAGES)
    example_keys = keys.per_example(KEY, {"input": x}, "model")
    whole, _ = apply(variables, x, example_keys)
    part, _ = apply(variables, x[1::2], example_keys[1::2])
    np.testing.assert_allclose(whole[1::2], part, rtol=1e-5, atol=1e-6)
    still, _ = run("mlp", False)(variables, x, None)
    assert not np.allclose(still, whole)


# --- sharding ----------------------------------------------------------------------------------------------------


@family
def test_rules_split_kernels_over_the_model_axis_and_change_nothing(name):
    model, devices = FAMILIES[name], mesh.make("2x4")
    variables = weights(model, IMAGES)
    shardings = mesh.shardings(variables, devices, model.rules)
    split = {
        path: sharding.spec
        for path, sharding in zip(tree.paths(variables), jax.tree.leaves(shardings), strict=True)
        if "model" in jax.tree.leaves(tuple(sharding.spec))
    }
    # ten classes on four devices stay whole; all else is split
    assert {path for path in tree.paths(variables) if "head" not in path} == set(split)
    x, example_keys = images(), jax.random.split(KEY, 8)
    placed = jax.device_put(variables, shardings)
    given = jax.device_put((x, example_keys), mesh.batch_sharding(devices))
    here, there = run(name, True)(variables, x, example_keys), run(name, True)(placed, *given)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), here, there)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "resnet18-small", "resnet50"])
def test_every_rule_matches_at_the_model_s_own_size(name):
    model = models.build(name, 10)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3))))
    sharded = mesh.shardings(shapes, mesh.make("2x4"), model.rules)
    kernels = [x.spec[-1] for path, x in jax.tree_util.tree_leaves_with_path(sharded) if "kernel" in str(path)]
    assert kernels.count("model") == len(kernels) - 1  # all but the head's ten classes


# --- raw images --------------------------------------------------------------------------------------------------


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SEEN = models.functions(lambda key, x: {"a": jnp.ones(())}, lambda params, x: x)
"""A model whose outputs are its inputs."""


def test_raw_images_are_normalized_per_channel():
    raw = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    expected = (raw / 255 - np.array(MEAN)) / np.array(STD)
    model = models.normalized(SEEN, MEAN, STD)
    for given in (raw, (raw / 255).astype(np.float32), jnp.asarray(raw)):
        out, _ = model.apply({"params": {"a": jnp.ones(())}}, given, False, None)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    out, _ = models.normalized(SEEN, 0.5, 0.5).apply({"params": {}}, raw, False, None)
    np.testing.assert_allclose(out, raw / 127.5 - 1, rtol=1e-5, atol=1e-6)


def test_normalized_images_take_the_dtype_of_the_parameters(float64):
    raw = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    expected = (raw / 255 - np.array(MEAN)) / np.array(STD)
    model = models.normalized(SEEN, MEAN, STD)
    half, _ = model.apply({"params": {"a": jnp.ones((), jnp.bfloat16)}}, raw, False, None)
    assert half.dtype == jnp.bfloat16
    # rounded once, at the end: half of bfloat16's last place, not an accumulation of it
    np.testing.assert_array_equal(half, jnp.asarray(expected, jnp.float32).astype(jnp.bfloat16))
    for given in (raw, raw / 255):
        double, _ = model.apply({"params": {"a": jnp.ones((), jnp.float64)}}, given, False, None)
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, expected, rtol=1e-13)


def test_normalized_refuses_what_it_cannot_mean():
    model = models.normalized(SEEN, MEAN, STD)
    with pytest.raises(InputError, match="int32"):
        model.apply({"params": {}}, jnp.ones((1, 2, 2, 3), jnp.int32), False, None)
    with pytest.raises(InputError, match=r"3 means .* 1 channels"):
        model.apply({"params": {}}, jnp.ones((1, 2, 2, 1)), False, None)
    with pytest.raises(InputError, match="positive"):
        models.normalized(SEEN, 0.0, (1.0, 0.0, 1.0))
    np.testing.assert_array_equal(unit(jnp.array([0, 255], jnp.uint8)), [0, 1])


def test_normalized_keeps_rules_and_starts_the_same_parameters():
    model = FAMILIES["linear"]
    shown = models.normalized(model, MEAN, STD)
    assert shown.rules == model.rules
    raw = jnp.zeros(IMAGES, jnp.uint8)
    jax.tree.map(np.testing.assert_array_equal, shown.init(KEY, raw), model.init(KEY, images()))


# --- by name -----------------------------------------------------------------------------------------------------


def test_models_by_name():
    assert size(models.build("resnet20", 10), (1, 32, 32, 3)) == 272_474
    assert size(models.build("resnet50", 1000), (1, 64, 64, 3)) == 25_557_032
    assert size(models.build("resnet18-small", 10), (1, 32, 32, 3)) == 11_173_962
    assert size(models.build("resnet18", 10, stem=resnet.Stem), (1, 32, 32, 3)) == 11_173_962
    assert size(models.build("mlp", 10, widths=(7,)), (1, 4, 4, 1)) == 16 * 7 + 7 + 80
    with pytest.raises(InputError, match=r"unknown model 'resnet21'\ndid you mean 'resnet2?"):
        models.build("resnet21", 10)


def test_table_sums_by_path():
    model = resnet.small(8, 10)
    variables = jax.eval_shape(lambda: model.init(KEY, images()))
    rows = models.table(variables)
    assert [row.path for row in rows] == ["head", "stage1", "stage2", "stage3", "stem"]
    assert sum(row.size for row in rows) == tree.count(variables["params"])
    leaves = models.table(variables, depth=9)
    assert leaves[1] == ("head/kernel", (64, 10), 640)
    assert len(leaves) == len(jax.tree.leaves(variables["params"]))
