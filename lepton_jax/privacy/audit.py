"""What can be seen of its examples in a trained model: a lower bound of epsilon, from one run.

Canaries are examples that each went into the training or not by the toss of a fair coin. An auditor scores each,
guesses "in" for the highest scores and "out" for the lowest, and leaves the rest. Under (epsilon, 0) each guess is
right with the probability e^epsilon / (1 + e^epsilon) at most, so many right guesses refute a small epsilon (Steinke,
Nasr and Jagielski 2023, https://arxiv.org/abs/2305.08846).
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from lepton_jax import keys
from lepton_jax.data import Arrays, Source, gather
from lepton_jax.errors import InputError
from lepton_jax.types import Loss, Params


class Audit(NamedTuple):
    """epsilon is at least this, at `confidence`; the guesses that say so, and how many of them were right."""

    epsilon: float
    confidence: float
    guesses: int
    right: int
    canaries: int


class Planted(NamedTuple):
    """train: the data with the canaries that are in. canaries: all of them. inside: which of them are in."""

    train: Arrays
    canaries: Arrays
    inside: Bool[np.ndarray, " canaries"]


def planted(source: Source, canaries: int, classes: int, seed: int) -> Planted:
    """The data without so many of its examples, which become canaries: with a wrong label, and in by a fair coin.

    So the number of training examples is random; plan with `len(planted.train)`. Raises InputError for fewer canaries
    than one or more than half of the examples.
    """
    if not 1 <= canaries <= len(source) // 2:
        problem = f"{canaries} canaries are not between 1 and half of the {len(source)} examples"
        raise InputError(problem, "give a hundred or more, and enough data")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 1], np.uint64)))
    chosen = random.permutation(len(source))[:canaries]
    columns = gather(source, np.arange(len(source)))
    own = {name: column[chosen] for name, column in columns.items()}
    own["label"] = (own["label"] + random.integers(1, classes, canaries)) % classes
    inside = random.random(canaries) < 0.5
    rest = np.setdiff1d(np.arange(len(source)), chosen)
    train = {name: np.concatenate([column[rest], own[name][inside]]) for name, column in columns.items()}
    return Planted(Arrays(train), Arrays(own), inside)


def scores(loss: Loss, begun: Params, ended: Params, canaries: Source) -> Float[np.ndarray, " canaries"]:
    """How much each canary's loss has fallen from the parameters at the beginning to those at the end."""

    @jax.jit
    def losses(params: Any, rows: Any) -> Any:
        def one(row: Any) -> Any:
            return loss(params, {}, row, keys.seeded(0))[0].total

        return jax.lax.map(one, jax.tree.map(lambda x: x[:, None], rows), batch_size=64)

    rows = gather(canaries, np.arange(len(canaries)))
    return np.asarray(losses(begun, rows), np.float64) - np.asarray(losses(ended, rows), np.float64)


def audited(
    scores: Float[np.ndarray, " canaries"],
    inside: Bool[np.ndarray, " canaries"],
    delta: float,
    confidence: float = 0.95,
    guesses: int | None = None,
) -> Audit:
    """The greatest epsilon that so many right guesses refute at `delta`, with this confidence.

    scores: higher where a canary looks more like one that was in. guesses: for how many canaries, half of them as in;
    by default a third. It has to be chosen without a look at who was in: taking the best of several is not a bound.
    Raises InputError for guesses that are not between 2 and the canaries.
    """
    count = len(scores)
    guesses = 2 * max(1, count // 6) if guesses is None else guesses
    if not 2 <= guesses <= count:
        raise InputError(f"{guesses} guesses for {count} canaries cannot be made", "guess from 2 up to all")
    order = np.argsort(scores, kind="stable")
    most, least = order[count - guesses // 2 :], order[: guesses - guesses // 2]
    right = int(np.sum(inside[most]) + np.sum(~inside[least]))
    low, high = 0.0, 64.0
    if p_value(low, delta, right, guesses, count) > 1 - confidence:
        return Audit(0.0, confidence, guesses, right, count)
    while high - low > 1e-4:
        middle = (low + high) / 2
        refuted = p_value(middle, delta, right, guesses, count) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return Audit(low, confidence, guesses, right, count)


def p_value(epsilon: float, delta: float, right: int, guesses: int, canaries: int) -> float:
    """The probability of so many right guesses or more where (epsilon, delta) holds, from above (Theorem 5.2).

    With delta 0 that of a binomial number with the probability e^epsilon / (1 + e^epsilon); delta adds 2 * canaries *
    delta times the greatest share of it that some number of guesses turned right could make up for.
    """
    from scipy.stats import binom

    # e^epsilon / (1 + e^epsilon), where e^epsilon may not be a number
    share = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, share))
    below = np.asarray(binom.pmf(np.arange(right - 1, -1, -1), guesses, share))
    alpha = float(np.max(np.cumsum(below) / np.arange(1, right + 1), initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * alpha)
