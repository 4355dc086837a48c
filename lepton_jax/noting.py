"""What a step does for privacy, read off its trace, however deep in it: what is clipped, and what is released.

So a plan can be compared with the step itself, and not with what somebody says about it.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

_NOTES: ContextVar[list[Any] | None] = ContextVar("what a traced step does for privacy", default=None)


class Bound(NamedTuple):
    """That one of what is summed, an example or a client, adds at most this norm."""

    norm: float


def note(fact: Any) -> None:
    """Say that the step which is being traced does this."""
    notes = _NOTES.get()
    if notes is not None:
        notes.append(fact)


@contextlib.contextmanager
def noted() -> Iterator[list[Any]]:
    """All that is noted inside."""
    notes: list[Any] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
