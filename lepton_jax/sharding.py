"""How the arrays of a run lie over its mesh, and what each axis does, in words."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax import keys, tree
from lepton_jax import mesh as meshes
from lepton_jax import step as steps
from lepton_jax.types import Batch, Rule, Step, TrainState


class Leaf(NamedTuple):
    """One array of the state. rule: what gave it its spec, in words. nbytes: on one device."""

    path: str
    shape: tuple[int, ...]
    spec: P
    rule: str
    nbytes: int


def leaves(state: TrainState, mesh: Mesh, rules: Sequence[Rule]) -> list[Leaf]:
    """Every array of the state, in tree order. Raises InputError for a rule that matches none."""
    found, laid = [], meshes.shardings(state, mesh, rules)
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(laid), strict=True):
        name = tree.path_name(path)
        part = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        found.append(Leaf(name, leaf.shape, sharding.spec, reason(name, leaf.shape, sharding, rules), part))
    return found


def reason(name: str, shape: tuple[int, ...], sharding: NamedSharding, rules: Sequence[Rule]) -> str:
    """The rule that an array lies by, in words: a model's, fsdp's, or none."""
    rule, mesh = meshes.deciding(name, shape, rules), sharding.mesh
    words = []
    if rule:
        words.append(rule.pattern)
        for axis, length in zip(rule.axes, shape, strict=True):
            if axis and length % mesh.shape.get(axis, 1):
                words.append(f"but {axis} {mesh.shape[axis]} does not divide {length}")
    if "fsdp" in axes_of(sharding.spec):
        words.append("fsdp takes the largest dimension that it divides")
    return ", ".join(words) or "none: whole"


def explained(step: Step, state: TrainState, batch: Batch, mesh: Mesh, rules: Sequence[Rule]) -> list[str]:
    """Lines for people: what each axis does, then a line per array, then bytes per device by part of the state."""
    found = leaves(state, mesh, rules)
    with jax.set_mesh(mesh):
        used = set(named(jax.make_jaxpr(step)(steps.shapes(state), steps.shapes(dict(batch))).jaxpr))
    used |= {axis for leaf in found for axis in axes_of(leaf.spec)}
    rows = [("path", "shape", "lies as", "bytes", "rule")]
    rows += [(leaf.path, sized(leaf.shape), shown(leaf.spec), f"{leaf.nbytes:,}", leaf.rule) for leaf in found]
    path, shape, spec, nbytes, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{a:<{path}}  {b:<{shape}}  {c:<{spec}}  {d:>{nbytes}}  {e}" for a, b, c, d, e in rows]
    return [*axes(mesh, used, keys.size(batch)), "", *lines, "", *totals(found)]


def axes(mesh: Mesh, used: set[str], batch: int) -> list[str]:
    """A line per axis of the mesh: what it does for this step."""
    does = {
        "data": f"splits the batch of {batch}",
        "fsdp": f"splits the batch of {batch}; parameters and optimizer rest in parts and are gathered for use",
        "model": "splits parameters and what is computed with them, by the rules",
        "sequence": "splits the tokens; attention goes around in a ring",
        "pipe": "splits the layers into stages, through which the batch goes in microbatches",
    }
    same = "nothing of this model is split over it: its devices repeat the same computation"
    lines = []
    for axis, size in mesh.shape.items():
        works = axis in used or axis in meshes.BATCH_AXES
        lines.append(f"{axis:<9}  {size}: {'one device' if size == 1 else does[axis] if works else same}")
    return lines


def totals(found: Sequence[Leaf]) -> list[str]:
    """Bytes per device by part of the state, and together."""
    parts: dict[str, int] = {}
    for leaf in found:
        part = leaf.path.split("/")[0]
        parts[part] = parts.get(part, 0) + leaf.nbytes
    return [
        f"{name:<9}  {nbytes:>13,} bytes per device" for name, nbytes in (parts | {"all": sum(parts.values())}).items()
    ]


def sized(shape: tuple[int, ...]) -> str:
    """A shape as text, `3x3x16x16`; a dash for a scalar."""
    return "x".join(map(str, shape)) or "-"


def shown(spec: P) -> str:
    """A PartitionSpec as text: `(None, model)`, or `whole` where nothing is split."""
    return f"({', '.join(str(axis) for axis in spec)})" if axes_of(spec) else "whole"


def axes_of(spec: P) -> set[str]:
    """The mesh axes that a PartitionSpec names."""
    return {axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis}


def named(jaxpr: Jaxpr) -> Iterator[str]:
    """The mesh axes over which a traced function lays anything, by `shard_map` or by a constraint."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, P)):
            yield from _named(value)


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, ClosedJaxpr):
        yield from named(value.jaxpr)
    elif isinstance(value, Jaxpr):
        yield from named(value)
    elif isinstance(value, NamedSharding):
        yield from axes_of(value.spec)
    elif isinstance(value, P):
        yield from axes_of(value)
