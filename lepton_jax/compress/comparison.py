"""What a compression has won and what it costs: bytes, multiplications, milliseconds and scores, side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lepton_jax import timing
from lepton_jax.compress import evaluation, file, leaves
from lepton_jax.errors import InputError
from lepton_jax.types import Model, Variables

MORE = 10  # times the rounds, for small batches: they are short, and vary more
BUDGETS = ("size", "macs", "speed", "points")


class Subject(NamedTuple):
    """A model as it would be shipped. model: runs on `variables`, whose params may hold packed leaves."""

    name: str
    model: Model
    variables: Variables


def audit(
    before: Subject,
    after: Subject,
    inputs: Any,
    score: Callable[[Model, Variables], float],
    macs: Callable[[Model, Variables, Any], int],
    batches: Sequence[int] = (1, 128),
    rounds: int = 20,
) -> dict[str, Any]:
    """Both models measured, as a record for JSON.

    inputs: examples for timing, at least max(batches) of them. score: accuracy in [0, 1] of a model. macs: its
    multiplications for one example. "size", "macs" and "speed" are ratios, larger is better; "points" is the loss of
    score in hundredths. Times are in milliseconds, medians of `rounds` of calls in turn, up to 10 times as many for
    smaller batches; quartiles of their ratio stand beside it.
    "layers" is the speed of the layers that are factored now, by themselves, where there are any.
    """
    subjects = {"before": before, "after": after}
    sizes = {which: len(file.encoded(one.variables, {})) for which, one in subjects.items()}
    counts = {which: macs(one.model, one.variables, inputs[:1]) for which, one in subjects.items()}
    scores = {which: score(one.model, one.variables) for which, one in subjects.items()}
    often = {n: rounds * min(MORE, max(batches) // n) for n in batches}
    times = {str(n): _timed(subjects, inputs[:n], often[n]) for n in batches}
    record: dict[str, Any] = {
        which: {
            "name": one.name,
            "bytes": sizes[which],
            "macs": counts[which],
            "accuracy": scores[which],
            "milliseconds": {n: float(np.median(seconds[which])) * 1e3 for n, seconds in times.items()},
        }
        for which, one in subjects.items()
    }
    ratios = {n: seconds["before"] / seconds["after"] for n, seconds in times.items()}
    record["size"] = sizes["before"] / sizes["after"]
    record["macs"] = counts["before"] / counts["after"]
    record["speed"] = {n: float(np.median(ratio)) for n, ratio in ratios.items()}
    record["quartiles"] = {n: [float(q) for q in np.quantile(ratio, (0.25, 0.75))] for n, ratio in ratios.items()}
    record["layers"] = {str(n): ratio for n in batches if (ratio := _layers(before, after, inputs[:n], often[n]))}
    record["points"] = 100 * (scores["before"] - scores["after"])
    return record


def _timed(subjects: Mapping[str, Subject], inputs: Any, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call in turn, {which: [rounds]}."""

    def call(one: Subject) -> Callable[[], Any]:
        variables, given = _alone((one.variables, inputs))
        forward = jax.jit(lambda variables, inputs: one.model.apply(variables, inputs, False, None)[0])
        return lambda: jax.block_until_ready(forward(variables, given))

    return timing.interleaved({which: call(one) for which, one in subjects.items()}, rounds)


def _layers(before: Subject, after: Subject, inputs: Any, rounds: int) -> float | None:
    """How many times faster the factored layers are than they were, each on the inputs that it had; None for none."""
    params = after.variables["params"]
    factored = {name: leaf for name, leaf in evaluation.named_leaves(params) if isinstance(leaf, leaves.Factored)}
    calls: dict[str, list[Callable[[], Any]]] = {"before": [], "after": []}

    def observed(site: evaluation.Site, given: Any, weight: Any) -> Any:
        if site.name in factored:
            product = jax.jit(partial(evaluation.multiplied, site))
            for which, leaf in (("before", weight), ("after", factored[site.name])):
                calls[which].append(partial(product, *_alone((given, leaf))))
        return evaluation.multiplied(site, given, weight)

    if not factored:
        return None
    evaluation.applied(before.model, observed).apply(before.variables, inputs, False, None)
    both = {which: lambda which=which: [jax.block_until_ready(call()) for call in calls[which]] for which in calls}
    seconds = timing.interleaved(both, rounds)
    return float(np.median(seconds["before"] / seconds["after"]))


def _alone(values: Any) -> Any:
    """On one device: what lies whole on several would be computed on each of them."""
    return jax.device_put(jax.device_get(values), jax.devices()[0])


def require(record: Mapping[str, Any], budget: Mapping[str, float]) -> None:
    """Raise InputError where an audit breaks a budget.

    budget: the least "size", "macs" and "speed" (at every batch size), and the most "points" that may be lost.
    """
    for name, limit in budget.items():
        if name not in BUDGETS:
            raise InputError(f"there is no budget {name!r}", f"choose among {', '.join(BUDGETS)}")
        found = min(record["speed"].values()) if name == "speed" else record[name]
        if math.isnan(found) or (found > limit if name == "points" else found < limit):
            word = "more" if name == "points" else "less"
            problem = f"the audit breaks the budget: {name} is {found:.4g}, {word} than {limit:.4g}"
            raise InputError(problem, "compress otherwise, train longer, or state another budget")


def table(record: Mapping[str, Any]) -> str:
    """An audit as lines for people."""
    head = ["", record["before"]["name"], record["after"]["name"], "ratio"]
    rows = [head]
    for key, label in (("bytes", "bytes in the file"), ("macs", "multiplications")):
        ratio = record["size" if key == "bytes" else "macs"]
        rows.append([label, *(f"{record[which][key]:,}" for which in ("before", "after")), f"{ratio:.2f}x"])
    for n, ratio in record["speed"].items():
        times = [f"{record[which]['milliseconds'][n]:.3g}" for which in ("before", "after")]
        low, high = record["quartiles"][n]
        rows.append([f"ms, batch {n}", *times, f"{ratio:.2f}x ({low:.2f}-{high:.2f})"])
    rows += [[f"the factored layers, batch {n}", "", "", f"{ratio:.2f}x"] for n, ratio in record["layers"].items()]
    scores = [f"{record[which]['accuracy']:.4f}" for which in ("before", "after")]
    rows.append(["accuracy", *scores, f"{0.0 - record['points']:+.2f} points"])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
