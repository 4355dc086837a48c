"""Models by name, for the command line, and what a model consists of, for people."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from lepton_jax import tree
from lepton_jax.errors import unknown
from lepton_jax.models import convnext, efficientnet, resnet, vit, wide_resnet
from lepton_jax.models.cnn import cnn
from lepton_jax.models.mlp import mlp
from lepton_jax.types import Model, Variables


def build(name: str, classes: int, **options: Any) -> Model:
    """The model of that name; options are those of its function.

    "mlp" (widths (256,) by default), "cnn"; "resnet8" to "resnet110" for small images; "resnet18" to "resnet101"
    for ImageNet, and these with "-small" for the stem that small images need; "vit-tiny", "vit-small", "vit-base" for
    patches of 16 pixels, and these with "-28" or "-32" for patches of 4 in images of that size; "wrn16-4",
    "wrn28-10", "wrn40-4", and these with "-group" for group norm; "convnext-tiny"; "efficientnet-b0". Raises
    InputError for another name.
    """
    known = by_name()
    if name not in known:
        raise unknown("model", name, known)
    return known[name](classes, **options)


def by_name() -> dict[str, Callable[..., Model]]:
    """All names, each with its function of (classes, **options)."""
    known: dict[str, Callable[..., Model]] = {"cnn": cnn, "mlp": _mlp}
    known |= {"convnext-tiny": convnext.tiny, "efficientnet-b0": efficientnet.b0}
    for depth in resnet.SMALL_DEPTHS:
        known[f"resnet{depth}"] = _of(resnet.small, depth)
    for depth in resnet.KINDS:
        known[f"resnet{depth}"] = _of(resnet.imagenet, depth)
        known[f"resnet{depth}-small"] = _of(resnet.imagenet, depth, stem=resnet.Stem)
    for size in vit.SIZES:
        known[f"vit-{size}"] = _of(vit.standard, size)
        known |= {f"vit-{size}-{pixels}": _of(vit.standard, size, patch=4) for pixels in (28, 32)}
    for depth, width in ((16, 4), (28, 10), (40, 4)):
        known[f"wrn{depth}-{width}"] = _of(partial(wide_resnet.with_batch_norm, depth), width)
        known[f"wrn{depth}-{width}-group"] = _of(partial(wide_resnet.with_group_norm, depth), width)
    return known


def _mlp(classes: int, widths: tuple[int, ...] = (256,), **options: Any) -> Model:
    return mlp(widths, classes, **options)


def _of(make: Callable[..., Model], kind: Any, **given: Any) -> Callable[..., Model]:
    return lambda classes, **options: make(kind, classes, **{**given, **options})


class Row(NamedTuple):
    """The parameters under one path. shape: the array's, None where there are several. size: how many numbers."""

    path: str
    shape: tuple[int, ...] | None
    size: int


def table(variables: Variables, depth: int = 1) -> list[Row]:
    """The parameters, summed by the first `depth` parts of their paths, in tree order.

    variables: of arrays or of shapes. `sum(row.size for row in table(variables))` counts all.
    """
    rows: dict[str, Row] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        name = tree.path_name(path[:depth])
        shape, before = (None, rows[name].size) if name in rows else (tuple(leaf.shape), 0)
        rows[name] = Row(name, shape, before + leaf.size)
    return list(rows.values())
