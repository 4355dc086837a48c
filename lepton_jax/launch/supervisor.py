"""The supervisor: lives of the group, one after the other, until it is done or cannot be helped."""

import contextlib
import math
import os
import pathlib
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from lepton_jax.errors import Exit, InputError
from lepton_jax.launch import ledger as ledgers
from lepton_jax.launch import placement, verdict
from lepton_jax.launch.life import TICK, Ended, Life
from lepton_jax.launch.remote import Remote, there
from lepton_jax.launch.settings import Settings
from lepton_jax.launch.worker import Local, Worker
from lepton_jax.processes import BIND, VARIABLES

TAIL = 15  # lines of a failed worker's log that are shown


def supervise(settings: Settings) -> int:
    """Run the command to its end through failures: the exit code. Raises InputError where nothing can be written."""
    made = _made(settings.log)
    with listening() as asked, tempfile.TemporaryDirectory(prefix="lepton-") as scratch:
        events = ledgers.Events(settings.log / "events.jsonl")
        with contextlib.closing(events):
            supervision = Supervision(settings, pathlib.Path(scratch), asked, events)
            code = supervision.run()
    if code == Exit.BAD_INPUT and not supervision.trained:
        _undo(settings.log, made)  # bad input leaves nothing behind
    return code


class Supervision:
    """A group of processes through all of its lives."""

    def __init__(self, settings: Settings, scratch: pathlib.Path, asked: list[int], events: ledgers.Events):
        self._settings, self._scratch, self._asked, self._events = settings, scratch, asked, events
        self._ledger = ledgers.Ledger()
        self._committed, self._failures, self._lives = -1, 0, 0
        self.trained = False
        mesh, accelerators = verdict.devices(settings.command) or 0, len(settings.devices)
        self._counts = verdict.counts(settings.processes, settings.min_processes, math.gcd(mesh, accelerators) or None)
        self._hosts: list[str] = []

    def run(self) -> int:
        """Live after life: the exit code."""
        count = self._counts[0]
        if self._settings.probe and not self._settings.hosts:
            self._place(placement.here(count, str(self._settings.log), free_port), 1)
        while True:
            ended = self._live(count)
            if self._asked:
                return self._end(verdict.stopped(ended.left, self._asked[0], ended.trained), ended.why)
            if self._settings.member:
                return self._end(verdict.shell(ended.code), ended.why)
            if ended.code in verdict.FINAL:
                return self._end(ended.code, ended.why)
            if ended.code != Exit.PREEMPTED and self._failures > self._settings.restarts:
                code = Exit.STALLED if ended.code == Exit.STALLED else Exit.INTERNAL
                return self._end(code, f"{ended.why}; {self._settings.restarts} restart(s) brought no new checkpoint")
            count = self._next(count, ended)
            if not self._pause(ended, count):
                return self._end(verdict.stopped((), self._asked[0], False), "asked to stop")

    def _live(self, count: int) -> Ended:
        """One life of so many processes, or of fewer where fewer machines are well."""
        settings = self._settings
        if settings.hosts and not (count := self._choose(count)):
            self._failures += 1
            return Ended((), Exit.INTERNAL, 0, f"fewer than {settings.min_processes} machine(s) are well", False)
        self._ledger.settle("start")
        if self._asked:
            return Ended((), Exit.PREEMPTED, 0, "asked to stop", False)
        try:
            workers = self._started(count)
        except OSError as error:
            self._failures += 1
            why = f"{error.filename or settings.command[0]} could not be started: {error.strerror}"
            return Ended((), Exit.INTERNAL, 0, why, False)
        life = Life(
            workers, settings.limits, settings.grace, lambda: self._asked, self._ledger, self._events, settings.log
        )
        ended = life.watch()
        self.trained |= ended.trained
        self._judge(ended, life.committed)
        return ended

    def _choose(self, count: int) -> int:
        """Choose machines anew before every life: as many processes as there are machines that are well; 0 for none."""
        settings, hosts = self._settings, self._settings.hosts
        if settings.probe:
            measured = placement.measure(hosts, settings.ssh, str(settings.log), remote_port)
            self._hosts = self._place(measured, count)
        else:
            self._hosts = list(hosts[:count])
        return next((n for n in self._counts if n <= min(count, len(self._hosts))), 0)

    def _place(self, measured: Mapping[str, placement.Rates | None], count: int) -> list[str]:
        hosts, sick = placement.chosen(measured, count)
        self._events.write("probe", measured=measured, chosen=hosts, sick=sick)
        for host, why in sick.items():
            self._say("sick", f"{host}: {why}")
        return hosts

    def _started(self, count: int) -> list[Worker]:
        hosts = self._hosts[:count]
        address = f"{hosts[0].rsplit('@', 1)[-1]}:{remote_port()}" if hosts else f"127.0.0.1:{free_port()}"
        self._lives += 1
        on = f" on {', '.join(hosts)}" if hosts else ""
        self._say("launch", f"{count} process(es){on}, life {self._lives}, log {self._settings.log}")
        self._events.write("launch", life=self._lives, processes=count, coordinator=address, hosts=hosts)
        workers: list[Worker] = []
        try:
            for number in range(count):
                workers.append(self._worker(number, count, address))
        except OSError:
            for worker in workers:
                worker.kill()
            while any(worker.left() is None for worker in workers):
                time.sleep(TICK)
            raise
        return workers

    def _judge(self, ended: Ended, committed: int) -> None:
        """Count the failures since the last new checkpoint, and the time that is lost with them."""
        if committed > self._committed:
            self._committed, self._failures = committed, 0
        if ended.code in (Exit.DONE, Exit.PREEMPTED):
            self._ledger.keep()
        else:
            self._failures += 1
            self._ledger.lose()
        self._ledger.settle("lost")

    def _next(self, count: int, ended: Ended) -> int:
        """As many as wanted; fewer, where so many did not come as far as a step."""
        if ended.trained or ended.code == Exit.PREEMPTED:
            return self._counts[0]
        return next((fewer for fewer in self._counts if fewer < count), count)

    def _pause(self, ended: Ended, count: int) -> bool:
        """Wait before the next life; False where the supervisor is asked to stop meanwhile."""
        seconds = verdict.delay(self._failures, self._settings.backoff)
        said = f"{ended.why}; again in {seconds:g} s"
        if ended.code != Exit.PREEMPTED:
            said += f", restart {self._failures} of {self._settings.restarts} without a new checkpoint"
        self._say("restart", said)
        self._show(ended)
        self._events.write("restart", reason=ended.why, delay=seconds, failures=self._failures, processes=count)
        before = time.monotonic()
        while time.monotonic() - before < seconds and not self._asked:
            time.sleep(TICK)
        self._ledger.settle("lost")
        return not self._asked

    def _end(self, code: int, why: str) -> int:
        seconds = self._ledger.seconds()
        self._events.write("end", code=code, reason=why, lives=self._lives, ledger=seconds)
        self._say("ended", f"{why}; exit code {int(code)}")
        self._say("time", ledgers.told(seconds))
        return int(code)

    def _worker(self, number: int, count: int, address: str) -> Worker:
        settings = self._settings
        if settings.member:
            return Local(number, settings.command, os.environ, None, self._scratch)
        here = {name: value for name, value in os.environ.items() if name != BIND}
        own = dict(zip(VARIABLES.values(), (address, str(number), str(count)), strict=True))
        if devices := settings.devices:
            each = len(devices) // count
            own["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number * each : (number + 1) * each])
        if not self._hosts:
            # NCCL, too, listens on loopback unless told otherwise
            own = {"NCCL_SOCKET_IFNAME": "lo", **here, **own}
        with contextlib.ExitStack() as stack:
            log = self._log(number)
            output = None if log is None else stack.enter_context(log.open("ab"))
            if not self._hosts:
                return Local(number, settings.command, own, output, self._scratch)
            agent = there(settings.ssh, self._hosts[number], "lepton_jax.launch.agent")
            return Remote(number, settings.command, {**here, **own}, output, self._scratch, agent)

    def _log(self, number: int) -> pathlib.Path | None:
        """Process 0 speaks on the terminal, the others into files."""
        return self._settings.log / f"worker-{number}.log" if number else None

    def _show(self, ended: Ended) -> None:
        log = self._log(ended.process)
        if log is not None and log.exists():
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]:
                print(f"           | {line}", flush=True)

    def _say(self, what: str, text: str) -> None:
        print(f"{what:<10} {text}", flush=True)


def free_port() -> int:
    """A port of the loopback interface that nobody uses at this moment; a new one for every life."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def remote_port() -> int:
    """A port to try on another machine, below those that systems give out by themselves; a new one for every life."""
    return random.randrange(20000, 30000)


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """While it lasts, signals that ask to stop are gathered in the list, and nothing else happens."""
    asked: list[int] = []

    def hear(signum: int, frame: FrameType | None) -> None:
        asked.append(signal.SIGTERM if signum == signal.SIGHUP else signum)

    before: dict[int, Callable[..., object] | int | None] = {
        signum: signal.signal(signum, hear) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _made(log: pathlib.Path) -> list[pathlib.Path]:
    """Make the supervision directory: those directories that were not there before, the innermost first."""
    made = [path for path in (log, *log.parents) if not path.exists()]
    try:
        log.mkdir(parents=True, exist_ok=True)
        (log / "events.jsonl").open("a").close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--log {log} cannot be written: {reason}", "name another directory with --log") from error
    return made


def _undo(log: pathlib.Path, made: list[pathlib.Path]) -> None:
    if log in made:
        shutil.rmtree(log, ignore_errors=True)
        for path in made[1:]:
            with contextlib.suppress(OSError):
                path.rmdir()  # unless something else is there by now
