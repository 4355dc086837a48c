"""What befalls a run of two processes, and whether it ends as if nothing had: the same losses, digests and examples.

    python -m benchmarks.faults                  every kind, at a few points: some minutes
    python -m benchmarks.faults --long           every point, in the first process, the second, and both
    python -m benchmarks.faults --kinds kill term

kill: kill -9 at a named point, or after a random time; then the run is started again. term: SIGTERM at a point: the run
has to save, exit with 75 in time, and go on. elastic: the same, and back as another number of processes. supervised: a
long run under the launcher, of which processes are killed at random; its examples are not looked at. The value is the
share of runs that ended bit for bit as the undisturbed one; of elastic ones, that had every example once in an epoch.
"""

import pathlib
import tempfile
import time

import numpy as np

from benchmarks import faulted, record

PACKAGE = "lepton_jax."
POINTS = [
    "cli:_before_jax:before:1",
    "cli:_before_jax:after:1",
    "mesh:make:after:1",
    "preparation:prepared:before:1",
    "preparation:prepared:after:1",
    "runs:create:before:1",
    "runs:create:after:1",
    "lease:_write:after:1",
    "survival:resumed:before:1",
    "survival:resumed:after:1",
    "step:place:before:1",
    "step:compile:before:1",
    "step:compile:after:1",
    "mesh:fed:after:1",
    "mesh:fed:after:2",
    "mesh:fed:after:9",
    "mesh:fed:after:16",
    "report.records:Journal.train:before:1",
    "report.records:Journal.train:after:2",
    "train:evaluated:before:1",
    "train:evaluated:after:1",
    "checkpoint:Checkpoints.save:before:1",
    "digests:digests:after:1",
    "checkpoint:Checkpoints.save:after:1",
    "checkpoint:Checkpoints.save:before:2",
    "checkpoint:Checkpoints.save:after:2",
    "checkpoint:Checkpoints.save:after:3",
    "manifest:seal:before:1",
    "manifest:entry:after:3",
    "manifest:seal:after:2",
    "checkpoint:Checkpoints.should_preserve:before:3",
    "checkpoint:Checkpoints.close:before:1",
    "checkpoint:Checkpoints.close:after:1",
    "survival:selected:after:1",
    "report.page:write:before:1",
    "report.page:write:after:1",
    "runs:replace:before:2",
    "runs:replace:after:2",
]
FEW = POINTS[12:14] + POINTS[20:21] + POINTS[23:24] + POINTS[27:28]
LEAVES = [PACKAGE + "mesh:fed:after:9", PACKAGE + "mesh:fed:after:6"]  # where a run leaves to come back as another


def main(
    long: bool = False,
    kinds: tuple[str, ...] = ("kill", "term", "elastic", "supervised"),
    randoms: int = 0,
    supervised_faults: int = 5,
    seed: int = 0,
) -> None:
    """Let faults befall runs.

    Args:
        long: Every point and target; else a few.
        kinds: Which, of kill, term, elastic and supervised.
        randoms: How many kill -9 after a random time, beside those at points.
        supervised_faults: How many befall the run under the launcher.
        seed: Of the random times.
    """
    with tempfile.TemporaryDirectory() as place:
        machine, faults = faulted.Machine(pathlib.Path(place)), []
        for name in ("warm", "whole"):  # the first compiles, and its time is not a run's
            begun = time.monotonic()
            machine.ended(machine.started(machine.directory / name))
        seconds, whole = time.monotonic() - begun, faulted.outcome(machine.directory / "whole")
        names = [PACKAGE + point for point in (POINTS if long else FEW)]
        if "kill" in kinds:
            for number, point in enumerate(names):
                for target in ([0], [1], [0, 1]):
                    run = machine.directory / f"kill-{number}-{len(target)}{target[0]}"
                    faults.append(told(faulted.killed(machine, run, target, point, whole)))
            for number, delay in enumerate(np.random.default_rng(seed).uniform(0, seconds, randoms).tolist()):
                run = machine.directory / f"random-{number}"
                faults.append(told(faulted.killed_at_random(machine, run, delay, whole)))
        if "term" in kinds:
            for number, point in enumerate(names if long else names[::2]):
                faults.append(told(faulted.terminated(machine, machine.directory / f"term-{number}", point, whole)))
        if "elastic" in kinds:
            for number, counts in enumerate([(1, 2, 1), (2, 4)]):
                run = machine.directory / f"elastic-{number}"
                faults.append(told(faulted.elastic(machine, counts, run, LEAVES[: len(counts) - 1])))
        if "supervised" in kinds:
            longer = machine._replace(epochs=6 * supervised_faults)
            machine.ended(longer.started(machine.directory / "longer"))
            undisturbed = faulted.outcome(machine.directory / "longer")._replace(samples={})
            run = machine.directory / "supervised"
            faults.append(told(faulted.supervised(longer, run, supervised_faults, 2 * seconds, seed, undisturbed)))
    hit = [fault for fault in faults if fault.hit]
    rows = []
    for kind in kinds:
        of_kind = [fault for fault in hit if fault.kind == kind]
        good = sum(not fault.wrong for fault in of_kind)
        longest = max((fault.seconds for fault in of_kind), default=0.0)
        rows.append([kind, len(of_kind), good, f"{longest:.1f} s"])
    value = sum(not fault.wrong for fault in hit) / max(len(hit), 1)
    record.tell("faults", ["kind", "faults", "same as without", "longest"], rows, value, 1.0, value == 1.0)


def told(fault: faulted.Fault) -> faulted.Fault:
    """The fault, printed."""
    for gone, again in fault.waits:
        print(f"      all gone after {gone:5.1f} s, a new step on the disk after {again:5.1f} s")
    verdict = "not reached" if not fault.hit else fault.wrong or "same"
    print(f"{fault.kind:<5} {fault.target:<7} {fault.point:<52} {fault.seconds:6.1f} s  {verdict}", flush=True)
    return fault


if __name__ == "__main__":
    from lepton_jax import cli

    cli.command(main)
