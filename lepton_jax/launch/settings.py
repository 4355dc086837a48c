"""The launcher's command line."""

import argparse
import itertools
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from lepton_jax import processes, progress, runs
from lepton_jax.errors import InputError, unknown
from lepton_jax.launch import verdict

# seconds without a sign of life; compiling, evaluating and restoring give none until they are done
LIMITS = {"start": 300.0, "compile": 1800.0, "step": 300.0, "evaluation": 1800.0, "save": 600.0, "restore": 600.0}
PROGRAM = "python -m lepton_jax.launch"
EXAMPLE = f"{PROGRAM} --processes 2 -- python -m experiments.resnet --mesh 8x1"


@dataclass(frozen=True)
class Settings:
    """What to run, and how it is watched."""

    command: tuple[str, ...]
    log: pathlib.Path  # where events.jsonl, the workers' logs and stacks go
    processes: int = 1
    min_processes: int = 1
    devices: tuple[str, ...] = ()  # accelerators to be split over the processes
    hosts: tuple[str, ...] = ()  # machines to choose from; none for this one
    ssh: str = "ssh -o BatchMode=yes"
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)
    grace: float = 60.0  # seconds
    backoff: float = 1.0  # seconds
    restarts: int = 3
    probe: bool = True
    member: bool = False  # one of several that a scheduler has started, and starts again


class Parser(argparse.ArgumentParser):
    """What it refuses is an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, f"{PROGRAM} --help lists every flag")


def parser() -> Parser:
    """The flags, each with its meaning."""
    limits = ", ".join(f"{phase}={seconds:g}" for phase, seconds in LIMITS.items())
    made = Parser(
        PROGRAM,
        f"{PROGRAM} [flags] -- COMMAND",
        "Run a command in several processes that share a mesh; watch them, and start them again where they fail.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--processes", type=int, default=1, help="processes to start; simulated devices are split over them (1)")
    add("--min-processes", type=int, help="go on with as few as this where a start fails or a machine is sick")
    add("--devices", help="accelerators to split over the processes, as 0,1,2,3")
    add("--hosts", help="machines to choose from, as node1,node2,node3; they are reached by --ssh")
    add("--ssh", default=Settings.ssh, help=f"how a machine is reached ({Settings.ssh})")
    add("--log", help="where events.jsonl, logs and stacks go (RUN/launch)")
    silence = f"seconds without a sign of life in a phase, then all are restarted; may be repeated ({limits})"
    add("--limit", action="append", default=[], metavar="PHASE=SECONDS", help=silence)
    add("--grace", type=float, default=Settings.grace, help="seconds to save and leave after SIGTERM or SIGINT (60)")
    add("--backoff", type=float, default=Settings.backoff, help="seconds before the first restart, then doubled (1)")
    add("--restarts", type=int, default=Settings.restarts, help="restarts without a new checkpoint, then stop (3)")
    add("--no-probe", action="store_true", help="do not measure the machines first")
    alone = (
        "watch one process that a scheduler has started among others: its place comes from the scheduler, which also"
    )
    add("--member", action="store_true", help=f"{alone} restarts; a stall is exit code 124")
    return made


def parse(arguments: Sequence[str]) -> Settings:
    """The settings that the arguments ask for. Raises InputError for what cannot work; writes nothing."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    given, command = parser().parse_args(words[:cut]), words[cut + 1 :]
    if not command:
        raise InputError("there is no command after --", EXAMPLE)
    least = given.processes if given.min_processes is None else given.min_processes
    if not 1 <= least <= given.processes:
        problem = f"--min-processes {least} and --processes {given.processes} do not fit together"
        raise InputError(problem, "give at least 1, and the minimum at most as many as --processes")
    for name in ("grace", "backoff", "restarts"):
        if not 0 <= getattr(given, name) < math.inf:
            raise InputError(f"--{name} {getattr(given, name)} is not a number of at least 0", f"leave --{name} out")
    command, log = with_log(command, given)
    settings = Settings(
        command=tuple(command),
        log=log,
        processes=given.processes,
        min_processes=least,
        devices=_listed("devices", given.devices),
        hosts=_listed("hosts", given.hosts),
        ssh=given.ssh,
        limits=limits(given.limit),
        grace=given.grace,
        backoff=given.backoff,
        restarts=given.restarts,
        probe=not given.no_probe and not given.member,
        member=given.member,
    )
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raise InputError for what would fail at once in every life."""
    if settings.hosts:
        if len(settings.hosts) < settings.min_processes:
            problem = f"--hosts names {len(settings.hosts)} machine(s) for {settings.min_processes} process(es)"
            raise InputError(problem, "there is one process on a machine: name more, or lower --processes")
    elif shutil.which(settings.command[0]) is None:
        raise InputError(f"{settings.command[0]!r} is not a program that can be run", EXAMPLE)
    if settings.member:
        return  # its mesh is that of all members
    for count, what in ((verdict.devices(settings.command), "the mesh"), (len(settings.devices) or None, "--devices")):
        if count is not None and count % settings.processes:
            problem = f"{count} device(s) of {what} cannot be split over {settings.processes} processes"
            raise InputError(problem, "choose a number of processes that divides them")


def with_log(command: Sequence[str], given: argparse.Namespace) -> tuple[list[str], pathlib.Path]:
    """The command with a run directory, and where its supervision is recorded: of members, each in its own place."""
    words, run = with_run(command)
    if given.member:
        if words != list(command):
            raise InputError("--member: the command names no --run", "all members need the same one: add --run DIR")
        if given.processes > 1 or given.hosts:
            raise InputError("--member is one process, and --processes or --hosts are several", "leave them out")
    log = pathlib.Path(given.log) if given.log else run / runs.LAUNCH
    membership = processes.find({}, os.environ) if given.member else None
    return words, log / f"process-{membership.process_id}" if membership and membership.process_id else log


def with_run(command: Sequence[str]) -> tuple[list[str], pathlib.Path]:
    """The command with a run directory, and that directory.

    Without one every process, and every life, would make its own: where none is named, it gets a fresh one.
    """
    for word, after in zip(command, [*command[1:], ""], strict=True):
        if word == "--run" or word.startswith("--run="):
            return list(command), pathlib.Path(after if word == "--run" else word.split("=", 1)[1])
    module = next((after for word, after in itertools.pairwise(command) if word == "-m"), command[0])
    fresh = runs.fresh(pathlib.Path(module).stem if "/" in module else module.split(".")[-1])
    return [*command, "--run", str(fresh)], fresh


def limits(given: Sequence[str]) -> dict[str, float]:
    """LIMITS, with those given as PHASE=SECONDS in their place. Raises InputError."""
    found = dict(LIMITS)
    for pair in given:
        phase, _, seconds = pair.partition("=")
        if phase not in progress.PHASES:
            raise unknown("phase of --limit", phase, progress.PHASES)
        try:
            found[phase] = float(seconds)
        except ValueError:
            found[phase] = math.nan
        if not found[phase] > 0:
            raise InputError(f"--limit {pair} is not a number of seconds above 0", "write it as --limit step=60")
    return found


def _listed(name: str, text: str | None) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(",")) if text is not None else ()
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"--{name} {text!r} has an empty or a repeated entry", "write each once, with commas between")
    return names
