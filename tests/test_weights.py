"""Weights in and out: safetensors files that survive, mistakes that are named, and torch's ResNets."""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lepton_jax import InputError, models, tree, weights
from lepton_jax.models import resnet

KEY = jax.random.key(0)
DTYPES = (np.float32, np.float16, jnp.bfloat16, np.int32, np.uint8, np.int8, bool)


def same(a: Any, b: Any) -> None:
    """Trees of one structure whose leaves have the same dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def variables() -> Any:
    return resnet.small(8, 10).init(KEY, jnp.zeros((1, 8, 8, 3)))


# --- files -------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was(file, variables):
    weights.save(file, variables)
    same(weights.load(file), jax.tree.map(np.asarray, variables))
    found = weights.load(file, like=variables)
    same(found, variables)
    same(weights.load(str(file), like=jax.eval_shape(lambda: variables)), variables)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=5)
leaves = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=0, min_side=0), elements=st.integers(0, 1)
    ).map(lambda array: array.astype(dtype))
)


@settings(deadline=None, max_examples=40)
@given(tree=st.recursive(leaves, lambda below: st.dictionaries(names, below, min_size=1, max_size=3)))
def test_any_tree_of_arrays_comes_back(tree, tmp_path_factory):
    file = tmp_path_factory.mktemp("trees") / "tree.safetensors"
    given = {"params": tree}
    weights.save(file, given)
    same(weights.load(file), given)


def test_arrays_that_lie_otherwise_in_memory_are_written_as_they_read(file):
    turned = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    given = {"a": turned, "b": turned[::2], "c": np.float32(3), "d": [jnp.ones(2), jnp.zeros((0, 3))]}
    weights.save(file, given)
    found = weights.load(file)
    np.testing.assert_array_equal(found["a"], turned)
    np.testing.assert_array_equal(found["b"], turned[::2])
    assert found["c"].shape == ()
    same(weights.load(file, like=given)["d"], given["d"])


def test_saving_changes_nothing_that_it_is_given(file, variables):
    before = jax.tree.map(np.array, variables)
    weights.save(file, variables)
    same(jax.tree.map(np.asarray, variables), before)


def test_64_bit_numbers_are_not_narrowed(file):
    weights.save(file, {"count": np.array([2**40], np.int64), "mean": np.array([1 + 1e-12])})
    found = weights.load(file)
    assert found["count"][0] == 2**40
    assert found["mean"][0] == 1 + 1e-12


def test_a_failed_save_leaves_the_file_that_was_there(file, variables, monkeypatch):
    weights.save(file, variables)
    before = file.read_bytes()

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*\n.*room"):
        weights.save(file, {"a": jnp.ones(3)})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["params"].pop("head"), r"has no params/head/bias\n.*named|has no params/head/bias"),
        (lambda v: v["params"].update(more=jnp.ones(2)), r"has params/more, which"),
        (
            lambda v: v["params"]["head"].update(bias=jnp.ones(7)),
            r"params/head/bias as float32\[7\], expected .*\[10\]",
        ),
        (lambda v: v["params"]["head"].update(bias=jnp.ones(10, jnp.bfloat16)), r"params/head/bias as bfloat16"),
    ],
)
def test_the_first_mismatch_is_named(change, message, file, variables):
    other = jax.tree.map(lambda x: x, variables)
    change(other)
    weights.save(file, other)
    with pytest.raises(InputError, match=message) as error:
        weights.load(file, like=variables)
    assert len(str(error.value).splitlines()) == 2


def test_what_is_no_safetensors_file_says_so(file, tmp_path):
    with pytest.raises(InputError, match=r"cannot be read"):
        weights.load(tmp_path / "nothing")
    weights.save(file, {"a": np.arange(100.0)})
    content = file.read_bytes()
    for broken in (b"", b"PK\x03\x04" + b"x" * 100, content[:-1], content[:20], content + b"more"):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"safetensors.*\n.*safetensors\.torch\.save_file"):
            weights.load(file)


def test_what_cannot_be_written_says_so(file, tmp_path):
    for leaf, reason in ((KEY, "not an array"), ("text", "not an array"), (jnp.ones(2, jnp.int4), "int4")):
        with pytest.raises(InputError, match=rf"b.*{reason}"):
            weights.save(file, {"a": jnp.ones(1), "b": leaf})
    with pytest.raises(InputError, match="two leaves of the tree are named a/b"):
        weights.save(file, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
    with pytest.raises(InputError, match=r"cannot be written.*\n.*folder"):
        weights.save(tmp_path / "missing" / "file", {"a": jnp.ones(1)})
    assert not list(tmp_path.iterdir())
    weights.save(file, {"a": jnp.ones(1), "a/b": jnp.ones(1)})
    with pytest.raises(InputError, match=r"an array a and also a/b"):
        weights.load(file)


# --- torch -------------------------------------------------------------------------------------------------------


def torch_state(name: str, classes: int = 7, channels: int = 3) -> tuple[dict[str, np.ndarray], Any]:
    """(a state dict as torch would have it, our variables): by torch's own order of dimensions."""
    model = models.build(name, classes)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 64, 64, channels))))
    random = np.random.default_rng(0)
    ours = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
    turned = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    state = {
        weights.torch_name(path): leaf.transpose(turned[leaf.ndim])
        for path, leaf in zip(tree.paths(ours), jax.tree.leaves(ours), strict=True)
    }
    return {**state, "bn1.num_batches_tracked": np.int64(3)}, ours


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet18-small"])
def test_names_are_torchvision_s(name):
    state, ours = torch_state(name)
    names = {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"}
    names |= {"layer2.0.downsample.1.running_mean", "layer4.1.bn2.bias", "fc.weight", "fc.bias"}
    assert names <= set(state)
    same(jax.tree.map(np.asarray, weights.from_torch(state, name)), ours)


def test_a_state_dict_that_does_not_fit_is_named():
    state, _ = torch_state("resnet18")
    with pytest.raises(InputError, match=r"no layer1\.0\.bn3"):
        weights.from_torch(state, "resnet50")
    with pytest.raises(InputError, match=r"no layer\d\.\d\.bn1\.running_mean"):
        weights.from_torch(state, "resnet34")
    with pytest.raises(InputError, match=r"has more, which"):
        weights.from_torch({**state, "more": np.zeros(1)}, "resnet18")
    with pytest.raises(
        InputError, match=r"has conv1\.weight as float32\[7, 7, 3, 64\], expected float32\[3, 3, 3, 64\]"
    ):
        weights.from_torch(state, "resnet18-small")
    with pytest.raises(InputError, match=r"no conv1\.weight .*module\."):
        weights.from_torch({f"module.{key}": value for key, value in state.items()}, "resnet18")
    with pytest.raises(InputError, match=r"unknown torch ResNet 'resnet19'"):
        weights.from_torch(state, "resnet19")
    with pytest.raises(InputError, match=r"fc\.bias is not an array"):
        weights.from_torch({**state, "fc.bias": "text"}, "resnet18")


def torch_resnet(torch: Any, widths: tuple[int, ...], blocks: tuple[int, ...], bottleneck: bool) -> Any:
    """torchvision's ResNet, its parts named as there, written with torch.nn alone."""

    def convolution(before: int, after: int, size: int, stride: int = 1) -> Any:
        return torch.nn.Conv2d(before, after, size, stride, size // 2, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, before: int, width: int, stride: int):
            super().__init__()
            kinds = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            kinds = kinds if bottleneck else [(width, 3, stride), (width, 3, 1)]
            after = kinds[-1][0]
            self.count, inner = len(kinds), before
            for i, (features, size, step) in enumerate(kinds, 1):
                setattr(self, f"conv{i}", convolution(inner, features, size, step))
                setattr(self, f"bn{i}", torch.nn.BatchNorm2d(features))
                inner = features
            self.downsample = torch.nn.Sequential()
            if stride > 1 or before != after:
                self.downsample = torch.nn.Sequential(
                    convolution(before, after, 1, stride), torch.nn.BatchNorm2d(after)
                )

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = torch.relu(y) if i < self.count else y
            return torch.relu(y + self.downsample(x))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = convolution(3, 64, 7, 2), torch.nn.BatchNorm2d(64)
            before = 64
            for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
                made = []
                for j in range(count):
                    made.append(Block(before, width, 2 if i and not j else 1))
                    before = width * (4 if bottleneck else 1)
                setattr(self, f"layer{i + 1}", torch.nn.Sequential(*made))
            self.fc = torch.nn.Linear(before, 7)

        def forward(self, x: Any) -> Any:
            x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for i in range(4):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

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
            if value.ndim == 1 and value.dtype.is_floating_point:
                value.copy_(0.2 * torch.rand_like(value) + (0.7 if "var" in name or "weight" in name else -0.1))
    return module.eval()


def agrees(torch: Any, module: Any, name: str, file: Any) -> None:
    """The logits of a torch module and of our model from its safetensors file, for odd sizes of images."""
    from safetensors.torch import save_file

    save_file(module.state_dict(), file)
    variables = weights.from_torch(weights.load(file), name)
    same(weights.from_torch(module.state_dict(), name), variables)
    same(weights.from_torch(dict(module.state_dict(keep_vars=True)), name), variables)
    x = np.random.default_rng(1).normal(size=(2, 37, 45, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    logits, _ = jax.jit(partial(models.build(name, 7).apply, train=False, keys=None))(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_logits_agree_with_torch(torch, file):
    agrees(torch, unsettled(torch, torch_resnet(torch, (64, 128, 256, 512), (2, 2, 2, 2), False)), "resnet18", file)


@pytest.mark.long
@pytest.mark.parametrize("depth", sorted(resnet.KINDS))
def test_logits_agree_with_torch_at_every_depth(torch, file, depth):
    kind, blocks = resnet.KINDS[depth]
    module = torch_resnet(torch, (64, 128, 256, 512), blocks, kind is resnet.Bottleneck)
    agrees(torch, unsettled(torch, module), f"resnet{depth}", file)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_and_logits_agree_with_torchvision(torch, file, name):
    torchvision = pytest.importorskip("torchvision")
    agrees(torch, unsettled(torch, getattr(torchvision.models, name)(num_classes=7)), name, file)
