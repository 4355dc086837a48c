"""The screen of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from lepton_jax.report.base import Reporter, Row
from lepton_jax.report.numbers import clock, quantity

SHOWN = ("step", "epoch", "loss", "accuracy", "f1_macro", "learning_rate", "examples_per_second")


def sentence(kind: str, row: Row) -> str:
    """What a line shows of a row: `train      step     40  epoch   2.70  loss 0.4312 ...`; kind: train, valid, test."""
    values = {name.split("/")[-1]: value for name, value in row.items()}
    parts = [quantity(name, values[name]) for name in SHOWN if values.get(name) is not None]
    return "  ".join([f"{kind:<9}", *parts]).rstrip()


def judged(row: Row) -> str:
    """What an evaluation's row is of: test, or valid for the validation data."""
    return "valid" if any(name.startswith("validation/") for name in row) else "test"


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
        self.say(sentence(judged(row), row))


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
        self.say(sentence(judged(row), row))

    def close(self) -> None:
        self._spinner.stop()
        if self._begun is not None:
            left = f"in {clock(time.perf_counter() - self._begun[1])}"
            self._bar.update(self._task, description="training", left=left)
            self._bar.stop()


def screen(steps: int) -> Reporter:
    """A bar on a terminal, plain lines elsewhere."""
    return Bar(steps) if sys.stdout.isatty() else Lines()
