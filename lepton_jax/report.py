"""What a run shows and records: the screen, metrics.jsonl, TensorBoard events.

A Reporter hears of rows as they come: `train` (a logged step), `evaluation`, `progress` (every step), `stage`
(compiling, evaluating) and `say` (text). Rows are plain dicts of numbers.
"""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax import runs

Row = Mapping[str, Any]


class Reporter:
    """Hears of a run and, as it stands, does nothing: reporters override what they care for."""

    def say(self, text: str) -> None:
        """A line of text."""

    def stage(self, what: str) -> None:
        """Something other than training begins, and lasts until the next step: "compiling", "evaluating" ..."""

    def progress(self, step: int) -> None:
        """A step was dispatched."""

    def train(self, row: Row) -> None:
        """A logged step."""

    def evaluation(self, row: Row) -> None:
        """An evaluation."""

    def close(self) -> None:
        """The end of the run."""

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Together(Reporter):
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]):
        self._reporters = reporters

    def say(self, text: str) -> None:
        for reporter in self._reporters:
            reporter.say(text)

    def stage(self, what: str) -> None:
        for reporter in self._reporters:
            reporter.stage(what)

    def progress(self, step: int) -> None:
        for reporter in self._reporters:
            reporter.progress(step)

    def train(self, row: Row) -> None:
        for reporter in self._reporters:
            reporter.train(row)

    def evaluation(self, row: Row) -> None:
        for reporter in self._reporters:
            reporter.evaluation(row)

    def close(self) -> None:
        with contextlib.ExitStack() as all_of_them:  # also where one of them fails
            for reporter in self._reporters:
                all_of_them.callback(reporter.close)


class History(Reporter):
    """Rows kept in memory, for notebooks."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []

    def train(self, row: Row) -> None:
        self.rows.append(dict(row))

    evaluation = train


class Journal(Reporter):
    """metrics.jsonl: one JSON object per row, flushed at once."""

    def __init__(self, directory: pathlib.Path):
        self._file = (directory / "metrics.jsonl").open("a", encoding="utf-8")

    def train(self, row: Row) -> None:
        self._file.write(json.dumps(runs.strict(row), allow_nan=False) + "\n")
        self._file.flush()

    evaluation = train

    def close(self) -> None:
        self._file.close()


class Events(Reporter):
    """TensorBoard scalars. `step`: where a resumed run goes on; later events of a killed run are hidden."""

    def __init__(self, directory: pathlib.Path, step: int = 0):
        # not SummaryWriter: where its thread cannot write, the thread dies and the run waits for it for ever
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        (directory / "events").mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events" / "events"))
        if step:
            start = events.SessionLog(status=events.SessionLog.START)
            self._writer.write_event(self._event(step=step + 1, session_log=start, wall_time=time.time()))
        self._writer.flush()

    def train(self, row: Row) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name not in ("step", "epoch")
        ]
        event = self._event(step=row["step"], wall_time=time.time(), summary=self._summary(value=values))
        self._writer.write_event(event)
        self._writer.flush()

    evaluation = train

    def close(self) -> None:
        self._writer.close()


SHOWN = ("step", "epoch", "loss", "accuracy", "f1_macro", "learning_rate", "examples_per_second")
FORMATS = {
    "step": "step {:>6,}",
    "epoch": "epoch {:>6.2f}",
    "f1_macro": "f1 {:.4f}",
    "learning_rate": "learning rate {:<8.3g}",
    "examples_per_second": "{:>7,.0f} examples/s",
}


def sentence(kind: str, row: Row) -> str:
    """What a line shows of a row: `train      step     40  epoch   2.70  loss 0.4312 ...`; kind: train or test."""
    values = {name.split("/")[-1]: value for name, value in row.items()}
    parts = [quantity(name, values[name]) for name in SHOWN if values.get(name) is not None]
    return "  ".join([f"{kind:<9}", *parts]).rstrip()


def quantity(name: str, value: Any) -> str:
    """A number with its name or unit: `loss 0.4312`, `12,345 examples/s`."""
    return FORMATS[name].format(value) if name in FORMATS else f"{name} {number(value)}"


def number(value: Any) -> str:
    """A number as people read it: integers whole, others to four decimals, or as 1.23e-05 where those say little."""
    if isinstance(value, int):
        return f"{value:,}"
    plain = value == 0 or 1e-3 <= abs(value) < 1e4 or not math.isfinite(value)
    return f"{value:.4f}" if plain else f"{value:.2e}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Lines(Reporter):
    """Plain lines on standard output, for logs and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def stage(self, what: str) -> None:
        if what == "compiling":
            self.say("compiling  the first step takes a while")

    def train(self, row: Row) -> None:
        self.say(sentence("train", row))

    def evaluation(self, row: Row) -> None:
        self.say(sentence("test", row))


class Bar(Reporter):
    """A terminal: a spinner while compiling, then a bar with the loss, examples/s and the time left.

    A line per evaluation goes above it.
    """

    def __init__(self, steps: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        wait = (TextColumn("{task.description:<10}"), TimeElapsedColumn(), SpinnerColumn("dots"))
        self._spinner = Progress(*wait, console=self._console, transient=True)
        bar = BarColumn(bar_width=max(8, min(40, self._console.width - 70)))
        text = [TextColumn(f"{{task.fields[{name}]}}") for name in ("count", "now", "left")]
        self._bar = Progress(TextColumn("{task.description:<10}"), bar, *text, console=self._console)
        self._task = self._bar.add_task("training", total=steps, count="", now="", left="")
        self._steps, self._begun = steps, None
        self._now: dict[str, str] = {}

    def say(self, text: str) -> None:
        from rich.text import Text

        shown = Text(text)
        shown.highlight_regex(r"(?m)^[a-z]+(?=  )", "bold cyan")
        self._console.print(shown, soft_wrap=True)

    def stage(self, what: str) -> None:
        if self._begun is None:
            self._spinner.add_task(what)
            self._spinner.start()
        else:
            self._bar.update(self._task, description=what)

    def progress(self, step: int) -> None:
        if self._begun is None:
            self._spinner.stop()
            self._bar.start()
            self._begun = (step - 1, time.perf_counter())
        first, since = self._begun
        seconds = time.perf_counter() - since
        left = clock(seconds / (step - first) * (self._steps - step)) + " left"
        count = f"{step:,}/{self._steps:,}"
        self._bar.update(self._task, description="training", completed=step, count=count, left=left)

    def train(self, row: Row) -> None:
        for name in ("loss", "examples_per_second"):
            if f"train/{name}" in row:  # a rate is not known in every row: the last one stays
                self._now[name] = quantity(name, row[f"train/{name}"])
        self._bar.update(self._task, now="  ".join(self._now.values()))

    def evaluation(self, row: Row) -> None:
        self.say(sentence("test", row))

    def close(self) -> None:
        self._spinner.stop()
        if self._begun is not None:
            left = f"in {clock(time.perf_counter() - self._begun[1])}"
            self._bar.update(self._task, description="training", left=left)
            self._bar.stop()


def screen(steps: int) -> Reporter:
    """A bar on a terminal, plain lines elsewhere."""
    return Bar(steps) if sys.stdout.isatty() else Lines()
