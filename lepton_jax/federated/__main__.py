"""Federated training between machines; docs/federation.md tells how.

python -m lepton_jax.federated certificates --out certificates --nodes a b c
python -m lepton_jax.federated serve EXPERIMENT --certificates certificates --run RUN [flags] [the experiment's flags]
python -m lepton_jax.federated join EXPERIMENT --certificates certificates --name a [flags] [the experiment's flags]

Each with --help lists its flags.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from lepton_jax import cli, errors, preemption, processes
from lepton_jax.federation import certificates as authority
from lepton_jax.federation import tls
from lepton_jax.federation.health import HEARTBEAT

PROGRAM = "python -m lepton_jax.federated"
ADDRESS = "127.0.0.1:8471"
R = TypeVar("R")


@dataclass(frozen=True)
class Certificates:
    """An authority of one's own, and certificates of the coordinator and of the nodes. Where --out has an authority
    already, it signs for the new nodes. ca.key belongs on no node; a node needs ca.pem, NAME.pem and NAME.key."""

    out: Path
    """The directory to write to."""
    nodes: tuple[str, ...]
    """The nodes' names: the job's clients."""
    days: float = 30.0
    """Days for which the certificates hold."""


@dataclass(frozen=True)
class Serve:
    """The coordinator of an experiment's job. All other flags are the experiment's."""

    experiment: tyro.conf.Positional[str]
    """The module of the experiment, which has Config, PRESETS and job."""
    certificates: Path
    """Where ca.pem, coordinator.pem and coordinator.key are."""
    listen: str = ADDRESS
    """HOST:PORT to listen on, and on no other."""
    quorum: int | None = None
    """Clients without whom a round is none. Default: more than half of a round's."""
    deadline: float = 600.0
    """Seconds of a round, at the end of which it closes with those who have answered, or is held again."""
    gather: float = 60.0
    """Seconds that a round waits for clients that are away before it begins without them."""
    cohort: int | None = None
    """Clients of a round, sampled by the seed. Default: all that are here."""
    secure: bool = False
    """Sums in which the coordinator sees no single update. It takes more than half of a round's clients."""
    heartbeat: float = HEARTBEAT
    """Seconds between signs of life."""


@dataclass(frozen=True)
class Join:
    """A client of an experiment's job. All other flags are the experiment's, the same as the coordinator's."""

    experiment: tyro.conf.Positional[str]
    """The module of the experiment, which has Config, PRESETS and job."""
    certificates: Path
    """Where ca.pem, NAME.pem and NAME.key are."""
    name: str
    """This client's name, one of the job's, as in its certificate."""
    to: str = ADDRESS
    """HOST:PORT of the coordinator."""
    steps: int | None = None
    """Local steps that this machine can do in a round, at most. Default: all of them."""
    wait: float = 600.0
    """Seconds for which the coordinator may be away."""
    memory: Path | None = None
    """A directory for what this client keeps from round to round, so that killed and started again it goes on where it
    was. Default: the process alone."""


def certificates(arguments: list[str]) -> None:
    """Make certificates. Raises InputError."""
    asked, _ = parsed(Certificates, arguments, strict=True)
    for path in authority.create(asked.out, asked.nodes, asked.days):
        print(path)


def serve(arguments: list[str]) -> None:
    """Coordinate. Raises InputError."""
    asked, others = parsed(Serve, arguments)
    place = address("--listen", asked.listen)
    own = identified(asked.certificates, authority.COORDINATOR)
    job, config = composed(asked.experiment, others)
    from lepton_jax.federation import commands
    from lepton_jax.federation.terms import Terms

    clients = len(job.clients) if asked.cohort is None else asked.cohort
    quorum = clients // 2 + 1 if asked.quorum is None else asked.quorum
    terms = Terms(quorum, asked.deadline, asked.gather, asked.cohort, asked.secure, asked.heartbeat)
    commands.serve(job, config, terms, own, *place)


def join(arguments: list[str]) -> None:
    """Take part. Raises InputError."""
    asked, others = parsed(Join, arguments)
    place = address("--to", asked.to)
    own = identified(asked.certificates, asked.name)
    job, config = composed(asked.experiment, others)
    from lepton_jax.federation import commands

    commands.join(job, config, own, asked.name, *place, asked.steps, asked.wait, asked.memory)


COMMANDS: dict[str, Callable[[list[str]], None]] = {"certificates": certificates, "serve": serve, "join": join}


def parsed(request: type[R], arguments: list[str], strict: bool = False) -> tuple[R, list[str]]:
    """The request, and the arguments that it does not know. Raises InputError; with `strict`, for those too."""
    program = f"{PROGRAM} {request.__name__.lower()}"
    with cli.refusing(program):
        asked, others = tyro.cli(request, args=arguments, prog=program, return_unknown_args=True)
    if strict and others:
        raise errors.InputError(f"unknown argument {others[0]!r}", f"{program} --help lists every flag")
    return asked, [other for other in others if other != "--"]


def composed(experiment: str, flags: list[str]) -> tuple[Any, Any]:
    """(the experiment's job, its flags). Raises InputError."""
    module = cli.imported(experiment, ("Config", "PRESETS", "job"))
    config = cli.parse(module.Config, module.PRESETS, flags, f"{PROGRAM} {experiment}")
    config.check()
    print(f"starting   {experiment}, preset {config.preset}, seed {config.seed}", flush=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return module.job(config), config


def identified(directory: Path, name: str) -> tls.Identity:
    """A node's certificates, tried before an experiment is composed, which takes a while. Raises InputError."""
    own = tls.identity(directory, name)
    tls.context(own, server=name == authority.COORDINATOR)
    return own


def address(flag: str, text: str) -> tuple[str, int]:
    """HOST:PORT in its parts. Raises InputError."""
    host, port = processes.address(processes.Setting(flag, text)).rsplit(":", 1)
    return host.strip("[]"), int(port)


def main(arguments: list[str]) -> None:
    """Do what the first word names. Raises InputError."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    errors.named("command", arguments[0], COMMANDS)  # pyright: ignore[reportArgumentType]
    preemption.watch()
    COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    if code := cli.ended(lambda: cli.guarded(lambda: main(sys.argv[1:]))):
        cli.leave(code)
