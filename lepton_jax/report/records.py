"""What a run leaves on disk row by row: metrics.jsonl and TensorBoard events."""

import json
import os
import pathlib
import time
from typing import Any

from lepton_jax import runs
from lepton_jax.report.base import Reporter, Row


class Journal(Reporter):
    """metrics.jsonl: one JSON object per row, flushed at once. `step`: where a resumed run goes on; later rows go."""

    def __init__(self, directory: pathlib.Path, step: int | None = None):
        if step is not None:
            runs.rewind(directory, step)
        self._directory, self._file = directory, (directory / "metrics.jsonl").open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        self._file.close()
        runs.rewind(self._directory, step)
        self._file = (self._directory / "metrics.jsonl").open("a", encoding="utf-8")

    def train(self, row: Row) -> None:
        self._file.write(json.dumps(runs.strict(row), allow_nan=False) + "\n")
        self._file.flush()

    evaluation = train

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Events(Reporter):
    """TensorBoard scalars. `step`: where a resumed run goes on; later events of a killed run are hidden.

    tensorboardX asks the disk at every flush, so that comes once a second and before a checkpoint.
    """

    EVERY = 1.0  # seconds

    def __init__(self, directory: pathlib.Path, step: int = 0):
        # not SummaryWriter: where its thread cannot write, the thread dies and the run waits for it for ever
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        (directory / "events").mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events" / "events"))
        self._start = events.SessionLog(status=events.SessionLog.START)
        if step:
            self.rewind(step)
        self.sync()

    def rewind(self, step: int) -> None:
        self._writer.write_event(self._event(step=step + 1, session_log=self._start, wall_time=time.time()))

    def train(self, row: Row) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name not in ("step", "epoch")
        ]
        event = self._event(step=row["step"], wall_time=time.time(), summary=self._summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._synced > self.EVERY:
            self.sync()

    def evaluation(self, row: Row) -> None:
        self.train(row)
        self.sync()

    def sync(self) -> None:
        self._writer.flush()
        self._synced = time.monotonic()

    def close(self) -> None:
        self._writer.close()
