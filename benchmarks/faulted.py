"""Runs in real processes, and what befalls them: kill -9, SIGTERM, another number of processes, random faults.

What a run leaves is compared with what the undisturbed one left: the rows of its metrics, the digests of its last
checkpoint, and the examples that each step had.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import injected

FLAGS = ["--preset", "smoke", "--model", "mlp", "--log-every", "5", "--checkpoint-every", "0.5", "--ema", "0.9"]
TIMED = ("train/examples_per_second", "train/input_idle")
GRACE = 30.0  # seconds from SIGTERM to the exit
BATCH = 128


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
    waits: tuple[tuple[float, float], ...] = ()  # under the launcher: from a kill until all are gone, until a new step


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
    codes, stopped, seconds = asked(machine, run, point)
    wrong = "" if set(codes) <= {0, 75} else f"exit codes {codes}"
    if not wrong and set(codes) != {0}:
        wrong = again(machine, run)
    return Fault("term", point, "all", stopped, wrong or differences(run, whole), seconds, tuple(codes))


def asked(machine: Machine, run: pathlib.Path, point: str) -> tuple[list[int], bool, float]:
    """(exit codes, whether the point was reached, seconds to the exit) of a run that is asked to leave at a point."""
    processes = machine.started(run, [0], point, signal.SIGSTOP)
    stopped = waited_for_stop(processes[0])
    begun = time.monotonic()
    for process in processes:
        if process.is_alive():
            process.terminate()
    if stopped:
        os.kill(processes[0].pid, signal.SIGCONT)
    return machine.ended(processes, within=GRACE), stopped, time.monotonic() - begun


def elastic(machine: Machine, counts: Sequence[int], run: pathlib.Path, points: Sequence[str]) -> Fault:
    """A run that leaves at each point and comes back as another number of processes; every example still once."""
    begun, codes = time.monotonic(), []
    machine = machine._replace(epochs=12)  # long enough for processes to agree on a step before the end
    for count, point in zip(counts, points, strict=False):
        codes += asked(machine._replace(processes=count), run, point)[0]
    wrong = "" if set(codes) == {75} else f"exit codes {codes}"
    wrong = wrong or again(machine._replace(processes=counts[-1]), run) or disorder(run, max(counts))
    target = " -> ".join(map(str, counts))
    return Fault("elastic", " ".join(points), target, True, wrong, time.monotonic() - begun, tuple(codes))


def disorder(run: pathlib.Path, processes: int) -> str:
    """Where the examples of a run are not each once in every epoch, in one order whatever the processes; "" if so."""
    parts: dict[tuple[int, int], dict[int, list[int]]] = {}  # by step and rows: of each process
    for number in range(processes):
        path = run.with_name(f"{run.name}.samples-{number}")
        for line in path.read_text().splitlines() if path.exists() else ():
            step, rows, examples = line.split()
            parts.setdefault((int(step), int(rows)), {})[number] = [int(example) for example in examples.split(",")]
    steps: dict[int, list[int]] = {}
    for (step, rows), of_processes in sorted(parts.items()):
        holders = sorted(of_processes)[: BATCH // rows]  # of a whole batch each process has a copy
        whole = [example for number in holders for example in of_processes[number]]
        if len(whole) == BATCH and steps.setdefault(step, whole) != whole:
            return f"step {step} had other examples in another life"
    order = [example for step in sorted(steps) for example in steps[step]]
    examples = max(order) + 1
    epochs = [order[start : start + examples] for start in range(0, len(order), examples)]
    for number, epoch in enumerate(epochs):
        if len(set(epoch)) < len(epoch):
            return f"an example comes twice in epoch {number}"
    return "" if len(epochs) > 1 else "the run has no whole epoch"


def supervised(machine: Machine, run: pathlib.Path, count: int, life: float, seed: int, whole: Outcome) -> Fault:
    """A run under the launcher, of which a random process is killed after up to `life` seconds, so many times."""
    begun, draw, kills = time.monotonic(), random.Random(seed), []
    command = [sys.executable, "-m", "lepton_jax.launch", "--processes", str(machine.processes), "--restarts", "1000"]
    command += ["--backoff", "0.1", "--", sys.executable, "-m", "experiments.resnet", *machine.arguments(run)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(machine.programs or machine.directory / "programs")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as launch:
        while launch.poll() is None:
            deadline = time.monotonic() + draw.uniform(0, life)
            while launch.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            workers = children(launch.pid)
            if workers and len(kills) < count:
                os.kill(draw.choice(workers), signal.SIGKILL)
                kills.append(time.time())
        said = launch.stderr.read() if launch.stderr else ""
    wrong = "" if launch.returncode == 0 else f"exit code {launch.returncode}: {said[-200:]}"
    wrong = wrong or ("" if len(kills) == count else f"only {len(kills)} faults found the run alive")
    wrong, waits = wrong or differences(run, whole), tuple(waited(run, kills))
    point = f"{count} at random, under the launcher"
    return Fault("supervised", point, "one", True, wrong, time.monotonic() - begun, waits=waits)


def waited(run: pathlib.Path, kills: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Seconds from each kill until the launcher had seen everyone gone, and until the next step was committed."""
    events = [json.loads(line) for line in (run / "launch" / "events.jsonl").read_text().splitlines()]
    for kill, following in zip(kills, [*kills[1:], float("inf")], strict=True):
        after = [event for event in events if kill <= event["time"] < following]
        gone = next((event["time"] - kill for event in after if event["event"] == "restart"), None)
        again = next((event["time"] - kill for event in after if event["event"] == "commit"), None)
        if gone is not None and again is not None:  # else the next kill came before
            yield gone, again


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
