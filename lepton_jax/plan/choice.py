"""Which meshes and microbatches are worth a look, and which of them is chosen."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lepton_jax import mesh as meshes
from lepton_jax.errors import InputError
from lepton_jax.plan import prediction, rehearsal
from lepton_jax.plan.accelerators import Accelerator
from lepton_jax.plan.prediction import Prediction, Predictor
from lepton_jax.plan.rehearsal import Work

INNER = (2, 4, 8)  # axes that split no batch send most, so they stay within a server
GROUP = 8  # over more devices than a server has, fsdp may also gather within each
SAFE = 0.9  # of the memory is planned with: predictions are held to 10 %
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
MOST = 8  # numbers of microbatches, doubling from one


class Plan(NamedTuple):
    """All that was predicted, mesh by mesh with rising microbatches, and the fastest that fits; None if none does."""

    predictions: tuple[Prediction, ...]
    chosen: Prediction | None


def looked_at(work: Work, mesh: str | None, devices: int, microbatches: int | None = None) -> list[dict[str, int]]:
    """The mesh that is named, or the candidates where none is. Raises InputError as `given` and `candidates` do."""
    number = microbatches or 1
    return candidates(work, devices, number) if mesh is None else given(work, mesh, number)


def given(work: Work, mesh: str, microbatches: int = 1) -> list[dict[str, int]]:
    """The one mesh that is named. Raises InputError where it does not divide the batch."""
    axes = meshes.parse(mesh)
    parts = prediction.batch_shards(axes) * microbatches
    if work.size % parts:
        problem = f"a batch of {work.size} does not divide over the mesh {mesh} and {microbatches} microbatch(es)"
        raise InputError(problem, f"use a multiple of {parts}")
    return [axes]


def candidates(work: Work, devices: int, microbatches: int = 1) -> list[dict[str, int]]:
    """Meshes of all the devices that divide the batch into microbatches: data x fsdp, and beside them one of the axes
    that split no batch, where the step lays something over it; few of a kind. With virtual shards, data alone.

    Raises InputError where no mesh divides the batch.
    """
    found = []
    for inner in [{}] if work.shards else inner_axes(work, devices):
        shards = devices // meshes.size(inner)
        if work.size % (shards * microbatches) or (work.shards or shards) % shards:
            continue
        for fsdp in (1,) if work.shards else sorted({1, min(GROUP, shards), shards}):
            if shards % fsdp == 0:
                found.append({"data": shards // fsdp, "fsdp": fsdp, **inner})
    if not found:
        parts = devices * microbatches
        problem = f"a batch of {work.size}, in {microbatches} microbatch(es), divides over no mesh of {devices} devices"
        raise InputError(problem, f"use a batch of {max(1, round(work.size / parts)) * parts}, or other devices")
    return [named(axes) for axes in found]


def inner_axes(work: Work, devices: int) -> list[dict[str, int]]:
    """None, and each of "model", "sequence" and "pipe" with each of its sizes over which the step lays something."""
    whole = prediction.resident(work, {"data": 1}).state
    sizes = [size for size in INNER if devices % size == 0]
    # over tokens lies nothing that rests, so the step itself has to say; it says the same of every size
    found = [{"sequence": size} for size in sizes] if sizes and _splits_tokens(work, sizes[0]) else []
    laid = ({axis: size} for axis in ("model", "pipe") for size in sizes)
    return [{}, *(axes for axes in laid if prediction.resident(work, {"data": 1, **axes}).state != whole), *found]


def _splits_tokens(work: Work, size: int) -> bool:
    return "sequence" in rehearsal.laid_over(work, {"data": 1, "sequence": size})


def named(axes: Mapping[str, int]) -> dict[str, int]:
    """The axes as a command line names them: data x model where there is no other, else those of more than one."""
    if set(axes) <= {"data", "fsdp", "model"} and axes["fsdp"] == 1:
        return {"data": axes["data"], "model": axes.get("model", 1)}
    return {axis: size for axis, size in axes.items() if size > 1}


def text(axes: Mapping[str, int]) -> str:
    """The axes as `--mesh` takes them."""
    if set(axes) == {"data", "model"}:
        return f"{axes['data']}x{axes['model']}"
    return ",".join(f"{axis}={size}" for axis, size in axes.items())


def counts(work: Work, axes: Mapping[str, int]) -> list[int]:
    """Numbers of microbatches that divide what a device has of the batch, or of a virtual shard: 1, 2, 4 ..."""
    local = work.size // (work.shards or prediction.batch_shards(axes))
    return [2**n for n in range(MOST) if local % 2**n == 0]


def planned(
    predictor: Predictor,
    axes: Sequence[Mapping[str, int]],
    memory: float,
    accelerator: Accelerator,
    precision: str,
    microbatches: int | None = None,
) -> Plan:
    """Predict every mesh with one microbatch, then more until it fits `SAFE` of `memory` bytes, and choose.

    microbatches: these and no others.
    """
    predictions, fitting = [], []
    for mesh in axes:
        numbers = counts(predictor.work, mesh) if microbatches is None else [microbatches]
        while numbers:
            found = predictor.predict(mesh, numbers[0])
            predictions.append(found)
            if found.memory <= SAFE * memory:
                fitting.append(found)
                break
            numbers = [number for number in numbers[1:] if number >= needed(found, SAFE * memory)] or numbers[1:][-1:]
    return Plan(tuple(predictions), min(fitting, key=lambda p: p.seconds(accelerator, precision), default=None))


def needed(found: Prediction, memory: float) -> float:
    """Microbatches below which it cannot fit: temporaries shrink at most as the microbatches do."""
    left = memory - (found.memory - found.temporaries)
    return found.microbatches * found.temporaries / left if left > 0 else float("inf")


def too_large(plan: Plan, memory: float) -> InputError:
    """The error for a plan of which nothing fits: it names the need and the room."""
    least = min(plan.predictions, key=lambda p: p.memory)
    place = f"--mesh {text(least.axes)} --microbatches {least.microbatches}"
    problem = f"the smallest plan, {place}, needs {size(least.memory)} on each device, and there are {size(memory)}"
    remedy = f"of which a plan takes {SAFE:.0%}: use more devices, a smaller --batch-size, or --remat nothing_saveable"
    return InputError(problem, remedy)


def size(nbytes: float) -> str:
    """Bytes as people read them: 1.5 GiB."""
    power = min(int(math.log2(max(nbytes, 1)) / 10), len(UNITS) - 1)
    return f"{nbytes / 2 ** (10 * power):.4g} {UNITS[power]}"
