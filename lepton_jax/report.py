"""What a run shows and records: the screen, metrics.jsonl, TensorBoard events.

A Reporter hears of rows as they come: `train` (a logged step), `evaluation`, `progress` (every step) and `say`
(a line of text). Rows are plain dicts of numbers.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax import runs

Row = Mapping[str, Any]


class Reporter:
    """Hears of a run and, as it stands, does nothing: reporters override what they care for."""

    def say(self, text: str) -> None:
        """A line of text."""

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
        for reporter in self._reporters:
            reporter.close()


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
        from tensorboardX import SummaryWriter

        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(directory / "events"), purge_step=purge, write_to_disk=True)

    def train(self, row: Row) -> None:
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self._writer.add_scalar(name, value, row["step"])

    evaluation = train

    def close(self) -> None:
        self._writer.close()


def sentence(row: Row) -> str:
    """A row as one plain line: `step 40  epoch 2.7  loss 0.4312 ...`."""
    return "  ".join(f"{name.split('/')[-1]} {number(value)}" for name, value in row.items())


def number(value: Any) -> str:
    """A number as people read it: integers whole, others to four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


SHOWN = ("step", "epoch", "train/loss", "train/learning_rate", "train/examples_per_second")
SHOWN_EVALUATION = ("epoch", "test/loss", "test/accuracy", "test/f1_macro")


def chosen(row: Row, names: Sequence[str]) -> Row:
    """The part of a row that fits on a line."""
    return {name: row[name] for name in names if name in row}


class Lines(Reporter):
    """Plain lines on standard output, for logs and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def train(self, row: Row) -> None:
        print(sentence(chosen(row, SHOWN)), flush=True)

    def evaluation(self, row: Row) -> None:
        print("evaluation  " + sentence(chosen(row, SHOWN_EVALUATION)), flush=True)


class Bar(Reporter):
    """A terminal: a bar with the loss, examples/s and the time left, and a line per evaluation above it."""

    def __init__(self, steps: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self._console = Console(highlight=False)
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=self._console)
        self._task = self._bar.add_task("", total=steps, now="compiling", start=True)
        self._started = False

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, step: int) -> None:
        if not self._started:
            self._bar.start()
            self._started = True
        self._bar.update(self._task, completed=step)

    def train(self, row: Row) -> None:
        now = f"loss {row['train/loss']:.4f}  {row['train/examples_per_second']:,.0f} examples/s"
        self._bar.update(self._task, now=now)

    def evaluation(self, row: Row) -> None:
        self.say(sentence(chosen(row, SHOWN_EVALUATION)))

    def close(self) -> None:
        if self._started:
            self._bar.stop()


def screen(steps: int) -> Reporter:
    """A bar on a terminal, plain lines elsewhere."""
    return Bar(steps) if sys.stdout.isatty() else Lines()
