"""A small compile that stands for many meshes.

A program that XLA partitions is one program for all devices, and its shapes are those of a device: the rows of a
microbatch that a device holds, and its part of what the model axis splits. How many devices share in the batch does
not enter. So the step of 64 devices is compiled here for four or five, on as many rows each, with shapes alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr

from lepton_jax import mesh as meshes
from lepton_jax import sharding
from lepton_jax import step as steps
from lepton_jax.compress import programs
from lepton_jax.errors import InputError
from lepton_jax.plan import collectives
from lepton_jax.plan.collectives import Collective
from lepton_jax.types import Rule, Step, TrainState

# code of the first quality takes longer, and no other memory: XLA lays out its buffers before
QUICK = {"cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}


class Work(NamedTuple):
    """What is planned. step: the step by its number of microbatches; state, batch: shapes, of a whole batch.

    shards: the virtual shards, where there are any.
    """

    step: Callable[[int], Step]
    state: TrainState
    batch: Mapping[str, Any]
    rules: Sequence[Rule] = ()
    shards: int | None = None

    @property
    def size(self) -> int:
        """Examples in a batch."""
        return next(iter(self.batch.values())).shape[0]


class Report(NamedTuple):
    """XLA's report of a program, for one device: bytes, FLOPs, bytes read and written, bytes moved, collectives.

    XLA counts FLOPs and what is read and written as if each loop went round once: `rounds` times as much is done.
    """

    arguments: float
    outputs: float  # beyond those that take an argument's place
    temporaries: float
    flops: float
    accessed: float
    moved: Counter[Collective]
    launched: int
    rounds: float

    @property
    def peak(self) -> float:
        """The bytes that the program needs: arguments + outputs - aliased + temporaries."""
        return self.arguments + self.outputs + self.temporaries


def laid_over(work: Work, axes: Mapping[str, int]) -> set[str]:
    """The axes over which the step itself lays anything, beside what rests; no device is needed."""
    with jax.sharding.use_abstract_mesh(meshes.abstract(axes)):
        traced = jax.make_jaxpr(work.step(1))(work.state, dict(work.batch))
    return set(sharding.named(traced.jaxpr))


def rehearse(work: Work, axes: Mapping[str, int], size: int, microbatches: int = 1) -> Report:
    """Compile the step for these axes and a batch of `size`, as quickly as the compiler can, and read its report."""
    batch = {name: jax.ShapeDtypeStruct((size, *rows.shape[1:]), rows.dtype) for name, rows in work.batch.items()}
    traced = steps.trace(work.step(microbatches), work.state, batch, meshes.make(axes), work.rules)
    compiled = traced.lower().compile(compiler_options=QUICK.get(jax.default_backend()))
    return read(compiled, rounds(traced.jaxpr.jaxpr, microbatches))


def read(compiled: Any, rounds: float) -> Report:
    """The report of a compiled program. Raises InputError for one whose traffic only its data know."""
    memory, cost, program = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    try:
        moved, launched = collectives.by_group(program), collectives.launched(program)
    except ValueError as error:
        raise InputError(f"the step cannot be planned: {error}", "give --mesh and --microbatches by hand") from error
    return Report(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        moved=moved,
        launched=launched,
        rounds=rounds,
    )


def rounds(traced: Jaxpr, microbatches: int = 1) -> float:
    """How many times as much a program multiplies as a count that goes through each scan once, as XLA's does.

    Where nobody knows, for there are no products or only in a loop of unknown length, once for each microbatch.
    """
    try:
        once = programs.multiplications(traced, rounds=False)
        return programs.multiplications(traced) / once if once else microbatches
    except InputError:
        return microbatches
