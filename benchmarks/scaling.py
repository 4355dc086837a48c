"""What a mesh spares and what it moves, read from compiled programs, and what depth costs to compile.

    python -m benchmarks.scaling

- memory: bytes of parameters and optimizer state on one of eight devices, fsdp=8 over fsdp=1; bar 0.16.
- traffic: bytes that cross between devices in one step, over the least that the mesh needs; bar 1.05. An all-reduce
  counts twice what it reduces, an all-gather once what it gathers, a reduce-scatter once what it reduces, as each
  takes it on a ring. The least is one sum of the gradient over data; one gather of the parameters and one
  reduce-scatter of the gradient over fsdp; over model two sums of the activations in each block forward and two
  backward (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053).
- compile: seconds to compile a step of a stacked transformer of 48 blocks over one of 6; bar 1.5.

Traffic is that of programs for eight TPU v5e chips where libtpu is installed (the extra `tpu`; no TPU is needed to
compile), because XLA for CPUs never makes a reduce-scatter and never adds before it reduces; without libtpu it is that
of simulated CPU devices, and the table says so. The value is the greatest of the figures, each over its bar.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

MEMORY, TRAFFIC, COMPILE = 0.16, 1.05, 1.5
TIMES = {"all-reduce": 2}  # what crosses, over the bytes that `crossing` counts
SIZE, BATCH, CLASSES = (384, 2, 8), 64, 16


def transformer() -> lp.Model:
    """Two blocks whose heads, width and classes divide over eight devices."""
    return lp.models.vit.standard(lp.models.vit.Size(*SIZE), CLASSES, patch=4)


def begun(model: lp.Model) -> tuple[Any, dict[str, Any], lp.types.Step]:
    """(the state before the first step, a batch, both as shapes, and the step)."""
    import jax
    import jax.numpy as jnp

    optimizer = lp.optimizers.build("adamw", 1e-3)
    rows = {"input": ((32, 32, 3), jnp.float32), "label": ((), jnp.int32), "index": ((), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct((BATCH, *shape), dtype) for name, (shape, dtype) in rows.items()}
    state = jax.eval_shape(lambda: lp.step.initial(model, optimizer, jax.random.key(0), batch["input"]))
    return state, batch, lp.descend(lp.plain(lp.supervised(model, lp.cross_entropy())), optimizer)


def kept(model: lp.Model, axes: str) -> int:
    """Bytes of parameters and optimizer state on one device."""
    leaves = lp.sharding.leaves(begun(model)[0], lp.mesh.make(axes), model.rules)
    return sum(leaf.nbytes for leaf in leaves if leaf.path.startswith(("params/", "opt_state/")))


def chips() -> tuple[str, Any]:
    """(a name, eight devices to compile for): TPU v5e chips that need not be there, or simulated CPUs."""
    import jax
    from jax.experimental import topologies

    # libtpu would ask the cloud where it is, and wait
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return "TPU v5e", topologies.get_topology_desc("v5e:2x4", "tpu").devices
    except Exception as error:  # of many kinds, by what is missing
        print(f"traffic is of simulated CPU devices: no libtpu ({type(error).__name__})")
        return "CPU", jax.devices()


def mesh_of(devices: Any, axes: str) -> Any:
    """A mesh of devices that need not be there."""
    from jax.sharding import AxisType, Mesh

    sizes = lp.mesh.parse(axes)
    shape = tuple(sizes.values())
    return Mesh(np.array(devices[: lp.mesh.size(sizes)]).reshape(shape), tuple(sizes), (AxisType.Auto,) * len(sizes))


def crossing(devices: Any, axes: str) -> tuple[int, int]:
    """(bytes that a step of the transformer moves on a mesh, bytes that it must)."""
    model = transformer()
    state, batch, step = begun(model)
    program = lp.step.compile(step, state, batch, mesh_of(devices, axes), model.rules).as_text()
    found = sum(TIMES.get(kind, 1) * count for kind, count in lp.plan.moved(program, len(devices)).items())
    gradient, (width, depth, _) = lp.tree.nbytes(state.params), SIZE
    activations = BATCH * (64 + 1) * width * 4
    return found, {"8x1": 2 * gradient, "fsdp=8": 2 * gradient, "1x8": 2 * 4 * depth * activations}[axes]


def compiling(depth: int) -> Callable[[], None]:
    """Trace and compile a step of a stacked transformer anew."""
    model = lp.models.stacked.vision_transformer(lp.models.vit.Size(64, depth, 4), CLASSES, patch=4)
    state, batch, step = begun(model)

    def compile() -> None:
        import jax

        jax.clear_caches()
        lp.step.compile(step, state, batch, lp.mesh.make("1x1"), model.rules)

    return compile


def main(rounds: int = 3) -> None:
    """Measure all three.

    Args:
        rounds: Compilations of each depth.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    lp.mesh.simulate(8)
    rows: list[list[Any]] = []

    def row(what: str, value: float, least: float, ratio: float, bar: float) -> None:
        rows.append([what, value, least, ratio, bar, "yes" if ratio <= bar else "no"])

    for name, model in (("transformer", transformer()), ("resnet18-small", lp.models.build("resnet18-small", CLASSES))):
        few, all = kept(model, "fsdp=8"), kept(model, "fsdp=1")
        row(f"memory, {name}", few, all, few / all, MEMORY)
    kind, devices = chips()
    for axes in ("8x1", "fsdp=8", "1x8"):
        found, least = crossing(devices, axes)
        row(f"traffic, {axes}, {kind}", found, least, found / least, TRAFFIC)
    seconds = record.interleaved({"6": compiling(6), "48": compiling(48)}, rounds)
    deep, shallow = (float(np.median(seconds[depth])) for depth in ("48", "6"))
    row("compile, 48 blocks over 6", deep, shallow, float(np.median(seconds["48"] / seconds["6"])), COMPILE)
    value = max(ratio / bar for *_, ratio, bar, _ in rows)
    record.tell("scaling", ["what", "measured", "against", "ratio", "bar", "holds"], rows, value, 1.0, value <= 1)


if __name__ == "__main__":
    lp.cli.command(main)
