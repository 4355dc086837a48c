"""What a mesh and a number of microbatches will need: counted where it can be counted, the rest from rehearsals."""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lepton_jax import mesh as meshes
from lepton_jax.plan import rehearsal
from lepton_jax.plan.accelerators import Accelerator
from lepton_jax.plan.collectives import Collective
from lepton_jax.plan.rehearsal import Report, Work

# of what a collective leaves on each of n devices, how much a ring sends from each
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
LATENCY = 1e-5  # seconds to start a collective: no data sheet has it, and small steps are made of it


class Prediction(NamedTuple):
    """Of one step on one device: bytes of memory, FLOPs, bytes read and written, bytes moved, collectives."""

    axes: Mapping[str, int]
    microbatches: int
    state: float  # parameters, optimizer and stats, as they rest
    batch: float
    temporaries: float  # activations, gradients, gathered parameters
    outputs: float
    flops: float
    accessed: float
    moved: Counter[Collective]
    launched: int

    @property
    def memory(self) -> float:
        """Peak bytes, as XLA counts them: arguments + outputs - aliased + temporaries."""
        return self.state + self.batch + self.temporaries + self.outputs

    def seconds(self, accelerator: Accelerator, precision: str) -> float:
        """The roofline: the longer of multiplying and of reading, then what is sent, as if nothing overlapped it.

        Williams et al. 2009, https://doi.org/10.1145/1498765.1498785. A bound from below: no device reaches it.
        """
        computing = max(self.flops / accelerator.peak(precision), self.accessed / accelerator.bandwidth)
        return computing + LATENCY * self.launched + self.sending(accelerator)

    def sending(self, accelerator: Accelerator) -> float:
        """Seconds in which rings send what is moved, at the speed of the slowest link in them."""
        devices = meshes.size(self.axes)
        # the axes that split no batch lie innermost, so their groups are neighbours
        near = accelerator.island if devices <= accelerator.island else devices // batch_shards(self.axes)
        total = 0.0
        for (kind, group), count in self.moved.items():
            fast = group <= min(near, accelerator.island)
            total += SENT[kind](group) * count / (accelerator.link if fast else accelerator.network)
        return total


class Predictor:
    """Predicts the step of `work` on any mesh; compiles what it has to, once."""

    def __init__(self, work: Work):
        self.work = work
        self._rehearsed = functools.cache(self._compiled)

    def predict(self, axes: Mapping[str, int], microbatches: int) -> Prediction:
        """The step on a mesh of these axes; the batch must be a multiple of the batch axes times the microbatches."""
        held, few = resident(self.work, axes), self.stand_in(axes)
        report = self._rehearsed(tuple(few.items()), self.work.size // batch_shards(axes), microbatches)
        return Prediction(
            axes=axes,
            microbatches=microbatches,
            state=held.state,
            batch=held.batch,
            temporaries=report.temporaries,
            outputs=report.outputs,
            flops=report.flops * report.rounds,
            accessed=report.accessed * report.rounds,
            moved=regrouped(report.moved, few, axes),
            launched=report.launched,
        )

    def stand_in(self, axes: Mapping[str, int]) -> dict[str, int]:
        """The mesh of few devices on which the step of a larger one is rehearsed: fewer share in the batch.

        Not too few: below four the partitioner may find other ways, as it does for an MLP on 3x2 and 4x2. Sizes
        differ from the other axes' where they stand for larger ones, so that a group's size tells along which it lay.
        """
        inner, data, fsdp = inner_axes(axes), axes.get("data", 1), axes.get("fsdp", 1)
        if self.work.shards:  # a device computes its shards one after the other, so their number enters
            return dict(axes)
        if fsdp == 1:
            return {"data": min(data, 5), **inner}
        few = fsdp if fsdp <= 4 else min(fsdp, 8 if 4 in inner.values() else 4)
        shared = {"data": min(data, 2)} if few in inner.values() else {}
        return {**shared, "fsdp": few, **inner}

    def _compiled(self, axes: tuple[tuple[str, int], ...], local: int, microbatches: int) -> Report:
        return rehearsal.rehearse(self.work, dict(axes), local * batch_shards(dict(axes)), microbatches)


def batch_shards(axes: Mapping[str, int]) -> int:
    """Into how many pieces such a mesh splits a batch."""
    return math.prod(axes.get(axis, 1) for axis in meshes.BATCH_AXES)


def inner_axes(axes: Mapping[str, int]) -> dict[str, int]:
    """The axes that split no batch."""
    return {axis: size for axis, size in axes.items() if axis not in meshes.BATCH_AXES}


class Resident(NamedTuple):
    """Bytes that a device holds of the whole state, and of the batch."""

    state: int
    batch: int


def resident(work: Work, axes: Mapping[str, int]) -> Resident:
    """What a device of such a mesh holds, from the shardings alone; no device is needed."""
    layout = meshes.shardings(work.state, meshes.abstract(axes), work.rules)
    pairs = zip(jax.tree.leaves(work.state), jax.tree.leaves(layout), strict=True)
    state = sum(math.prod(lies.shard_shape(x.shape)) * x.dtype.itemsize for x, lies in pairs)
    return Resident(state, nbytes(work.batch) // batch_shards(axes))


def regrouped(moved: Counter[Collective], stand_in: Mapping[str, int], axes: Mapping[str, int]) -> Counter[Collective]:
    """What was moved on a mesh, over the groups of the larger one that it stood for."""
    inner = inner_axes(axes)
    kept = {*inner.values(), meshes.size(inner)} - {1}
    found: Counter[Collective] = Counter()
    for kind, group in moved:
        devices = meshes.size(axes)
        if kind == "collective-permute" or group in kept:
            devices = group
        elif kind == "all-gather" and group == stand_in.get("fsdp"):
            devices = axes["fsdp"]  # while sums are over all that splits the batch
        elif group == batch_shards(stand_in):
            devices = batch_shards(axes)
        if devices > 1:
            found[Collective(kind, devices)] += moved[Collective(kind, group)]
    return found


def nbytes(batch: Mapping[str, Any]) -> int:
    """The bytes of a batch."""
    return sum(math.prod(rows.shape) * rows.dtype.itemsize for rows in batch.values())
