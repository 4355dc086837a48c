"""Which weight gets how many bits, what rank or which ratio: sensitivities, and a knapsack over them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from lepton_jax import tree
from lepton_jax.compress import base
from lepton_jax.errors import InputError

CELLS = 2000  # into which a budget is divided; costs are rounded up, so a budget is kept


class Cost(NamedTuple):
    """What one choice for one weight costs. loss: the rise of the loss where only this weight is changed."""

    bytes: float
    milliseconds: float
    loss: float


Choices = Mapping[str, Mapping[str, Cost]]
"""{weight's name: {choice's name: its cost}}."""


def sensitivities(
    params: PyTree,
    options: Mapping[str, Callable[[str, Any], Any]],
    loss: Callable[[PyTree], float],
    pattern: str = base.WEIGHTS,
    milliseconds: Callable[[str, Any], float] = lambda name, leaf: 0.0,
) -> dict[str, dict[str, Cost]]:
    """The cost of every option for every weight that matches, one weight changed at a time.

    options: {name: (weight's name, array) -> leaf}, `lambda name, leaf: leaf` for as it is; None where an option does
    not suit a weight. loss: of parameters with that one leaf in place, over some data. milliseconds: of a leaf alone,
    where time matters. Raises InputError where the pattern matches nothing.
    """
    before = loss(params)
    found: dict[str, dict[str, Cost]] = {}
    for name in base.chosen(pattern, params):
        whole = base.at(params, name)
        made = {label: option(name, whole) for label, option in options.items()}
        found[name] = {
            label: Cost(tree.nbytes(leaf), milliseconds(name, leaf), loss(base.put(params, {name: leaf})) - before)
            for label, leaf in made.items()
            if leaf is not None
        }
    return found


def allocate(choices: Choices, nbytes: float = math.inf, milliseconds: float = math.inf) -> dict[str, str]:
    """The choice for each weight with the least sum of losses whose bytes and milliseconds stay within the budgets.

    Losses add up as if weights did not know of each other, which is what makes it a knapsack. Exact up to the
    division of budgets into CELLS: a solution is never over budget, and one within 1 part in CELLS per weight may be
    missed. With both budgets the cells are fewer. Raises InputError where not even the cheapest choices fit.
    """
    names, limits = list(choices), (nbytes, milliseconds)
    bound = [axis for axis, limit in enumerate(limits) if math.isfinite(limit)]
    cells = CELLS if len(bound) < 2 else 2 * math.isqrt(CELLS)
    _require_feasible(choices, limits)
    shape = tuple(cells + 1 if axis in bound else 1 for axis in range(2))
    best, chosen = np.zeros(shape), []
    for name in names:
        options = list(choices[name].values())
        tried = [_moved(best, _steps(cost, limits, cells)) + cost.loss for cost in options]
        chosen.append(np.argmin(tried, axis=0))
        best = np.min(tried, axis=0)
    place = tuple(length - 1 for length in shape)
    if not math.isfinite(best[place]):
        return _cheapest(choices, limits)  # rounding up left nothing else
    result: dict[str, str] = {}
    for name, which in zip(reversed(names), reversed(chosen), strict=True):
        label, cost = list(choices[name].items())[which[place]]
        result[name] = label
        place = tuple(p - s for p, s in zip(place, _steps(cost, limits, cells), strict=True))
    return {name: result[name] for name in names}


def _steps(cost: Cost, limits: Sequence[float], cells: int) -> tuple[int, ...]:
    """How many cells of each budget a choice takes."""
    return tuple(
        0 if math.isinf(limit) or spent == 0 else math.ceil(cells * spent / limit) if limit > 0 else cells + 1
        for spent, limit in zip(cost[:2], limits, strict=True)
    )


def _moved(best: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """The best losses where so many cells are spent in addition: infinite where they are not there."""
    moved = np.full(best.shape, np.inf)
    if all(step < length for step, length in zip(steps, best.shape, strict=True)):
        into = tuple(slice(step, None) for step in steps)
        out_of = tuple(slice(0, length - step) for step, length in zip(steps, best.shape, strict=True))
        moved[into] = best[out_of]
    return moved


def _require_feasible(choices: Choices, limits: Sequence[float]) -> None:
    for axis, (kind, limit) in enumerate(zip(("bytes", "milliseconds"), limits, strict=True)):
        least = sum(min(cost[axis] for cost in options.values()) for options in choices.values())
        if not least <= limit:
            problem = f"a budget of {limit:,.6g} {kind} is less than the {least:,.6g} of the cheapest choices"
            raise InputError(problem, "raise the budget, or offer cheaper choices")


def _cheapest(choices: Choices, limits: Sequence[float]) -> dict[str, str]:
    """The cheapest choices by what share of the budgets they take."""

    def share(cost: Cost) -> float:
        return max(spent / limit if limit else 0.0 for spent, limit in zip(cost[:2], limits, strict=True))

    found = {name: min(options, key=lambda label: share(options[label])) for name, options in choices.items()}
    for axis, limit in enumerate(limits):
        if sum(choices[name][label][axis] for name, label in found.items()) > limit:
            raise InputError(f"no choices found within both budgets, {limits}", "raise one of them")
    return found
