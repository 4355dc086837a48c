"""The one error that people are meant to meet: the value and the rule on one line, the way out on the next."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Input that cannot be used. `problem` names the value and the rule; `remedy` says what to do instead.

    The command line prints the two lines on standard error and exits with 2; in a notebook it is a ValueError.
    """

    def __init__(self, problem: str, remedy: str):
        problem, remedy = (" ".join(text.splitlines()) for text in (problem, remedy))
        super().__init__(f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy


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
