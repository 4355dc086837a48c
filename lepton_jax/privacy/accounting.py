"""Epsilon of what a run releases, by dp-accounting, and the noise that an epsilon takes."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_jax.errors import InputError, unknown
from lepton_jax.privacy.noise import Noise
from lepton_jax.privacy.rules import Rule
from lepton_jax.privacy.sampling import probability

OVERFLOW = 1e-8  # the part of delta that is left for a batch of more examples than rows
RELATIONS = {"poisson": "add or remove one example", "fixed": "replace one example"}
_NEIGHBORS = {"poisson": "ADD_OR_REMOVE_ONE", "fixed": "REPLACE_ONE"}


@dataclass(frozen=True)
class Mechanism:
    """What a run releases: noisy sums of clipped gradients, of batches drawn at random.

    examples: in the training data. batch: the expected number in a step. clip: the norm of one gradient, and over what.
    noise: over the steps. sampling: "poisson" joins each example to each batch by itself, "fixed" draws exactly
    `batch`. cut: where Poisson batches end that are larger; None where they never are. Raises InputError for numbers
    that cannot be, and where dp-accounting is missing.
    """

    examples: int
    batch: int
    steps: int
    clip: Rule
    noise: Noise
    sampling: str
    cut: int | None

    def __post_init__(self):
        if self.sampling not in RELATIONS:
            raise unknown("sampling", self.sampling, RELATIONS)
        if self.examples < 1 or self.steps < 1:
            raise InputError(f"{self.examples} examples over {self.steps} steps are no run", "give at least 1 of each")
        probability(self.examples, self.batch, self.bands)
        if self.bands > 1 and self.sampling == "fixed":
            raise InputError("noise that is correlated between steps needs Poisson sampling", 'use sampling="poisson"')
        if self.bands > 1 and self.clip.adaptation is not None:
            raise InputError("noise that is correlated between steps needs a fixed norm", "clip by a number")
        if self.cut is not None and self.cut < self.batch:
            problem = f"a capacity of {self.cut} rows is below the expected batch of {self.batch}"
            raise InputError(problem, "give more, or leave it out")
        _dp_accounting()

    @property
    def bands(self) -> int:
        """Steps over which noise is correlated: an example may take part in one of so many."""
        return len(self.noise.bands)

    @property
    def accountant(self) -> str:
        """By whose method `epsilons` has the first."""
        return "PLD" if self.sampling == "poisson" else "RDP"

    @property
    def relation(self) -> str:
        """Which data sets count as neighbors."""
        return RELATIONS[self.sampling]


def event(mechanism: Mechanism) -> Any:
    """The run as a tree of dp-accounting's events."""
    dp, parts = _dp_accounting(), []
    for level, steps in mechanism.noise.spans(mechanism.steps):
        once = _once(mechanism, _joint(level, mechanism.clip))
        parts.append(dp.SelfComposedDpEvent(once, -(-steps // mechanism.bands)))
    return parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts)


def _once(mechanism: Mechanism, level: float) -> Any:
    """One release. With bands an example may take part in every so manieth only, by so many times the probability."""
    dp, bands = _dp_accounting(), mechanism.bands
    if mechanism.sampling == "fixed":
        # one example replaced by another takes one gradient out and puts one in
        gaussian = dp.GaussianDpEvent(level / 2)
        return dp.SampledWithoutReplacementDpEvent(mechanism.examples, mechanism.batch, gaussian)
    share = probability(mechanism.examples, mechanism.batch, bands)
    if mechanism.cut is not None:
        return dp.TruncatedSubsampledGaussianDpEvent(-(-mechanism.examples // bands), share, mechanism.cut, level)
    return dp.PoissonSampledDpEvent(share, dp.GaussianDpEvent(level))


def _joint(level: float, clip: Rule) -> float:
    """The multiplier of the gradient and the count of what is clipped together (Andrew et al. 2021, Theorem 1).

    The count moves by 1/2 at most, so its multiplier is twice its noise.
    """
    if clip.adaptation is None or level == 0:
        return level
    return (level**-2 + (2 * clip.adaptation.noise) ** -2) ** -0.5


@functools.lru_cache(maxsize=256)
def epsilons(mechanism: Mechanism, delta: float) -> tuple[float, float | None]:
    """(epsilon at delta, that of Renyi accounting, None where it cannot say).

    The first is that of privacy loss distributions for Poisson batches, and of Renyi accounting for fixed ones.
    """
    whole, renyi = event(mechanism), _renyi(mechanism)
    if mechanism.sampling == "fixed":
        return (epsilon := _epsilon(renyi, whole, delta)), epsilon
    if mechanism.cut is not None:
        return _epsilon(_loss_distributions, whole, delta), None
    delta *= 1 - OVERFLOW
    return _epsilon(_loss_distributions, whole, delta), _epsilon(renyi, whole, delta)


def _epsilon(accountant: Callable[[], Any], whole: Any, delta: float) -> float:
    with _quiet():
        return float(accountant().compose(whole).get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def calibrated(mechanism: Mechanism, epsilon: float, delta: float) -> Mechanism:
    """With its noise raised or lowered as a whole to reach epsilon, never past it.

    Raises InputError for an epsilon that is not positive, that no noise reaches, or for noise of multiplier 0.
    """
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon {epsilon} is not positive and finite", "3 is a usual budget")
    if not any(mechanism.noise.levels):
        raise InputError("noise of multiplier 0 cannot be raised to reach an epsilon", "give a course above 0")
    ideal, top = replace(mechanism, cut=None), max(mechanism.noise.levels)
    dp = _dp_accounting()
    # Renyi accounting is quick and asks for somewhat more noise than is needed: from there the search is short
    guess = _factor(ideal, epsilon, delta, _renyi(mechanism), dp.LowerEndpointAndGuess(0.05 / top, 2 / top))
    if mechanism.sampling == "fixed":
        return _scaled(mechanism, guess)
    bracket = dp.LowerEndpointAndGuess(0.7 * guess, 1.02 * guess)
    return _scaled(mechanism, _factor(mechanism, epsilon, delta, _loss_distributions, bracket))


def _scaled(mechanism: Mechanism, factor: float) -> Mechanism:
    return replace(mechanism, noise=mechanism.noise.scaled(factor))


def _factor(mechanism: Mechanism, epsilon: float, delta: float, accountant: Callable[[], Any], bracket: Any) -> float:
    """What the noise has to be multiplied by, 0.1 % too much at most. Raises InputError where nothing is enough."""
    dp, delta, exact = _dp_accounting(), delta * (1 - OVERFLOW), 1e-3 * bracket.initial_guess
    try:
        with _quiet():
            return dp.calibrate_dp_mechanism(
                accountant, lambda factor: event(_scaled(mechanism, factor)), epsilon, delta, bracket, tol=exact
            )
    except (dp.mechanism_calibration.NoBracketIntervalFoundError, ValueError) as error:
        problem = f"no noise makes {mechanism.steps} steps cost epsilon {epsilon} at delta {delta:g}: {error}"
        raise InputError(problem, "give a greater epsilon or delta, fewer steps, or a smaller batch") from error


def rows(mechanism: Mechanism, epsilon: float, delta: float) -> int:
    """Rows for which a run with a batch that does not fit costs OVERFLOW * delta at most.

    Such a run is as far from the accounted one as it is probable, so delta grows by (1 + e^epsilon) times that.
    """
    from scipy.stats import binom

    members = -(-mechanism.examples // mechanism.bands)
    share = probability(mechanism.examples, mechanism.batch, mechanism.bands)
    wanted = math.log(OVERFLOW * delta) - math.log(mechanism.steps) - np.logaddexp(0, min(epsilon, 600.0))
    low, high = mechanism.batch, members
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binom.logsf(middle, members, share) <= wanted else (middle + 1, high)
    return low


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of Renyi accounting that it leaves orders out: its bound holds by those that are left."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _loss_distributions() -> Any:
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant()


def _renyi(mechanism: Mechanism) -> Callable[[], Any]:
    from dp_accounting.rdp import RdpAccountant

    neighbors = _dp_accounting().NeighboringRelation[_NEIGHBORS[mechanism.sampling]]
    return lambda: RdpAccountant(neighboring_relation=neighbors)


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError:
        problem = "what a run costs in privacy is counted by the package dp-accounting, which is not installed"
        raise InputError(problem, 'pip install "lepton-jax[private]"') from None
    return dp_accounting
