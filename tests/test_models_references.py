"""Models for images against other people's: numpy for the parts, torchvision for whole networks."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from lepton_jax import models, tree
from lepton_jax.models import convnext, efficientnet, vit, wide_resnet
from lepton_jax.types import Model

KEY = jax.random.key(0)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- parts, in numpy ---------------------------------------------------------------------------------------------


def test_attention_is_a_softmax_average_per_head():
    query, key, value = (draw(2, 5, 3, 4, seed=i) for i in range(3))
    expected = np.zeros_like(value)
    for example, head, token in np.ndindex(2, 3, 5):
        scores = np.exp(key[example, :, head] @ query[example, token, head] / 2)
        expected[example, token, head] = scores / scores.sum() @ value[example, :, head]
    found = vit.attended(*map(jnp.asarray, (query, key, value)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_attention_s_softmax_is_wide_in_half_precision():
    """2^12 tokens of equal scores: in bfloat16 the weights would not add up to one."""
    query, value = jnp.zeros((1, 4096, 1, 1), jnp.bfloat16), jnp.ones((1, 4096, 1, 1), jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(vit.attended(query, query, value), np.float32), 1, rtol=1e-2)


def test_fixed_positions_depend_on_row_and_column_alone_and_are_zero_for_the_token():
    tokens = jnp.zeros((1, 13, 8))
    positions = np.asarray(vit.SinCos().apply({}, tokens, (3, 4)))[0]
    np.testing.assert_array_equal(positions[0], 0)
    grid = positions[1:].reshape(3, 4, 8)
    np.testing.assert_allclose(grid[0, 0], [0, 0, 1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(grid[:, :, :4], np.broadcast_to(grid[:1, :, :4], (3, 4, 4)))
    np.testing.assert_array_equal(grid[:, :, 4:], np.broadcast_to(grid[:, :1, 4:], (3, 4, 4)))
    np.testing.assert_allclose(grid[2, 3, :4], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], rtol=1e-5)
    assert len(np.unique(positions, axis=0)) == 13


def test_standardized_kernels_have_mean_zero_and_variance_one_over_fan_in():
    kernel, gain = draw(3, 3, 5, 4) * 7 + 2, np.array([1, 2, 0.5, -1], np.float32)
    found = np.asarray(wide_resnet.standardized(jnp.asarray(kernel), jnp.asarray(gain)))
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(found.var((0, 1, 2)), gain**2 / 45, rtol=1e-4)
    np.testing.assert_allclose(np.corrcoef(found[..., 1].ravel(), kernel[..., 1].ravel())[0, 1], 1, rtol=1e-5)
    assert np.isfinite(wide_resnet.standardized(jnp.ones((1, 1, 3, 4)), jnp.asarray(gain))).all()


def test_group_norm_follows_the_rectifier_and_sees_one_example():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return wide_resnet.group_normed(x, True, "norm", groups=2)

    x = draw(3, 4, 5, 6)
    groups = np.maximum(x, 0).reshape(3, 20, 2, 3)
    centered = groups - groups.mean((1, 3), keepdims=True)
    expected = (centered / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    found, _ = Net().init_with_output(KEY, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_blocks_start_near_what_the_papers_say():
    """The transformer's head at zero; ConvNeXt's branches at a millionth."""
    x = jnp.asarray(draw(2, 8, 8, 3))
    model = vit.standard(vit.Size(8, 1, 2), 5, patch=4)
    outputs, _ = model.apply(model.init(KEY, x), x, False, None)
    np.testing.assert_array_equal(outputs, 0)
    y, _ = convnext.Block().init_with_output(KEY, x, False)
    np.testing.assert_allclose(y, x, atol=1e-4)
    assert not np.array_equal(y, x)


# --- networks, in torch ------------------------------------------------------------------------------------------


@pytest.fixture
def torchvision():
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("torch").manual_seed(0)
    return torchvision


def unsettled(module: Any) -> Any:
    """The module in evaluation, with every number drawn anew, so that no zero or one hides a mistake."""
    import torch

    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                fan = value[0].numel() if value.ndim > 1 else 4
                value.copy_(torch.randn_like(value) / fan**0.5)
                if "running_var" in name or (value.ndim == 1 and name.endswith("weight")):
                    value.abs_().add_(0.5)
    return module.eval()


def agrees(model: Model, module: Any, names: Any, pixels: int) -> None:
    """Our logits with the module's weights, moved by `names` (torch's name -> ours), are the module's."""
    import torch

    module = unsettled(module)
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            flat |= {tuple(path.split("/")): part for path, part in names(name, value.numpy())}
    x = draw(2, pixels, pixels, 3)
    variables = unflatten_dict(flat)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.asarray(x)))
    turned = tree.map_named(lambda path, leaf, array: ours(path, array).reshape(leaf.shape), shapes, variables)
    logits, _ = jax.jit(partial(model.apply, train=False, keys=None))(jax.tree.map(jnp.asarray, turned), x)
    with torch.no_grad():
        expected = module(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def ours(path: str, array: np.ndarray) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}
    return array.transpose(axes[array.ndim]) if path.endswith("kernel") else array


def renamed(pairs: list[tuple[str, str]], name: str) -> str:
    """torch's name as ours: each pattern in turn, then the leaf by what its module is."""
    for pattern, new in pairs:
        name = re.sub(pattern, new, name)
    path = name.replace(".", "/")
    if path.endswith("/weight"):
        return path.removesuffix("weight") + ("scale" if re.search(r"norm\d?/weight$", path) else "kernel")
    return path


def test_the_vision_transformer_agrees_with_torchvision(torchvision):
    module = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=128, num_classes=7
    )
    pairs = [
        (r"^conv_proj", "patches"),
        (r"^encoder\.layers\.encoder_layer_(\d+)", r"block\1"),
        (r"^encoder\.ln", "norm"),
        (r"ln_(\d)", r"norm\1"),
        (r"self_attention\.out_proj", "attention.out"),
        (r"mlp\.(linear_1|0)\.", "mlp.dense1."),
        (r"mlp\.(linear_2|3)\.", "mlp.dense2."),
        (r"^heads\.head", "head"),
        (r"^class_token", "token.embedding"),
        (r"^encoder\.pos_embedding", "positions.embedding"),
    ]

    def names(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
        if "in_proj_" not in name:
            return [("params/" + renamed(pairs, name), array)]
        block, kind = re.search(r"layer_(\d+).*in_proj_(\w+)", name).groups()
        leaf = {"weight": "kernel", "bias": "bias"}[kind]
        parts = zip(("query", "key", "value"), np.split(array, 3), strict=True)
        return [(f"params/block{block}/attention/{part}/{leaf}", value) for part, value in parts]

    agrees(vit.standard(vit.Size(32, 2, 4), 7, patch=4), module, names, 16)


def test_convnext_agrees_with_torchvision(torchvision):
    settings = [
        torchvision.models.convnext.CNBlockConfig(8, 16, 1),
        torchvision.models.convnext.CNBlockConfig(16, None, 2),
    ]
    module = torchvision.models.ConvNeXt(settings, num_classes=7)
    pairs = [
        (r"^features\.0\.0", "stem"),
        (r"^features\.0\.1", "stem_norm"),
        (r"^features\.2\.0", "downsample2.norm"),
        (r"^features\.2\.1", "downsample2.conv"),
        (r"^features\.1\.", "stage1.block"),
        (r"^features\.3\.", "stage2.block"),
        (r"block\.0\.", "conv."),
        (r"block\.2\.", "norm."),
        (r"block\.3\.", "dense1."),
        (r"block\.5\.", "dense2."),
        (r"^classifier\.0", "norm"),
        (r"^classifier\.2", "head"),
    ]
    pairs[6:6] = [(r"(stage\d\.block)(\d+)\.block\.", r"\1\2.block.")]
    model = models.linen(convnext.ConvNeXt((1, 2), (8, 16), 7), convnext.RULES)
    agrees(model, module, lambda name, array: [("params/" + renamed(pairs, name), array)], 37)


def test_efficientnet_agrees_with_torchvision(torchvision):
    MBConv = torchvision.models.efficientnet.MBConvConfig
    settings = [MBConv(1, 3, 1, 8, 8, 1), MBConv(6, 5, 2, 8, 16, 2), MBConv(6, 3, 1, 16, 24, 1)]
    module = torchvision.models.EfficientNet(settings, dropout=0.2, last_channel=32, num_classes=7)
    units = {0: ("depthwise", "squeeze", "project"), 1: ("expand", "depthwise", "squeeze", "project")}
    ends = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}

    def names(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
        if name.startswith("classifier"):
            return [(f"params/head/{'kernel' if name.endswith('weight') else 'bias'}", array)]
        place = {"features.0": "stem", "features.4": "last"}.get(name[:10])
        if match := re.match(r"features\.([123])\.(\d)\.block\.(\d)\.(.*)", name):
            stage, block, part, rest = match.groups()
            place = f"stage{stage}/block{block}/{units[stage != '1'][int(part)]}"
        else:
            rest = name.split(".", 2)[2]
        unit, leaf = rest.split(".")
        if unit in ("fc1", "fc2"):
            return [(f"params/{place}/dense{unit[-1]}/{'kernel' if leaf == 'weight' else 'bias'}", squeezed(array))]
        if unit == "0":
            return [(f"params/{place}/conv/kernel", array)]
        group = "batch_stats" if leaf.startswith("running") else "params"
        return [(f"{group}/{place}/norm/{ends[leaf]}", array)]

    groups = tuple(efficientnet.Group(*row) for row in ((1, 8, 1, 1, 3), (6, 16, 2, 2, 5), (6, 24, 1, 1, 3)))
    model = models.linen(efficientnet.EfficientNet(groups, 8, 32, 7), efficientnet.RULES)
    agrees(model, module, names, 37)


def squeezed(array: np.ndarray) -> np.ndarray:
    """A 1x1 convolution of pooled features as the dense layer that it is."""
    return array[:, :, 0, 0] if array.ndim == 4 else array


def test_the_wide_residual_network_agrees_with_one_in_torch(torchvision):
    import torch

    def convolution(before: int, after: int, size: int, stride: int = 1) -> Any:
        return torch.nn.Conv2d(before, after, size, stride, size // 2, bias=False)

    class Block(torch.nn.Module):
        """Zagoruyko's basic block: where the shape changes, the shortcut starts after norm and rectifier."""

        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.norm1, self.norm2 = torch.nn.BatchNorm2d(before), torch.nn.BatchNorm2d(after)
            self.conv1, self.conv2 = convolution(before, after, 3, stride), convolution(after, after, 3)
            self.shortcut = convolution(before, after, 1, stride) if before != after else None

        def forward(self, x: Any) -> Any:
            active = torch.relu(self.norm1(x))
            y = self.conv2(torch.relu(self.norm2(self.conv1(active))))
            return y + (x if self.shortcut is None else self.shortcut(active))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.head = convolution(3, 16, 3), torch.nn.BatchNorm2d(128), torch.nn.Linear(128, 7)
            for i, (before, after) in enumerate(((16, 32), (32, 64), (64, 128))):
                blocks = {"block0": Block(before, after, 1 if i == 0 else 2), "block1": Block(after, after, 1)}
                setattr(self, f"stage{i + 1}", torch.nn.ModuleDict(blocks))

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            for i in range(3):
                for block in getattr(self, f"stage{i + 1}").values():
                    x = block(x)
            return self.head(torch.relu(self.norm(x)).mean((2, 3)))

    def names(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
        group = "batch_stats" if "running" in name else "params"
        return [(f"{group}/" + renamed([(r"running_", "")], name), array)]

    agrees(wide_resnet.with_batch_norm(16, 2, 7), Network(), names, 13)


def test_published_counts_are_torchvision_s(torchvision):
    for name, builder in (
        ("vit-base", torchvision.models.vit_b_16),
        ("convnext-tiny", torchvision.models.convnext_tiny),
        ("efficientnet-b0", torchvision.models.efficientnet_b0),
    ):
        shapes = jax.eval_shape(lambda name=name: models.build(name, 1000).init(KEY, jnp.zeros((1, 224, 224, 3))))
        assert tree.count(shapes["params"]) == sum(p.numel() for p in builder().parameters())
