"""One life of the group: watched from the start until all have left."""

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lepton_jax.errors import Exit
from lepton_jax.launch import verdict
from lepton_jax.launch.ledger import Events, Ledger
from lepton_jax.launch.worker import Worker

TICK = 0.1  # seconds between looks
SETTLE = 1.0  # seconds in which the others may say their own codes before a dead one's peers are killed
DUMP = 2.0  # seconds for the stacks to be written


class Ended(NamedTuple):
    """How a life ended."""

    left: tuple[tuple[int, int], ...]  # each process and its exit code, in order
    code: int  # that speaks for all
    process: int  # whose code it is
    why: str
    trained: bool  # whether any process came as far as a step


class Life:
    """A group of workers and what is seen of them."""

    def __init__(
        self,
        workers: Sequence[Worker],
        limits: Mapping[str, float],
        grace: float,
        asked: Callable[[], list[int]],
        ledger: Ledger,
        events: Events,
        log: Path,
    ):
        self._workers, self._limits, self._grace, self._asked = workers, limits, grace, asked
        self._ledger, self._events, self._log = ledger, events, log
        self._left: list[tuple[int, int]] = []
        self._deadline: float | None = None  # by when those that are left have to be gone
        self._passed_on = 0
        self._killed = False
        self.committed = -1

    def watch(self) -> Ended:
        """Until nobody is left: pass signals on, kill the peers of the dead, and whoever does not move."""
        before = time.monotonic()
        try:
            while here := self._staying():
                time.sleep(TICK)
                now = time.monotonic()
                self._look(here, now - before)
                before = now
                self._pass_on_signals(here, now)
                if self._deadline is None:
                    stuck = [worker for worker in here if worker.idle() > self._limits[worker.phase]]
                    if stuck:
                        return self._stalled(here, stuck[0])
                elif now > self._deadline and not self._killed:
                    self._end(here)
        finally:
            for worker in self._workers:
                worker.kill()
        process, code = verdict.verdict(self._left)
        return self._ended(code, process, f"process {process} {verdict.described(code)}")

    def _ended(self, code: int, process: int, why: str) -> Ended:
        return Ended(tuple(self._left), code, process, why, any(worker.step is not None for worker in self._workers))

    def _staying(self) -> list[Worker]:
        gone = {process for process, _ in self._left}
        here = [worker for worker in self._workers if worker.number not in gone]
        for worker in here:
            if (code := worker.left()) is not None:
                worker.look()
                self._left.append((worker.number, code))
                self._events.write("exit", process=worker.number, code=code, phase=worker.phase, step=worker.step)
                # where one has ended well the others may take their time, to write and to save
                well = code == Exit.DONE or any(code == Exit.PREEMPTED for _, code in self._left)
                by = time.monotonic() + (self._grace if well else SETTLE)
                self._deadline = min(self._deadline or by, by)
        gone = {process for process, _ in self._left}
        self._note_commits()
        return [worker for worker in here if worker.number not in gone]

    def _look(self, here: Sequence[Worker], seconds: float) -> None:
        for worker in here:
            worker.look()
        self._ledger.spend(self._workers[0].phase, seconds)
        self._note_commits()

    def _note_commits(self) -> None:
        newest = max((worker.committed for worker in self._workers if worker.committed is not None), default=-1)
        if newest > self.committed:
            self.committed = newest
            self._ledger.keep()
            self._events.write("commit", step=newest, ledger=self._ledger.seconds())

    def _pass_on_signals(self, here: Sequence[Worker], now: float) -> None:
        for signum in self._asked()[self._passed_on :]:
            self._passed_on += 1
            self._events.write("signal", signal=signal.Signals(signum).name)
            if self._passed_on > 1 and signum == signal.SIGINT:
                self._deadline = now  # Ctrl-C a second time: at once
                return
            for worker in here:
                worker.send(signum)
            self._deadline = self._deadline or now + self._grace

    def _end(self, here: Sequence[Worker]) -> None:
        self._killed = True
        self._events.write("kill", processes=[worker.number for worker in here])
        for worker in here:
            worker.kill()

    def _stalled(self, here: Sequence[Worker], stuck: Worker) -> Ended:
        """Where is everyone? Then end them all."""
        seconds = stuck.idle()
        for worker in here:
            worker.send(signal.SIGUSR1)
        kept = self._stacks(here)
        self._events.write(
            "stall", process=stuck.number, phase=stuck.phase, step=stuck.step, idle=round(seconds, 1), stacks=kept
        )
        self._end(here)
        while here := self._staying():
            time.sleep(TICK)
        why = f"process {stuck.number} has not moved for {seconds:.0f} s ({stuck.phase})"
        return self._ended(Exit.STALLED, stuck.number, why)

    def _stacks(self, here: Sequence[Worker]) -> list[str]:
        """Wait for the stacks, and keep them: the files' names in the supervision directory."""
        deadline = time.monotonic() + DUMP
        while time.monotonic() < deadline and not all(map(_written, here)):
            time.sleep(TICK)
        time.sleep(2 * TICK)  # a dump is many writes
        kept = []
        for worker in filter(_written, here):
            name = f"stacks-{time.strftime('%Y%m%d-%H%M%S')}-{worker.number}.txt"
            with contextlib.suppress(OSError):
                shutil.copyfile(worker.stacks, self._log / name)
                kept.append(name)
        return kept


def _written(worker: Worker) -> bool:
    worker.look()  # from another machine they come by the same way as its progress
    return worker.stacks.exists() and worker.stacks.stat().st_size > 0
