"""One process of the group on another machine, through an agent there."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

from lepton_jax.errors import Exit
from lepton_jax.launch.worker import Worker

CARRIED = ("LEPTON_", "JAX_", "XLA_", "NCCL_", "TF_CPP_", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PATH")
PATIENCE = 10.0  # seconds for an agent to end its process before the connection is cut


def there(ssh: str, host: str, module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours on a machine, in this directory and with this Python."""
    path = f"PYTHONPATH={os.environ['PYTHONPATH']}" if "PYTHONPATH" in os.environ else ""
    words = ["env", *filter(None, [path]), sys.executable, "-m", module, *arguments]
    return [*shlex.split(ssh), host, f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}"]


class Remote(Worker):
    """A process on another machine. Python, the code and the run directory are where they are here."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: IO[bytes] | int | None,
        scratch: pathlib.Path,
        agent: Sequence[str],
    ):
        super().__init__(number, scratch)
        self._said, self._code, self._killed = b"", None, 0.0
        pipe = subprocess.PIPE
        self._agent = subprocess.Popen(agent, stdin=pipe, stdout=pipe, stderr=output, start_new_session=True)
        assert self._agent.stdin
        assert self._agent.stdout
        self._in, self._out = self._agent.stdin, self._agent.stdout
        os.set_blocking(self._out.fileno(), False)
        carried = {name: value for name, value in environment.items() if name.startswith(CARRIED)}
        self._write(json.dumps({"command": list(command), "environment": carried}))

    def look(self) -> None:
        while chunk := self._out.read(2**16):
            self._said += chunk
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # a login message
            self.note(told.get("progress"))
            if "stacks" in told:
                self.stacks.write_text(told["stacks"], encoding="utf-8")
            self._code = told.get("code", self._code)

    def left(self) -> int | None:
        gone = self._agent.poll()
        self.look()
        if self._killed and gone is None and time.monotonic() - self._killed > PATIENCE:
            os.killpg(self._agent.pid, signal.SIGKILL)
        if gone is None and self._code is None:
            return None
        self._close()
        # without its last word: the connection is lost, or nobody was there
        return self._code if self._code is not None else -signal.SIGKILL if self._killed else gone or Exit.INTERNAL

    def send(self, signum: int) -> None:
        self._write(str(int(signum)))

    def kill(self) -> None:
        self._killed = self._killed or time.monotonic()
        self._close()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._in.write(line.encode() + b"\n")
            self._in.flush()

    def _close(self) -> None:
        """The agent ends its process where its pipe ends."""
        with contextlib.suppress(OSError):
            self._in.close()
