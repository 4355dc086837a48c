"""Weights in and out: safetensors files, and state dicts of ResNets that were trained in torch.

A file holds arrays under their public names, `params/stage1/block0/conv1/kernel`, and nothing that could run.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from lepton_jax import files
from lepton_jax import tree as trees
from lepton_jax.errors import InputError, unknown
from lepton_jax.models import catalog, resnet
from lepton_jax.types import Variables

Path = str | os.PathLike[str]
INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = (*INTEGERS, "float16", "bfloat16", "float32", "float64", "complex64")  # what safetensors gives back as it was


def save(path: Path, tree: PyTree) -> None:
    """Write the arrays of a tree, parameters or a model's variables, to one safetensors file under their paths.

    The file is complete or, where writing fails, as it was before. Raises InputError for leaves of another kind
    than numbers, for two leaves of one name, and where nothing can be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = pathlib.Path(path)
    arrays = _flat(tree)
    try:
        with files.written(target) as part:
            save_file(arrays, part)
    except (OSError, SafetensorError) as error:
        problem = f"weights cannot be written to {target}: {error}"
        raise InputError(problem, "name a file in a folder that exists and has room") from error


def load(path: Path, like: PyTree | None = None) -> Any:
    """The arrays of a safetensors file: nested dicts by the parts of their names, or a tree like `like`.

    Without `like` they are numpy arrays in the dtypes of the file, whatever JAX's own precision. like: a tree of
    arrays or shapes; names, shapes and dtypes must be its own, and its leaves become JAX arrays. A torch model's file
    comes out flat, ready for `from_torch`. Raises InputError where the file cannot be read or does not fit.
    """
    arrays = _read(pathlib.Path(path))
    if like is None:
        return _nested(arrays, path)
    expected = dict(zip(trees.paths(like), jax.tree.leaves(like), strict=True))
    _require_names(arrays, expected, str(path))
    for name, leaf in expected.items():
        _require_same(name, arrays[name], leaf, str(path))
    return trees.map_named(lambda name, leaf: jnp.asarray(arrays[name], leaf.dtype), like)


def from_torch(state_dict: Mapping[str, Any], name: str) -> Variables:
    """The variables of our ResNet `name` from the state dict of torchvision's or timm's, float32.

    state_dict: {torch's name: anything numpy takes}, as `load` reads it from a safetensors file. name: "resnet18",
    "resnet34", "resnet50", "resnet101", or with "-small" for a 3x3 stem. The number of classes is that of `fc`; build
    the model with `models.build(name, classes)`. torch's means and deviations of images belong to the model:
    `models.normalized`. Raises InputError for another name, and at the first tensor that is missing, left over or of
    another shape.
    """
    known = [f"resnet{depth}{stem}" for depth in resnet.KINDS for stem in ("", "-small")]
    if name not in known:
        raise unknown("torch ResNet", name, known)
    arrays = {key: _array(key, value) for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    shapes = _shapes(arrays, name)
    wanted = {path: torch_name(path) for path in trees.paths(shapes)}
    _require_names(arrays, wanted.values(), "the state dict")

    def moved(path: str, leaf: Any) -> jax.Array:
        array = _ours(arrays[wanted[path]]).astype(leaf.dtype)
        _require_same(wanted[path], array, leaf, "the state dict")
        return jnp.asarray(array)

    return trees.map_named(moved, shapes)


def torch_name(path: str) -> str:
    """torchvision's name of a weight of our ResNets: `params/stage1/block0/norm1/scale` -> `layer1.0.bn1.weight`."""
    for pattern, name in _TORCH:
        path = re.sub(pattern, name, path)
    return path.replace("/", ".")


_TORCH = (
    (r"^(params|batch_stats)/", ""),
    (r"^stem/conv", "conv1"),
    (r"^stem/norm", "bn1"),
    (r"^head", "fc"),
    (r"^stage(\d+)/block", r"layer\1/"),
    (r"shortcut/conv", "downsample/0"),
    (r"shortcut/norm", "downsample/1"),
    (r"/norm(\d)", r"/bn\1"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
)


def _shapes(arrays: Mapping[str, np.ndarray], name: str) -> Variables:
    """The variables of the model that these tensors are for, as shapes: as many classes and channels as they have."""
    for key, rank in (("conv1.weight", 4), ("fc.weight", 2)):
        if key not in arrays or arrays[key].ndim != rank:
            some = ", ".join(list(arrays)[:4])
            problem = f"the state dict has no {key} of {rank} dimensions; its names are like: {some}"
            raise InputError(problem, "give the state dict of a torchvision or timm ResNet, by torch's own names")
    model = catalog.build(name, arrays["fc.weight"].shape[0])
    images = jnp.zeros((1, 64, 64, arrays["conv1.weight"].shape[1]))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images))


def _ours(array: np.ndarray) -> np.ndarray:
    """torch's order of dimensions as ours: convolutions OIHW -> HWIO, dense layers out x in -> in x out."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def _array(name: str, value: Any) -> np.ndarray:
    """A tensor as numpy has it, one that records gradients too."""
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is not an array of numbers: {error}", "convert it to float32 on the CPU") from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise InputError(f"{name} is not an array of numbers but {type(value).__name__}", "leave it out of the tree")
    return array


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    """{name: array}, each contiguous: safetensors writes memory as it lies."""
    arrays: dict[str, np.ndarray] = {}
    for name, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
        if name in arrays:
            raise InputError(f"two leaves of the tree are named {name}", "leave the separator / out of keys")
        arrays[name] = np.asarray(_array(name, leaf), order="C")
        if arrays[name].dtype.name not in DTYPES:
            problem = f"{name} is {arrays[name].dtype}, which a safetensors file does not hold"
            raise InputError(problem, f"cast it to one of {', '.join(DTYPES)}")
    return arrays


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"weights cannot be read from {path}: {error}", "name a safetensors file") from error
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:  # the last three: dtypes unknown to numpy
        remedy = "write it with weights.save, or in torch with safetensors.torch.save_file(model.state_dict(), path)"
        raise InputError(f"{path} is not a safetensors file that numpy can hold: {error}", remedy) from error


def _nested(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    names = {tuple(name.split("/")) for name in arrays}
    for name in sorted(names):
        for end in range(1, len(name)):
            if name[:end] in names:
                above, below = "/".join(name[:end]), "/".join(name)
                problem = f"{path} has an array {above} and also {below} below it"
                raise InputError(problem, "give the tree that was saved, as like=")
    return unflatten_dict({tuple(name.split("/")): array for name, array in arrays.items()})


def _require_names(arrays: Mapping[str, Any], expected: Any, source: str) -> None:
    some = ", ".join(list(arrays)[:4])
    for name in expected:
        if name not in arrays:
            raise InputError(f"{source} has no {name}", f"give weights of this very model; its names are like: {some}")
    for name in sorted(set(arrays) - set(expected)):
        raise InputError(f"{source} has {name}, which the model has not", "give weights of this very model")


def _require_same(name: str, array: np.ndarray, leaf: Any, source: str) -> None:
    found, expected = ((tuple(x.shape), np.dtype(x.dtype).name) for x in (array, leaf))
    if found != expected:
        problem = f"{source} has {name} as {found[1]}{list(found[0])}, expected {expected[1]}{list(expected[0])}"
        raise InputError(problem, "give weights of this very model, of as many classes and in the same precision")
