"""The rows of a run's journal: gathered step by step, looked at a window later, and refused where the loss is lost."""

import collections
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.data import Batches
from lepton_jax.report import Reporter
from lepton_jax.types import Batch, Step, TrainState

AHEAD = 8  # steps that may be under way before the host waits for the oldest


class Diverged(Exception):  # noqa: N818  an event, which a run may recover from
    """The loss of a step cannot be: it is not a number, or far above the row before."""

    def __init__(self, step: int, problem: str):
        super().__init__(problem)
        self.step = step
        self.problem = problem
        self.remedy = "lower --learning-rate, add --clip 1, or start with --warmup-epochs"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["names"])
@dataclass(frozen=True)
class Seen:
    """The metrics of a step as one array: to launch and to fetch it costs a tenth of what its scalars would."""

    names: tuple[str, ...]
    values: Any  # [metrics, 2]: total and weight of each


Window = Sequence[Seen]  # the steps of a row


class Recovered(NamedTuple):
    """What a run goes on with: batches, state, the steps of the row that had begun there, and the loss of the last."""

    stream: Batches
    state: TrainState
    begun: Window
    last: float


def packed(step: Step) -> Callable[[TrainState, Batch], tuple[TrainState, Seen]]:
    """The same step, with its metrics in one array."""

    def packed_step(state: TrainState, batch: Batch) -> tuple[TrainState, Seen]:
        after, metrics = step(state, batch)
        means = [jnp.stack([mean.total, mean.weight]) for mean in metrics.values()]
        return after, Seen(tuple(metrics), jnp.stack(means))

    return packed_step


def written(window: Window) -> list[Any]:
    """A row that has begun, as JSON can say it."""
    return [{"names": list(seen.names), "values": np.asarray(seen.values, np.float64).tolist()} for seen in window]


def read(window: Sequence[Mapping[str, Any]]) -> Window:
    """What `written` wrote."""
    return [Seen(tuple(seen["names"]), np.array(seen["values"], np.float64)) for seen in window]


class Log:
    """Gathers the metrics of steps into rows, and reports each row when it has long been computed.

    It lets at most AHEAD steps be under way, so that the host cannot run away from the device. begun: the first steps
    of the first row, from an earlier life. Raises Diverged for a row with a loss that cannot be: see `require_sound`.
    spike: a loss of so many times the mean of the row before cannot be; last: that mean, for the first row.
    """

    def __init__(
        self,
        reporter: Reporter,
        epoch: Callable[[int], float],
        batch_size: int,
        begun: Window = (),
        spike: float = math.inf,
        last: float = math.inf,
    ):
        self._reporter, self._epoch, self._batch_size = reporter, epoch, batch_size
        self._window, self._spike, self._last = list(begun), spike, last
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
        row = {"step": number, "epoch": self._epoch(number), "train/input_idle": self._waited / seconds}
        if self._done:
            row["train/examples_per_second"] = self._done * self._batch_size / seconds
        self._closed, self._window = (row, self._window), []
        self.start_clock()

    def catch_up(self, number: int) -> None:
        """Wait for all that is under way, and report it."""
        while self._under_way:
            self._finish_oldest()
        self.close_window(number)
        self._report()

    def settled(self, number: int) -> Window:
        """Wait for all that is under way and report what is complete: the row that has begun, seen to be sound."""
        while self._under_way:
            self._finish_oldest()
        self._report()
        self._require_sound(self._window, number)
        return tuple(self._window)

    def _require_sound(self, window: Window, number: int) -> np.ndarray:
        """The metrics of the steps of a row, [steps, metrics, 2] in float64; step `number` is the last."""
        # one by one: they are long there, and device_get would first ask for a copy of each
        values = np.array([np.asarray(seen.values, np.float64) for seen in window])
        if window:
            require_sound(window[0].names, values, number, self._most())
        return values

    def _most(self) -> float:
        """The largest loss that can be."""
        return min(sys.float_info.max, math.inf if math.isinf(self._spike) else self._spike * self._last)

    def _report(self) -> None:
        if self._closed is None:
            return
        row, window = self._closed
        self._closed = None
        row |= averages(window[-1].names, self._require_sound(window, int(row["step"])))
        self._last = row.get("train/loss", math.inf)
        self._reporter.train(row)


def require_sound(names: Sequence[str], values: np.ndarray, number: int, most: float) -> None:
    """Raise Diverged for the first step with a loss that cannot be; step `number` is the last of those in `values`.

    That is a loss or a norm of the gradient that is not finite, or a loss above `most`. A step without weight, that
    of an overflow which loss scaling met, cannot be wrong.
    """
    totals, weights = values[..., 0], values[..., 1]
    means = np.where(weights == 0, 0, totals / np.where(weights == 0, 1, weights))
    limits = {"loss": most, "gradient_norm": sys.float_info.max}
    lost = [
        (row, name, means[row, column])
        for column, name in enumerate(names)
        for row in np.flatnonzero(~(means[:, column] <= limits.get(name, math.inf)))[:1]
        if name in limits
    ]
    if lost:
        row, name, found = min(lost)
        beyond = f", which is above {most:.4g}" if np.isfinite(found) else ""
        step = number - len(values) + 1 + int(row)
        raise Diverged(step, f"the {name.replace('_', ' ')} is {found:.4g} at step {step}{beyond}")


def averages(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """The metrics of several steps, [steps, metrics, 2], merged and divided once, in float64."""
    sums = np.sum(values, axis=0).tolist()
    means = (total / weight if weight else 0.0 for total, weight in sums)
    return {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
