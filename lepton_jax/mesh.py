"""Meshes of devices: `"8x1"` -> jax Mesh, simulated devices, and how arrays lie over them.

One rule places the whole of a TrainState: an optimizer's moments, an average of the parameters and any other
copy carry the parameter's path as the end of their own, so a rule that matches the weight matches them too.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.types import Batch, Rule

AXES = ("data", "fsdp", "model", "sequence", "pipe")
BATCH_AXES = ("data", "fsdp")  # the axes over which a batch is split


def parse(text: str) -> dict[str, int]:
    """`"8x1"` (data x model) or `"data=4,fsdp=2"` -> axis sizes in mesh order. Raises InputError."""
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        axes = {"data": int(match[1]), "model": int(match[2])}
    elif re.fullmatch(r"\w+=\d+(,\w+=\d+)*", text):
        pairs = [part.split("=") for part in text.split(",")]
        axes = {name: int(number) for name, number in pairs}
        if len(axes) < len(pairs):
            raise InputError(f"the mesh {text!r} names an axis twice", "name each axis once, as in data=4,fsdp=2")
    else:
        raise InputError(f"the mesh {text!r} does not parse", "write DATAxMODEL as in 8x1, or data=4,fsdp=2")
    if strangers := set(axes) - set(AXES):
        raise InputError(f"the mesh {text!r} has an unknown axis {min(strangers)!r}", f"axes are {', '.join(AXES)}")
    if min(axes.values()) < 1:
        raise InputError(f"the mesh {text!r} has an axis of size 0", "give every axis a size of at least 1")
    return axes


def size(axes: Mapping[str, int]) -> int:
    """The number of devices that the axes take."""
    return math.prod(axes.values())


def simulate(devices: int) -> None:
    """Ask for `devices` simulated CPU devices; does nothing for accelerators, or where XLA_FLAGS already asks.

    Of several processes each has said for itself how many it simulates.

    Must come before JAX starts its backend (its first array or device query). Raises InputError after that
    if there are fewer than asked for.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.distributed.is_initialized():
        return
    asked = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if asked >= devices:
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        if jax.device_count() < devices:
            raise InputError(
                f"JAX has already started with {jax.device_count()} device(s) and {devices} are asked for",
                "make the mesh before the first JAX call, or restart and set JAX_NUM_CPU_DEVICES",
            ) from None


def make(axes: Mapping[str, int] | str | None = None) -> Mesh:
    """A Mesh of the first devices, simulated ones where there are only CPUs; by default all on the data axis.

    Raises InputError if there are too few.
    """
    axes = {"data": jax.device_count(), "model": 1} if axes is None else axes
    axes = parse(axes) if isinstance(axes, str) else axes
    needed = size(axes)
    simulate(needed)
    devices = jax.devices()
    if len(devices) < needed:
        kind = devices[0].platform.upper()
        name = ",".join(f"{axis}={size}" for axis, size in axes.items())
        raise InputError(
            f"the mesh {name} needs {needed} devices and this machine has {len(devices)} ({kind})",
            f"use a mesh of at most {len(devices)}, or simulate: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={needed}",
        )
    # Auto, not make_mesh's default Explicit: under Explicit axes vmap over sharded examples raises.
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=devices[:needed])


def abstract(axes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of these axes without devices, to lay shapes over and to trace under."""
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def automatic() -> AbstractMesh | None:
    """The mesh that `jax.set_mesh` has set, where the compiler lays arrays over all of its axes; None elsewhere.

    Where it is there, a function may take axes over by `jax.shard_map`; inside of that it is None.
    """
    here = jax.sharding.get_abstract_mesh()
    return here if here.shape and all(kind == AxisType.Auto for kind in here.axis_types) else None


def is_simulated(mesh: Mesh) -> bool:
    """Whether the mesh consists of more than one CPU device of this one machine."""
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes over which a batch is split."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of pieces into which a batch is split; its size must be a multiple of this."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples (the leading axis) split over data and fsdp, the rest whole."""
    return NamedSharding(mesh, P(batch_axes(mesh) or None))


def part(mesh: Mesh) -> tuple[int, int]:
    """(number, of how many): which of equal parts of a batch lies on this process's devices.

    Processes that split a model and not a batch hold the same part.
    """
    shards = batch_shards(mesh)
    rows = batch_sharding(mesh).addressable_devices_indices_map((shards,)).values()
    first = min(index[0].start or 0 for index in rows if index)
    last = max(shards if index[0].stop is None else index[0].stop for index in rows if index)
    return first // (last - first), shards // (last - first)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def place(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of a batch that this process holds, as one global array over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), dict(batch))


def fed(batch: Batch, mesh: Mesh) -> Batch:
    """A batch of numpy rows as a program compiled for `batch_sharding` takes it.

    Of one process that is the batch itself: the call lays the rows over the devices ten times sooner than `place`.
    """
    return batch if jax.process_count() == 1 else place(batch, mesh)


def shardings(state: PyTree, mesh: Mesh | AbstractMesh, rules: Sequence[Rule] = (), fsdp: bool = True) -> PyTree:
    """How each leaf of `state` (arrays or shapes) lies over the mesh; `fsdp=False` for how it is computed with.

    The first rule whose pattern is found in the leaf's path applies; then fsdp takes the largest dimension that
    it divides and that is still whole. A dimension that its axis does not divide stays whole. Raises InputError
    for a rule that matches nothing.
    """
    for rule in rules:
        tree.select(rule.pattern, state)
    return tree.map_named(lambda name, leaf: NamedSharding(mesh, spec(name, leaf.shape, mesh, rules, fsdp)), state)


def deciding(name: str, shape: tuple[int, ...], rules: Sequence[Rule]) -> Rule | None:
    """The first rule whose pattern is found in the name and that has an axis for every dimension."""
    return next((rule for rule in rules if re.search(rule.pattern, name) and len(rule.axes) == len(shape)), None)


def spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Sequence[Rule], fsdp: bool = True) -> P:
    """How the leaf of that name and shape lies over the mesh; see `shardings`."""
    axes: list[Any] = [None] * len(shape)
    if rule := deciding(name, shape, rules):
        sizes = [mesh.shape.get(axis, 1) if axis else 1 for axis in rule.axes]
        axes = [
            axis if length % size == 0 and size > 1 else None
            for axis, size, length in zip(rule.axes, sizes, shape, strict=True)
        ]
    parts = mesh.shape.get("fsdp", 1) if fsdp else 1
    whole = [d for d, length in enumerate(shape) if axes[d] is None and length % parts == 0]
    if parts > 1 and whole:
        axes[max(whole, key=lambda d: shape[d])] = "fsdp"
    return P(*axes)


_LAYOUTS: ContextVar[tuple[PyTree, PyTree]] = ContextVar("layouts of a traced step's parameters", default=(None, None))


@contextlib.contextmanager
def computing(used: PyTree, kept: PyTree = None) -> Iterator[None]:
    """While a step is traced: its parameters are computed with as `used` and rest as `kept`, trees of shardings."""
    token = _LAYOUTS.set((used, kept))
    try:
        yield
    finally:
        _LAYOUTS.reset(token)


def as_computed(gradient: PyTree) -> PyTree:
    """The gradient, laid out as its parameters are computed with; as it is outside of `computing`."""
    return _laid(gradient, _LAYOUTS.get()[0])


def as_kept(gradient: PyTree) -> PyTree:
    """The gradient, laid out as its parameters rest; as it is outside of `computing`."""
    return _laid(gradient, _LAYOUTS.get()[1])


def _laid(gradient: PyTree, layout: PyTree) -> PyTree:
    if layout is None or jax.tree.structure(layout) != jax.tree.structure(gradient):
        return gradient
    return jax.lax.with_sharding_constraint(gradient, layout)
