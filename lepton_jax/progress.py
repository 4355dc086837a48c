"""What this process is doing, in a small file of its own, for a supervisor that watches from outside.

A process that is stuck cannot say so. What a supervisor needs is to see that it no longer says anything else.
"""

import contextlib
import faulthandler
import functools
import json
import os
import pathlib
import signal
import time

from lepton_jax.report.base import Reporter

PHASES = ("start", "compile", "step", "evaluation", "save", "restore")
STAGES = {"compiling": "compile", "evaluating": "evaluation", "saving": "save", "restoring": "restore"}
EVERY = 0.2  # seconds between writes within a phase
VARIABLE = "LEPTON_PROGRESS"


class Progress(Reporter):
    """Keeps {"phase", "step", "committed", "time"} in the file at `path`; without a path it keeps nothing.

    step: the newest one dispatched; committed: the newest that a checkpoint holds; time: seconds since 1970.
    The file is always whole. It is for this moment only, so nothing waits for the disk, and a disk that is full
    or gone is no reason to stop training.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self._path = None if path is None else pathlib.Path(path)
        self._phase = "start"
        self._step: int | None = None
        self._committed: int | None = None
        self._written = -EVERY

    def enter(self, phase: str) -> None:
        """Another phase begins, one of PHASES; it is on file at once."""
        self._phase = phase
        self._write()

    def committed(self, step: int) -> None:
        """The checkpoint of this step is complete: a restart loses nothing before it."""
        self._committed = step
        self._write()

    def stage(self, what: str) -> None:
        self.enter(STAGES.get(what, self._phase))

    def progress(self, step: int) -> None:
        self._step = step
        if self._phase != "step":
            self.enter("step")
        elif time.monotonic() - self._written >= EVERY:
            self._write()

    def sync(self) -> None:
        self.enter("save")

    def close(self) -> None:
        self.enter("evaluation")  # what follows the loop: the last scores, and the page

    def _write(self) -> None:
        if self._path is None:
            return
        record = {"phase": self._phase, "step": self._step, "committed": self._committed, "time": time.time()}
        part = self._path.with_name(self._path.name + ".part")
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(record), encoding="utf-8")
            part.replace(self._path)
        self._written = time.monotonic()


@functools.cache
def reporter() -> Progress:
    """This process's own, in the file that LEPTON_PROGRESS names; it keeps nothing where that is not set."""
    return Progress(os.environ.get(VARIABLE))


def stacks(path: str | os.PathLike[str]) -> pathlib.Path:
    """Where a process with this progress file leaves its stacks."""
    return pathlib.Path(path).with_suffix(".stacks")


def dump_stacks_on_signal() -> None:
    """On SIGUSR1 write where each thread is, beside the progress file; nothing where LEPTON_PROGRESS is not set."""
    if path := os.environ.get(VARIABLE):
        file = 2
        with contextlib.suppress(OSError):
            # open for as long as the process lives: the handler may open nothing
            file = os.open(stacks(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
