"""The loop: batches in, states out, and what is said about it on the way.

The loop dispatches first and looks later: numbers are fetched a log interval after they were asked for, so the
device never waits for the host to print.
"""

import collections
import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax import mesh as meshes
from lepton_jax import step as steps_
from lepton_jax.data import Stream
from lepton_jax.errors import InputError
from lepton_jax.report import Reporter
from lepton_jax.selection import exact
from lepton_jax.types import Batch, Rule, Step, TrainState

AHEAD = 8  # steps that may be under way before the host waits for the oldest


@dataclass(frozen=True)
class Job:
    """A run as a value: what to do, on what, for how long, and when to look."""

    step: Step
    stream: Stream
    mesh: Mesh
    steps: int
    rules: tuple[Rule, ...] = ()
    log_every: int = 20  # steps
    eval_every: float = math.inf  # epochs; at the end in any case
    checkpoint_every: float = math.inf  # epochs; at the end in any case
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None
    judged_on: str = "test"  # the name of the data that `evaluate` sees
    stop: Callable[[], bool] = lambda: False  # asked after each evaluation, and before the first step
    save: Callable[[TrainState, Mapping[str, float]], None] | None = None
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
    away. Raises InputError where the loss stops being finite.
    """
    state = steps_.place(state, job.mesh, job.rules)
    scores, log = {}, Log(job)
    with contextlib.closing(updates(job, state, log)) as numbered:
        for number, latest, seen in numbered:
            state = latest
            log.add(seen)
            evaluates, saves = job.due(number, job.eval_every), job.due(number, job.checkpoint_every)
            if evaluates or saves:
                log.catch_up(number)  # what is evaluated or saved has been seen to be finite
            elif number % job.log_every == 0:
                log.close_window(number)
            if evaluates:
                scores = evaluated(job, state, number)
            stops = evaluates and job.stop()
            if (saves or stops) and job.save:
                job.reporter.sync()
                job.save(state, scores if evaluates else {})  # an older state's scores are not this one's
            if stops:
                break
            if evaluates or saves:
                log.start_clock()
    if not scores and job.evaluate:  # there was nothing left to train, and its last row is written
        job.reporter.stage("evaluating")
        scores = dict(job.evaluate(state))
    return state, scores


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["names"])
@dataclass(frozen=True)
class Seen:
    """The metrics of a step as one array: to launch and to fetch it costs a tenth of what its scalars would."""

    names: tuple[str, ...]
    values: Any  # [metrics, 2]: total and weight of each


def packed(step: Step) -> Callable[[TrainState, Batch], tuple[TrainState, Seen]]:
    """The same step, with its metrics in one array."""

    def packed_step(state: TrainState, batch: Batch) -> tuple[TrainState, Seen]:
        after, metrics = step(state, batch)
        means = [jnp.stack([mean.total, mean.weight]) for mean in metrics.values()]
        return after, Seen(tuple(metrics), jnp.stack(means))

    return packed_step


def updates(job: Job, state: TrainState, log: "Log") -> Generator[tuple[int, TrainState, Seen]]:
    """(step number, state, metrics) after each update; the step is compiled once, before the first."""
    start = int(state.step)
    if start >= job.steps or job.stop():
        return
    with jax.set_mesh(job.mesh):
        job.reporter.stage("compiling")
        before = time.perf_counter()
        compiled = steps_.compile(packed(job.step), state, job.stream.batch(start), job.mesh, job.rules)
        job.reporter.say(f"compiled   in {time.perf_counter() - before:.1f} s")
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


class Log:
    """Gathers the metrics of steps into rows, and reports each row when it has long been computed.

    It lets at most AHEAD steps be under way, so that the host cannot run away from the device.
    """

    def __init__(self, job: Job):
        self._job = job
        self._window: list[Seen] = []
        self._closed: tuple[dict[str, float], list[Seen]] | None = None
        self._under_way: collections.deque[Seen] = collections.deque()
        self.start_clock()

    def start_clock(self) -> None:
        """Count training time from here: evaluating and saving are not training."""
        self._since, self._waited, self._done = time.perf_counter(), 0.0, 0

    def waited(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, with the time counted that the device may have waited for them."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            if self._is_idle():
                self._waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def _is_idle(self) -> bool:
        """Whether nothing is under way; then the device was idle for some of the time just past, if not all of it."""
        return not self._under_way or self._under_way[-1].values.is_ready()

    def add(self, seen: Seen) -> None:
        """The metrics of the next step, not yet computed perhaps."""
        self._window.append(seen)
        self._under_way.append(seen)
        if len(self._under_way) > AHEAD:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        self._under_way.popleft().values.block_until_ready()
        self._done += 1

    def close_window(self, number: int) -> None:
        """End a row at this step, and report the row before it."""
        self._report()
        seconds = time.perf_counter() - self._since
        row = {"step": number, "epoch": self._job.epoch(number), "train/input_idle": self._waited / seconds}
        if self._done:
            row["train/examples_per_second"] = self._done * self._job.stream.batch_size / seconds
        self._closed, self._window = (row, self._window), []
        self.start_clock()

    def catch_up(self, number: int) -> None:
        """Wait for all that is under way, and report it."""
        while self._under_way:
            self._finish_oldest()
        self.close_window(number)
        self._report()

    def _report(self) -> None:
        if self._closed is None:
            return
        row, window = self._closed
        self._closed = None
        row |= averages(window)
        if not math.isfinite(row.get("train/loss", 0.0)):
            problem = f"the loss is {row['train/loss']} at step {row['step']}"
            raise InputError(problem, "lower --learning-rate, add --clip 1, or start with --warmup-epochs")
        self._job.reporter.train(row)


def averages(window: list[Seen]) -> dict[str, float]:
    """The metrics of several steps, merged and divided once, in float64."""
    # one by one: they are long there, and device_get would first ask for a copy of each
    sums = np.sum([np.asarray(seen.values, np.float64) for seen in window], axis=0).tolist()
    means = (total / weight if weight else 0.0 for total, weight in sums)
    return {f"train/{name}": mean for name, mean in zip(window[-1].names, means, strict=True)}
