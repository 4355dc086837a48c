"""What the exit codes of a group of processes mean together, and what to do next. Pure functions."""

import itertools
import math
import re
import signal
from collections.abc import Sequence

from lepton_jax.errors import Exit

FINAL = (Exit.DONE, Exit.BAD_INPUT, Exit.BEYOND_REPAIR)  # never restarted
NAMES = {int(known): known.name for known in signal.Signals}
LONGEST_DELAY = 60.0  # seconds
WORDS = {
    Exit.DONE: "is done",
    Exit.BAD_INPUT: "refused its input",
    Exit.BEYOND_REPAIR: "found damage that it cannot repair",
    Exit.INTERNAL: "failed",
    Exit.PREEMPTED: "was asked to stop and has saved",
    Exit.STALLED: "does not move",
}


def verdict(left: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(process, code) that speaks for all; left: each process and its code, in the order in which they left.

    A code that forbids a restart counts wherever it appears. Otherwise the first that did not end well: what
    follows it is its echo.
    """
    for final in (Exit.BAD_INPUT, Exit.BEYOND_REPAIR):
        for process, code in left:
            if code == final:
                return process, code
    return next(((process, code) for process, code in left if code != Exit.DONE), (0, Exit.DONE))


def stopped(left: Sequence[tuple[int, int]], by: int, trained: bool) -> int:
    """The supervisor's own exit code after it was asked to stop by a signal and has passed it on.

    trained: whether there was anything to save; a process that the signal ends before its first step loses nothing.
    """
    _, code = verdict(left)
    if left and code in (*FINAL, Exit.PREEMPTED):
        return code
    if by == signal.SIGINT:
        return Exit.INTERRUPTED
    lossless = not trained and all(code in (Exit.DONE, Exit.PREEMPTED, -by) for _, code in left)
    return Exit.PREEMPTED if lossless else Exit.INTERNAL


def shell(code: int) -> int:
    """An exit code as a shell gives it: 128 and more for signals."""
    return 128 - code if code < 0 else code


def described(code: int) -> str:
    """An exit code in words, with which a sentence about a process goes on."""
    if code < 0:
        return f"was ended by {NAMES.get(-code, f'signal {-code}')}"
    return f"{WORDS[Exit(code)]} (code {code})" if code in WORDS else f"left with code {code}"


def delay(failures: int, first: float) -> float:
    """Seconds before a restart after `failures` in a row: doubling, and bounded."""
    return min(first * 2 ** max(0, failures - 1), LONGEST_DELAY)


def devices(command: Sequence[str]) -> int | None:
    """The devices of the mesh that a command names; None where it names none with numbers in it."""
    values = [word.split("=", 1)[1] for word in command if word.startswith("--mesh=")]
    values += [after for word, after in itertools.pairwise(command) if word == "--mesh"]
    sizes = re.findall(r"\d+", values[-1]) if values else []
    return math.prod(map(int, sizes)) if sizes else None


def counts(most: int, least: int, devices: int | None) -> list[int]:
    """The numbers of processes from most to least over which the devices can be split; `most` in any case."""
    return [n for n in range(most, least - 1, -1) if n == most or devices is None or devices % n == 0]
