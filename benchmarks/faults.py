"""What befalls a run of two processes, and whether it ends as if nothing had: the same losses, digests and examples.

    python -m benchmarks.faults                  every kind, at a few points: some minutes
    python -m benchmarks.faults --long           every point, in the first process, the second, and both
    python -m benchmarks.faults --kinds kill term

kill: kill -9 at a named point, or after a random time; then the run is started again. term: SIGTERM at a point: the run
has to save, exit with 75 in time, and go on. supervised: a long run under the launcher, of which processes
are killed at random; its examples are not looked at. The value is the share of runs that ended bit for bit as the
undisturbed one.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import injected, record

FLAGS = ["--preset", "smoke", "--model", "mlp", "--log-every", "5", "--checkpoint-every", "0.5", "--ema", "0.9"]
TIMED = ("train/examples_per_second", "train/input_idle")
GRACE = 30.0  # seconds from SIGTERM to the exit
PACKAGE = "lepton_jax."
POINTS = [
    "cli:_before_jax:before:1",
    "cli:_before_jax:after:1",
    "mesh:make:after:1",
    "experiment:prepared:before:1",
    "experiment:prepared:after:1",
    "runs:create:before:1",
    "runs:create:after:1",
    "lease:_write:after:1",
    "experiment:resumed:before:1",
    "experiment:resumed:after:1",
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
    "experiment:selected:after:1",
    "report.page:write:before:1",
    "report.page:write:after:1",
    "runs:replace:before:2",
    "runs:replace:after:2",
]
FEW = POINTS[12:14] + POINTS[20:21] + POINTS[23:24] + POINTS[27:28]


class Machine(NamedTuple):
    """Where runs are made: how many processes each has, the mesh, and a place for compiled programs."""

    directory: pathlib.Path
    processes: int = 2
    mesh: str = "4x1"
    programs: pathlib.Path | None = None  # by default in the directory
    epochs: int = 2

    def arguments(self, run: pathlib.Path) -> list[str]:
        """Those of the experiment."""
        return [*FLAGS, "--epochs", str(self.epochs), "--mesh", self.mesh, "--run", str(run)]

    def started(
        self, run: pathlib.Path, target: Sequence[int] = (), point: str | None = None, what: int = signal.SIGKILL
    ) -> list[Any]:
        """The processes of a run, those of `target` with a fault."""
        address = f"127.0.0.1:{free_port()}"
        found = []
        for number in range(self.processes):
            environment = {
                "JAX_COMPILATION_CACHE_DIR": str(self.programs or self.directory / "programs"),
                "SAMPLES": str(run.with_name(f"{run.name}.samples-{number}")),
            }
            if self.processes > 1:
                environment |= {
                    "LEPTON_COORDINATOR": address,
                    "LEPTON_PROCESSES": str(self.processes),
                    "LEPTON_PROCESS_ID": str(number),
                }
            output = str(run.with_name(f"{run.name}.output-{number}"))
            found.append(
                injected.begun(self.arguments(run), environment, output, point if number in target else None, what)
            )
        return found

    def ended(self, processes: Sequence[Any], within: float = 300.0) -> list[int]:
        """Exit codes, once all have ended. Where one dies or is late, kill the others, as a supervisor would."""
        deadline = time.monotonic() + within
        while any(process.is_alive() for process in processes):
            if any(process.exitcode not in (None, 0, 75) for process in processes) or time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.02)
        return [process.exitcode for process in processes]


class Outcome(NamedTuple):
    """What a run left: rows without times, digests of its last checkpoint, and {(process, step, rows): examples}."""

    rows: list[Any]
    digests: dict[str, str]
    samples: dict[tuple[int, int, int], str]


def outcome(run: pathlib.Path) -> Outcome:
    """What a finished run left. Raises ValueError where two lives of it saw other examples at one step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in TIMED} for row in lines]
    last = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    leaves = json.loads((run / "checkpoints" / str(last) / "info" / "metadata").read_text())["leaves"]
    samples: dict[tuple[int, int, int], str] = {}
    for path in sorted(run.parent.glob(f"{run.name}.samples-*")):
        for line in path.read_text().splitlines():
            step, count, examples = line.split()
            place = (int(path.name.rsplit("-", 1)[1]), int(step), int(count))
            if samples.setdefault(place, examples) != examples:
                raise ValueError(f"step {step} had other examples in another life")
    return Outcome(rows, leaves, samples)


class Fault(NamedTuple):
    """Something that befell a run. hit: whether the point was reached; wrong: what was not as without it."""

    kind: str
    point: str
    target: str
    hit: bool
    wrong: str
    seconds: float  # to the exit after SIGTERM; else of the whole run
    codes: tuple[int, ...] = ()  # with which the processes left


def killed(machine: Machine, run: pathlib.Path, target: Sequence[int], point: str, whole: Outcome) -> Fault:
    """kill -9 at a point, and the run again."""
    begun = time.monotonic()
    codes = machine.ended(machine.started(run, target, point))
    hit = any(code != 0 for code in codes)
    wrong = "" if not hit else again(machine, run)
    wrong, seconds = wrong or differences(run, whole), time.monotonic() - begun
    return Fault("kill", point, named(target, machine), hit, wrong, seconds, tuple(codes))


def killed_at_random(machine: Machine, run: pathlib.Path, delay: float, whole: Outcome) -> Fault:
    """kill -9 of one process after some seconds."""
    begun = time.monotonic()
    processes = machine.started(run)
    time.sleep(delay)
    processes[random.Random(delay).randrange(len(processes))].kill()
    hit = any(code != 0 for code in machine.ended(processes))
    wrong = again(machine, run) if hit else ""
    return Fault("kill", f"after {delay:.1f} s", "one", hit, wrong or differences(run, whole), time.monotonic() - begun)


def terminated(machine: Machine, run: pathlib.Path, point: str, whole: Outcome) -> Fault:
    """SIGTERM to every process once the first reaches a point; exit 75 in time, and the run again."""
    processes = machine.started(run, [0], point, signal.SIGSTOP)
    stopped = waited_for_stop(processes[0])
    begun = time.monotonic()
    for process in processes:
        if process.is_alive():
            process.terminate()
    if stopped:
        os.kill(processes[0].pid, signal.SIGCONT)
    codes = machine.ended(processes, within=GRACE)
    seconds = time.monotonic() - begun
    wrong = "" if set(codes) <= {0, 75} else f"exit codes {codes}"
    if not wrong and set(codes) != {0}:
        wrong = again(machine, run)
    return Fault("term", point, "all", stopped, wrong or differences(run, whole), seconds, tuple(codes))


def supervised(machine: Machine, run: pathlib.Path, count: int, life: float, seed: int, whole: Outcome) -> Fault:
    """A run under the launcher, of which a random process is killed after up to `life` seconds, so many times."""
    begun, draw, kills = time.monotonic(), random.Random(seed), 0
    command = [sys.executable, "-m", "lepton_jax.launch", "--processes", str(machine.processes), "--restarts", "1000"]
    command += ["--backoff", "0.1", "--", sys.executable, "-m", "experiments.resnet", *machine.arguments(run)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(machine.programs or machine.directory / "programs")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as launch:
        while launch.poll() is None:
            workers = children(launch.pid)
            deadline = time.monotonic() + draw.uniform(0, life)
            while launch.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            workers = children(launch.pid)
            if workers and kills < count:
                os.kill(draw.choice(workers), signal.SIGKILL)
                kills += 1
        said = launch.stderr.read() if launch.stderr else ""
    wrong = "" if launch.returncode == 0 else f"exit code {launch.returncode}: {said[-200:]}"
    wrong = wrong or ("" if kills == count else f"only {kills} faults found the run alive")
    point = f"{count} at random, under the launcher"
    return Fault("supervised", point, "one", True, wrong or differences(run, whole), time.monotonic() - begun)


def children(process: int) -> list[int]:
    """The processes that a process has started and that live."""
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def waited_for_stop(process: Any) -> bool:
    """Whether a process has stopped itself, rather than ended."""
    while process.is_alive():
        try:
            state = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        if state == "T":
            return True
        time.sleep(0.01)
    return False


def again(machine: Machine, run: pathlib.Path) -> str:
    """Run once more to the end; what went wrong."""
    codes = machine.ended(machine.started(run))
    return "" if set(codes) == {0} else f"started again: exit codes {codes}"


def differences(run: pathlib.Path, whole: Outcome) -> str:
    """What of a finished run is not as without the fault."""
    try:
        found = outcome(run)
    except (OSError, ValueError) as error:
        return str(error)
    if not (run / "result.json").exists():
        return "no result"
    names = [name for name in Outcome._fields if getattr(found, name) != getattr(whole, name)]
    return f"other {', '.join(names)}" if names else ""


def named(target: Sequence[int], machine: Machine) -> str:
    """The words for the processes that are hit."""
    if machine.processes == 1:
        return "only"
    return "both" if len(target) > 1 else ("first", "second")[target[0]]


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(
    long: bool = False,
    kinds: tuple[str, ...] = ("kill", "term", "supervised"),
    randoms: int = 0,
    supervised_faults: int = 5,
    seed: int = 0,
) -> None:
    """Let faults befall runs.

    Args:
        long: Every point and target; else a few.
        kinds: Which, of kill, term and supervised.
        randoms: How many kill -9 after a random time, beside those at points.
        supervised_faults: How many befall the run under the launcher.
        seed: Of the random times.
    """
    with tempfile.TemporaryDirectory() as place:
        machine, faults = Machine(pathlib.Path(place)), []
        for name in ("warm", "whole"):  # the first compiles, and its time is not a run's
            begun = time.monotonic()
            machine.ended(machine.started(machine.directory / name))
        seconds, whole = time.monotonic() - begun, outcome(machine.directory / "whole")
        names = [PACKAGE + point for point in (POINTS if long else FEW)]
        if "kill" in kinds:
            for number, point in enumerate(names):
                for target in ([0], [1], [0, 1]):
                    run = machine.directory / f"kill-{number}-{len(target)}{target[0]}"
                    faults.append(told(killed(machine, run, target, point, whole)))
            for number, delay in enumerate(np.random.default_rng(seed).uniform(0, seconds, randoms).tolist()):
                run = machine.directory / f"random-{number}"
                faults.append(told(killed_at_random(machine, run, delay, whole)))
        if "term" in kinds:
            for number, point in enumerate(names[1::2] if long else names[::2]):
                faults.append(told(terminated(machine, machine.directory / f"term-{number}", point, whole)))
        if "supervised" in kinds:
            longer = machine._replace(epochs=6 * supervised_faults)
            machine.ended(longer.started(machine.directory / "longer"))
            undisturbed = outcome(machine.directory / "longer")._replace(samples={})
            run = machine.directory / "supervised"
            faults.append(told(supervised(longer, run, supervised_faults, 2 * seconds, seed, undisturbed)))
    hit = [fault for fault in faults if fault.hit]
    rows = []
    for kind in kinds:
        of_kind = [fault for fault in hit if fault.kind == kind]
        good = sum(not fault.wrong for fault in of_kind)
        longest = max((fault.seconds for fault in of_kind), default=0.0)
        rows.append([kind, len(of_kind), good, f"{longest:.1f} s"])
    value = sum(not fault.wrong for fault in hit) / max(len(hit), 1)
    record.tell("faults", ["kind", "faults", "same as without", "longest"], rows, value, 1.0, value == 1.0)


def told(fault: Fault) -> Fault:
    """The fault, printed."""
    verdict = "not reached" if not fault.hit else fault.wrong or "same"
    print(f"{fault.kind:<5} {fault.target:<7} {fault.point:<52} {fault.seconds:6.1f} s  {verdict}", flush=True)
    return fault


if __name__ == "__main__":
    from lepton_jax import cli

    cli.command(main)
