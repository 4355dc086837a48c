"""Reporters: what hears of a run while it goes on.

A Reporter hears of rows as they come: `train` (a logged step), `evaluation`, `progress` (every step), `stage`
(compiling, evaluating) and `say` (text). Rows are plain dicts of numbers.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

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

    def sync(self) -> None:
        """A checkpoint follows: what it may rely on has to be on the disk."""

    def rewind(self, step: int) -> None:
        """The run goes back to this step: what came after it is no more."""

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

    def sync(self) -> None:
        for reporter in self._reporters:
            reporter.sync()

    def rewind(self, step: int) -> None:
        for reporter in self._reporters:
            reporter.rewind(step)

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

    def rewind(self, step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] <= step]
