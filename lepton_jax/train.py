"""The loop: batches in, states out, and what is said about it on the way.

The loop dispatches first and looks later: numbers are fetched a log interval after they were asked for, so the
device never waits for the host to print.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.sharding import Mesh

from lepton_jax import mesh as meshes
from lepton_jax import step as steps_
from lepton_jax.data import Batches
from lepton_jax.errors import InputError, PreemptedError
from lepton_jax.report import Reporter
from lepton_jax.rows import Diverged, Log, Recovered, Seen, Window, packed
from lepton_jax.selection import exact
from lepton_jax.types import Batch, Rule, Step, TrainState

Save = Callable[[TrainState, Mapping[str, float], Window], None]  # the window: what the next row has seen so far


@dataclass(frozen=True)
class Survival:
    """What a run does about what may befall it.

    save: keeps a state, its evaluation, and the row that has begun. check: raises where a save has failed; called with
    every row. leave: whether to save this step and leave; asked at every step, and in every process the same. recover:
    what to go on with after a loss that cannot be. spike: a loss of so many
    times the mean of the row before cannot be. begun, last: what an earlier life has seen of the first row, and the
    loss of its last row.
    """

    save: Save | None = None
    check: Callable[[], None] = lambda: None
    leave: Callable[[int], bool] = lambda step: False
    recover: Callable[[Diverged], Recovered] | None = None
    spike: float = math.inf
    begun: Window = ()
    last: float = math.inf


@dataclass(frozen=True)
class Job:
    """A run as a value: what to do, on what, for how long, and when to look."""

    step: Step
    stream: Batches
    mesh: Mesh
    steps: int
    rules: tuple[Rule, ...] = ()
    log_every: int = 20  # steps
    eval_every: float = math.inf  # epochs; at the end in any case
    checkpoint_every: float = math.inf  # epochs; at the end in any case
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None
    judged_on: str = "test"  # the name of the data that `evaluate` sees
    stop: Callable[[], bool] = lambda: False  # asked after each evaluation, and before the first step
    survival: Survival = field(default_factory=Survival)
    reporter: Reporter = field(default_factory=Reporter)

    def epoch(self, number: int) -> float:
        """Passes over the data after `number` steps."""
        return round(number * self.stream.batch_size / self.stream.examples, 4)

    def due(self, number: int, epochs: float) -> bool:
        """Whether step `number` is the last, or completes another `epochs` passes over the data."""
        if number == self.steps or math.isinf(epochs):
            return number == self.steps
        # in whole numbers, an epoch being a fraction: the k-th is due once number * batch >= k * examples
        every = exact(epochs)
        done, unit = self.stream.batch_size * every.denominator, every.numerator * self.stream.examples
        return number * done // unit > (number - 1) * done // unit


def fit(job: Job, state: TrainState) -> tuple[TrainState, dict[str, float]]:
    """Train from `state` to `job.steps`, or until an evaluation after which `job.stop` says so.

    Returns the final state and its evaluation. The state is laid over the mesh first, and its buffers are given
    away. Raises InputError where the loss stops being finite and nothing recovers it, and PreemptedError where the
    run is asked to leave.
    """
    program = compiling(job)
    while True:
        try:
            return _fitted(job, steps_.place(state, job.mesh, job.rules), program)
        except Diverged as lost:
            if job.survival.recover is None:
                raise InputError(lost.problem, lost.remedy) from lost
            job.reporter.stage("recovering")
            stream, state, begun, last = job.survival.recover(lost)
            job.reporter.rewind(int(state.step))
            job = replace(job, stream=stream, survival=replace(job.survival, begun=begun, last=last))


def _fitted(job: Job, state: TrainState, program: "Program") -> tuple[TrainState, dict[str, float]]:
    scores, survival = {}, job.survival
    log = Log(job.reporter, job.epoch, job.stream.batch_size, survival.begun, survival.spike, survival.last)
    with contextlib.closing(updates(job, state, log, program)) as numbered:
        for number, latest, seen in numbered:
            state = latest
            log.add(seen)
            evaluates, saves = job.due(number, job.eval_every), job.due(number, job.checkpoint_every)
            leaves = survival.leave(number) and number < job.steps
            if evaluates or saves:
                log.catch_up(number)  # what is evaluated or saved has been seen to be finite
            elif number % job.log_every == 0:
                log.close_window(number)
                survival.check()
            if evaluates:
                scores = evaluated(job, state, number)
            stops = evaluates and job.stop()
            if (saves or stops or leaves) and survival.save:
                window = log.settled(number)
                job.reporter.stage("saving")
                job.reporter.sync()
                survival.save(state, scores if evaluates else {}, window)  # an older state's scores are not this one's
            if stops:
                break
            if leaves:
                raise PreemptedError(f"saved at step {number}; the same command goes on from there")
            if evaluates or saves:
                log.start_clock()
    if not scores and job.evaluate:  # there was nothing left to train, and its last row is written
        job.reporter.stage("evaluating")
        scores = dict(job.evaluate(state))
    return state, scores


Program = Callable[[TrainState, Batch], Callable[[TrainState, Batch], tuple[TrainState, Seen]]]


def compiling(job: Job) -> Program:
    """(state, batch) -> the job's step, compiled at the first call for states and batches like these, and kept."""

    compiled: list[Any] = []

    def program(state: TrainState, batch: Batch) -> Callable[[TrainState, Batch], tuple[TrainState, Seen]]:
        if not compiled:
            job.reporter.stage("compiling")
            before = time.perf_counter()
            compiled.append(steps_.compile(packed(job.step), state, batch, job.mesh, job.rules))
            job.reporter.say(f"compiled   in {time.perf_counter() - before:.1f} s")
        return compiled[0]

    return program


def updates(job: Job, state: TrainState, log: Log, program: Program) -> Generator[tuple[int, TrainState, Seen]]:
    """(step number, state, metrics) after each update; the step is compiled once, before the first."""
    start = int(state.step)
    if start >= job.steps or job.stop():
        return
    with jax.set_mesh(job.mesh):
        compiled = program(state, meshes.fed(job.stream.batch(start), job.mesh))
        log.start_clock()
        with contextlib.closing(job.stream.batches(start, job.steps)) as batches:
            for number, batch in enumerate(log.waited(batches), start + 1):
                state, seen = compiled(state, meshes.fed(batch, job.mesh))
                job.reporter.progress(number)
                yield number, state, seen


def evaluated(job: Job, state: TrainState, number: int) -> dict[str, float]:
    """The scores of a state, reported; none where the job has no evaluation."""
    if job.evaluate is None:
        return {}
    job.reporter.stage("evaluating")
    scores = dict(job.evaluate(state))
    row = {"step": number, "epoch": job.epoch(number)}
    job.reporter.evaluation({**row, **{f"{job.judged_on}/{name}": value for name, value in scores.items()}})
    return scores
