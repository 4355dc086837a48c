"""What happened, line by line, and where the time went: events.jsonl."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

KINDS = ("productive", "compile", "save", "restore", "evaluation", "start", "lost")
REDONE = ("productive", "save", "evaluation")  # what a failure loses, back to the last checkpoint


class Ledger:
    """Seconds by kind.

    Time counts as what process 0 was doing. What no checkpoint holds is on trial: kept at the next checkpoint or a
    good end, lost at a failure. Starting, compiling and restoring are costs of their own, lost or not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._begun = clock, clock()
        self._kept: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._trial: dict[str, float] = dict.fromkeys(KINDS, 0.0)

    def spend(self, phase: str, seconds: float) -> None:
        """Time in a phase, one of `progress.PHASES`."""
        self._trial["productive" if phase == "step" else phase] += seconds

    def settle(self, kind: str) -> None:
        """What has passed and was not counted is of this kind: nothing ran, or nobody looked."""
        self._kept[kind] += max(0.0, self._clock() - self._begun - sum(self._kept.values()) - sum(self._trial.values()))

    def keep(self) -> None:
        """A checkpoint holds what was done, or it ended well."""
        for kind in KINDS:
            self._kept[kind] += self._trial[kind]
            self._trial[kind] = 0.0

    def lose(self) -> None:
        """What no checkpoint holds has to be done again."""
        for kind in REDONE:
            self._kept["lost"] += self._trial[kind]
            self._trial[kind] = 0.0
        self.keep()

    def seconds(self) -> dict[str, float]:
        """All time so far, by kind."""
        return {kind: round(self._kept[kind] + self._trial[kind], 3) for kind in KINDS}


class Events:
    """events.jsonl: {"time", "event", ...} a line, flushed at once. A disk that is full is no reason to stop."""

    def __init__(self, path: pathlib.Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """One event; time in seconds since 1970."""
        with contextlib.suppress(OSError):
            self._file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """The end of the supervision."""
        with contextlib.suppress(OSError):
            self._file.close()


def told(seconds: Mapping[str, float]) -> str:
    """The ledger on a line: `productive 81 %  compile 9 %  lost 10 %  of 61 s`."""
    total = sum(seconds.values())
    shares = [f"{kind} {value / total:.0%}" for kind, value in seconds.items() if total and value / total >= 0.005]
    return "  ".join([*shares, f"of {total:.0f} s"])
