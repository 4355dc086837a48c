"""One process of the group, from the supervisor's side: its own session, log, and progress file."""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from lepton_jax import progress

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Worker:
    """What the supervisor sees of a process, wherever it runs."""

    def __init__(self, number: int, scratch: pathlib.Path):
        self.number = number
        self.phase = "start"
        self.step: int | None = None
        self.committed: int | None = None
        self.moved = time.monotonic()  # when it last said something new
        self.record: Any = None  # the newest that it said
        self.file = scratch / f"worker-{number}.json"
        self.stacks = progress.stacks(self.file)
        for old in (self.file, self.stacks):
            old.unlink(missing_ok=True)

    def note(self, record: Any) -> None:
        """It says this of itself. Its clock is not asked: what counts is when something new was seen here."""
        if isinstance(record, dict) and record != self.record:
            self.record, self.moved = record, time.monotonic()
            phase = record.get("phase")
            self.phase = phase if phase in progress.PHASES else self.phase
            self.step, self.committed = record.get("step"), record.get("committed")

    def idle(self) -> float:
        """Seconds since it last said something new."""
        return time.monotonic() - self.moved

    def look(self) -> None:
        """Take note of what it says of itself by now."""
        raise NotImplementedError

    def left(self) -> int | None:
        """Its exit code, negative for a signal, once it has left; what it had started is ended with it."""
        raise NotImplementedError

    def send(self, signum: int) -> None:
        """A signal to the process alone; what it has started is its own affair."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the whole group at once."""
        raise NotImplementedError


class Local(Worker):
    """A process on this machine, in a session of its own. output: where it writes to; None for where we do."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: IO[bytes] | int | None,
        scratch: pathlib.Path,
    ):
        super().__init__(number, scratch)
        self._process = subprocess.Popen(
            command,
            env={**environment, progress.VARIABLE: str(self.file)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_the_supervisor if sys.platform == "linux" else None,
        )

    def look(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.note(json.loads(self.file.read_text(encoding="utf-8")))

    def left(self) -> int | None:
        if self._process.returncode is None:
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.kill()
        return self._process.wait()

    def send(self, signum: int) -> None:
        if self._process.returncode is None:  # until it is reaped nobody else can have its number
            os.kill(self._process.pid, signum)

    def kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_the_supervisor() -> None:
    """In the child: nothing may go on writing to a run that nobody watches."""
    assert _LIBC is not None
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
