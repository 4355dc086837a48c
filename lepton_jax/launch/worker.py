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
from typing import Any

from lepton_jax import progress

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Worker:
    """A started process. Its group holds whatever it starts itself, and ends with it."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: pathlib.Path | None,
        scratch: pathlib.Path,
    ):
        self.number = number
        self.phase, self.step, self.committed = "start", None, None
        self.moved = time.monotonic()  # when it last said something new
        self._record: Any = None
        self._file = scratch / f"worker-{number}.json"
        self.stacks = progress.stacks(self._file)
        for old in (self._file, self.stacks):
            old.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            # process 0 speaks for all, on the terminal where there is one
            output = None if log is None else stack.enter_context(log.open("ab"))
            self._process = subprocess.Popen(
                command,
                env={**environment, progress.VARIABLE: str(self._file)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_the_supervisor if sys.platform == "linux" else None,
            )

    def look(self) -> None:
        """Read what it says of itself. Its clock is not asked: what counts is when something new was seen here."""
        record = self._read()
        if record is not None and record != self._record:
            self._record, self.moved = record, time.monotonic()
            phase = record.get("phase")
            self.phase = phase if phase in progress.PHASES else self.phase
            self.step, self.committed = record.get("step"), record.get("committed")

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def idle(self) -> float:
        """Seconds since it last said something new."""
        return time.monotonic() - self.moved

    def left(self) -> int | None:
        """Its exit code, negative for a signal, once it has left; what it had started is ended with it."""
        if self._process.returncode is None:
            gone = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if gone is None:
                return None
            self.kill()
        return self._process.wait()

    def send(self, signum: int) -> None:
        """A signal to the process alone; what it has started is its own affair."""
        if self._process.returncode is None:  # until it is reaped nobody else can have its number
            os.kill(self._process.pid, signum)

    def kill(self) -> None:
        """End the whole group at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_the_supervisor() -> None:
    """In the child: nothing may go on writing to a run that nobody watches."""
    assert _LIBC is not None
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
