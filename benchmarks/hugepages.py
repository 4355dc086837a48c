"""What huge pages are worth to a step on CPUs: two processes, with pages of 2 MB and of 4 KB, that step in turn.

    python -m benchmarks.hugepages

The value is the least ratio of examples/s; no bar is set. Beside it how often a step had the kernel give it a page.
"""

import multiprocessing
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import bitwise, record
from lepton_jax import hugepages

PAGES = {"small": "", "huge": hugepages.ASKING}  # what the C library is told
MESHES = ("1x1", "2x1")


class Stepping:
    """A process that makes a step whenever it is called."""

    def __init__(self, process: Any, pipe: Any):
        self.process, self.pipe = process, pipe
        self.faults: list[int] = []

    def __call__(self) -> None:
        """One step, after which its page faults are known."""
        self.pipe.send(True)
        self.faults.append(self.pipe.recv())


def stepped(pipe: Any, *case: Any) -> None:
    """What the process does."""
    lp.mesh.simulate(2)
    one, _ = bitwise.repeated(*case, shards=None)
    while pipe.recv():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        one()
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@contextmanager
def processes(*case: Any) -> Iterator[dict[str, Stepping]]:
    """One for each kind of pages."""
    context, found = multiprocessing.get_context("spawn"), {}
    for kind, tunables in PAGES.items():
        os.environ[hugepages.TUNABLES] = tunables  # the process takes them when it starts
        ours, theirs = context.Pipe()
        process = context.Process(target=stepped, args=(theirs, *case), daemon=True)
        process.start()
        found[kind] = Stepping(process, ours)
    try:
        yield found
    finally:
        for stepping in found.values():
            stepping.process.kill()
            stepping.process.join()


def main(rounds: int = 20, batch: int = 128) -> None:
    """Compare the steps of two models on two meshes.

    Args:
        rounds: Steps of each.
        batch: Examples per step.
    """
    if not hugepages.offered():
        problem = "this kernel or C library gives no huge pages to programs that ask"
        raise lp.InputError(problem, f"{hugepages.SWITCH} has to say [madvise], and glibc to be 2.35 or newer")
    rows, ratios = [], []
    for name, shape in bitwise.CASES:
        for axes in MESHES:
            with processes(name, shape, axes, batch) as steps:
                seconds = record.interleaved(dict(steps), rounds)
            ratio, quartiles = record.spread(seconds["small"] / seconds["huge"])
            rate = batch / float(np.median(seconds["huge"]))
            faults = [int(np.median(steps[kind].faults)) for kind in PAGES]
            rows.append([name, axes, ratio, quartiles, rate, *faults])
            ratios.append(ratio)
    head = ["model", "mesh", "rate", "quartiles", "examples/s", "faults, small", "faults, huge"]
    record.tell("hugepages", head, rows, min(ratios), None, None)


if __name__ == "__main__":
    lp.cli.command(main)
