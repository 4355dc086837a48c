"""Which machines are used: measured before a launch, and the sick left out.

Under SPMD every process does the same work and waits for the slowest, so there are no shares to give by load. What
can be decided is who takes part.
"""

import contextlib
import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from lepton_jax.launch.remote import there

SICK = 3.0  # times slower than the machine in the middle
PATIENCE = 60.0  # seconds for a machine to answer
LEAST_FREE = 1e8  # bytes of the run directory's disk
RATES = ("matmul", "memory", "disk", "reduce")
HERE = "this machine"

Rates = Mapping[str, float]


def chosen(measured: Mapping[str, Rates | None], count: int) -> tuple[list[str], dict[str, str]]:
    """(up to `count` machines, the fastest first; why each other sick one is left out).

    measured: rates by machine, None for one that did not answer. A machine is as fast as its slowest part, compared
    with the machine in the middle; of two in the middle, the faster.
    """
    sick = {name: "did not answer" for name, rates in measured.items() if rates is None}
    well = {name: rates for name, rates in measured.items() if rates is not None}
    scores = {}
    for name, rates in well.items():
        shares = {rate: rates.get(rate, 0.0) / _middle(well, rate) for rate in RATES if _middle(well, rate)}
        slowest = min(shares, key=lambda rate: shares[rate], default=None)
        scores[name] = 1.0 if slowest is None else shares[slowest]
        if rates.get("free", LEAST_FREE) < LEAST_FREE:
            sick[name] = f"has {rates['free'] / 1e6:.0f} MB free on the disk"
        elif slowest is not None and scores[name] < 1 / SICK:
            slower = f"is {1 / scores[name]:.1f} times slower than in the middle" if scores[name] else "did not work"
            sick[name] = f"{slowest} {slower}"
    fit = sorted((name for name in scores if name not in sick), key=lambda name: -scores[name])
    return fit[:count], sick


def _middle(measured: Mapping[str, Rates], rate: str) -> float:
    return statistics.median_high(rates.get(rate, 0.0) for rates in measured.values())


def measure(hosts: Sequence[str], ssh: str, directory: str, port: Callable[[], int]) -> dict[str, Rates | None]:
    """The rates of each machine. Where one is slow all are measured once more: a busy moment is no sickness."""
    first = measured_once(hosts, ssh, directory, port)
    _, sick = chosen(first, len(hosts))
    if not any(first[host] for host in sick):
        return first
    return better(first, measured_once(hosts, ssh, directory, port))


def better(one: Mapping[str, Rates | None], other: Mapping[str, Rates | None]) -> dict[str, Rates | None]:
    """The better of two measurements, rate by rate; the answer where there is only one."""
    found: dict[str, Rates | None] = {}
    for host in one:
        a, b = one[host] or {}, other[host] or {}
        found[host] = {rate: max(a.get(rate, 0.0), b.get(rate, 0.0)) for rate in {**a, **b}} or None
    return found


def measured_once(hosts: Sequence[str], ssh: str, directory: str, port: Callable[[], int]) -> dict[str, Rates | None]:
    """The rates of each machine, all at once: each by itself first, then adding up together those that answered."""
    measured: dict[str, Rates | None] = dict(answers({host: _rates(ssh, host, directory) for host in hosts}))
    present = [host for host in hosts if measured[host] is not None]
    if len(present) > 1:
        address, token = f"{_address(present[0])}:{port()}", secrets.token_hex(16)
        commands = {
            host: _command(ssh, host, "reduce", address, str(rank), str(len(present)))
            for rank, host in enumerate(present)
        }
        for host, answer in answers(commands, token).items():
            measured[host] = {**(measured[host] or {}), **(answer or {})}
    return measured


def here(count: int, directory: str, port: Callable[[], int]) -> dict[str, Rates | None]:
    """The rates of this machine, and of as many processes as there will be adding up over loopback."""
    alone = answers({HERE: _rates("", "", directory)})[HERE]
    if count > 1 and alone is not None:
        address, token = f"127.0.0.1:{port()}", secrets.token_hex(16)
        commands = {str(n): _command("", "", "reduce", address, str(n), str(count)) for n in range(count)}
        first = answers(commands, token)["0"] or {}
        return {HERE: {**alone, **first}}
    return {HERE: alone}


def _rates(ssh: str, host: str, directory: str) -> list[str]:
    return _command(ssh, host, "rates", directory)


def _command(ssh: str, host: str, *arguments: str) -> list[str]:
    module = "lepton_jax.launch.probe"
    return there(ssh, host, module, *arguments) if host else [sys.executable, "-m", module, *arguments]


def _address(host: str) -> str:
    return host.rsplit("@", 1)[-1]


def answers(commands: Mapping[str, Sequence[str]], line: str = "") -> dict[str, Rates | None]:
    """What each command prints as JSON, all run at once and given the line; None for one that fails or is late."""
    pipe = subprocess.PIPE
    running = {
        name: subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        for name, command in commands.items()
    }
    for process in running.values():
        assert process.stdin
        with contextlib.suppress(OSError):  # gone already: it has no answer
            process.stdin.write(line + "\n")
            process.stdin.flush()
    deadline = time.monotonic() + PATIENCE
    return {name: _answer(process, deadline) for name, process in running.items()}


def _answer(process: subprocess.Popen[str], deadline: float) -> Rates | None:
    try:
        out, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        found = json.loads(out.splitlines()[-1]) if process.returncode == 0 else None
        return found if isinstance(found, dict) else None
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    finally:
        process.kill()
        process.wait()
