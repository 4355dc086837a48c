"""Which evaluation was the best, and when to stop for want of a better one: functions of a run's rows alone.

Nothing of this is state of a process, so a run that is killed and resumed, on whatever mesh, decides alike.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

FALLING = ("loss",)  # metrics of which less is better


class Best(NamedTuple):
    """The first of the best evaluations: its step, its epoch, and the value of the metric."""

    step: int
    epoch: float
    value: float


def score(metrics: Mapping[str, Any], name: str) -> float:
    """A metric so turned that more is better; -inf where it is absent or NaN."""
    value = metrics.get(name)
    if value is None or math.isnan(value):
        return -math.inf
    return -value if name.split("/")[-1] in FALLING else value


def evaluations(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The rows that hold the metric, NaN or not, in order: a run's evaluations."""
    return [row for row in rows if name in row]


def best(rows: Sequence[Mapping[str, Any]], name: str) -> Best | None:
    """The best of a run's rows by a metric such as "validation/accuracy"; None where there is none.

    rows: as in metrics.jsonl.
    """
    scored = [row for row in rows if score(row, name) > -math.inf]
    if not scored:
        return None
    row = max(scored, key=lambda row: score(row, name))  # the first of equals
    return Best(row["step"], row["epoch"], row[name])


@functools.cache
def exact(epochs: float) -> Fraction:
    """What a person means by a decimal number: 0.1 is a tenth."""
    return Fraction(epochs).limit_denominator(10**6)


def stalled(rows: Sequence[Mapping[str, Any]], name: str, patience: float, every: float) -> bool:
    """Whether the evaluations since the best one, `every` epochs apart, span `patience` epochs or more.

    Early stopping (Prechelt 1998, https://doi.org/10.1007/3-540-49430-8_3).
    """
    found, judged = best(rows, name), evaluations(rows, name)
    since = len(judged) if found is None else sum(row["step"] > found.step for row in judged)
    return since > 0 and since * exact(every) >= exact(patience)
