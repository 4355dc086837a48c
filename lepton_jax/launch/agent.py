"""On another machine: starts one process for a supervisor at the other end of a pipe, and is its eyes and hands.

    python -m lepton_jax.launch.agent

Reads {"command", "environment"} as a line of JSON, then numbers of signals, a line each. Writes {"progress"},
{"stacks"} and at last {"code"}. What the process prints goes to standard error. Where the pipe ends, the process does.
"""

import contextlib
import io
import json
import os
import pathlib
import select
import sys
import tempfile
from typing import Any

from lepton_jax.launch.life import TICK
from lepton_jax.launch.worker import Local


def main() -> int:
    """Serve one process: 0, whatever its own exit code was, which is told."""
    # unbuffered, so that select knows of every line
    orders = io.FileIO(0, closefd=False)
    if not (first := orders.readline()):
        return 0
    order = json.loads(first)
    with tempfile.TemporaryDirectory(prefix="lepton-") as scratch:
        environment = {**os.environ, **order["environment"]}
        try:
            worker = Local(0, order["command"], environment, 2, pathlib.Path(scratch))
        except OSError as error:
            print(f"{order['command'][0]}: {error.strerror}", file=sys.stderr)
            _tell(code=127)
            return 0
        with contextlib.suppress(BrokenPipeError):
            _serve(worker, orders)
        worker.kill()
    return 0


def _serve(worker: Local, orders: io.FileIO) -> None:
    told, dumped = None, 0
    while True:
        code = worker.left()
        worker.look()
        if worker.record != told:
            told = worker.record
            _tell(progress=told)
        if worker.stacks.exists() and (size := worker.stacks.stat().st_size) > dumped:
            dumped = size
            _tell(stacks=worker.stacks.read_text(encoding="utf-8", errors="replace"))
        if code is not None:
            return _tell(code=code)
        if select.select([orders], [], [], TICK)[0]:
            if not (line := orders.readline()):
                return None
            worker.send(int(line))


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
