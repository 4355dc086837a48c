"""The one error that people are meant to meet: the value and the rule on one line, the way out on the next.

And how a process says by its exit code what has become of it.
"""

import difflib
import enum
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class Exit(enum.IntEnum):
    """Exit codes of a run, and of the supervisor of runs. After a signal the code is the system's own."""

    DONE = 0
    BAD_INPUT = 2  # input or configuration that cannot be used: the same command would fail again
    BEYOND_REPAIR = 65  # data or a checkpoint is damaged, and nothing good is left to go on from: likewise
    INTERNAL = 70  # an error of our own or of the machine: worth another try
    PREEMPTED = 75  # asked to stop, and saved: the same command goes on
    STALLED = 124  # alive and not moving
    INTERRUPTED = 130  # Ctrl-C


class InputError(ValueError):
    """Input that cannot be used. `problem` names the value and the rule; `remedy` says what to do instead.

    The command line prints the two lines on standard error and exits with `code`; in a notebook it is a ValueError.
    """

    code = Exit.BAD_INPUT

    def __init__(self, problem: str, remedy: str):
        problem, remedy = (" ".join(text.splitlines()) for text in (problem, remedy))
        super().__init__(f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy


class DamagedError(InputError):
    """Data or a checkpoint beyond repair: no retry can help."""

    code = Exit.BEYOND_REPAIR


class PreemptedError(Exception):
    """The run was asked to stop and has saved; its text says where, on one line. The same command goes on."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in `known`, with the nearest one that is."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    choices = ", ".join(names)
    remedy = f"did you mean {nearest[0]!r}? known: {choices}" if nearest else f"choose one of: {choices}"
    return InputError(f"unknown {kind} {name!r}", remedy)


def named(kind: str, given: str | T, known: Mapping[str, T]) -> T:
    """What `given` stands for: an entry of `known` by name, or itself. Raises InputError for an unknown name."""
    if not isinstance(given, str):
        return given
    if given not in known:
        raise unknown(kind, given, known)
    return known[given]
