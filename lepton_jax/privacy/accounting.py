"""What a run's privacy is: epsilon from the whole plan of it, and from nowhere else.

plan = privacy.plan(examples=60_000, batch=256, steps=14_062, clip=1.0, noise=1.12, delta=1e-5)
plan.epsilon                                     # 2.31
plan.stream(source, seed), plan.start            # batches drawn as accounted for, and the ledger to start with
plan.require(step, state, stream, steps)         # refuses a step that does otherwise
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lepton_jax.data import Source, Stream
from lepton_jax.errors import InputError, unknown
from lepton_jax.privacy.noise import Noise, Release, constant, started
from lepton_jax.privacy.noting import noted
from lepton_jax.privacy.rules import NAME, Rule, as_rule
from lepton_jax.privacy.sampling import FixedSize, Poisson, probability
from lepton_jax.types import Params, Stats, Step, TrainState

SAMPLINGS = ("poisson", "fixed")
OVERFLOW = 1e-8  # the part of delta that is left for a batch of more examples than rows
RELATIONS = {"poisson": "add or remove one example", "fixed": "replace one example"}


@dataclass(frozen=True)
class Plan:
    """A private run, and what it costs.

    examples: in the training data. batch: the expected number in a step. sampling: "poisson" or "fixed". capacity: rows
    of a batch; `truncated` where it was given, and is accounted for. epsilon holds at delta, by the accountant, for the
    neighboring relation; epsilon_rdp is that of Renyi accounting, None where it cannot say.
    """

    examples: int
    batch: int
    steps: int
    clip: Rule
    noise: Noise
    delta: float
    sampling: str
    capacity: int
    truncated: bool
    epsilon: float
    epsilon_rdp: float | None

    @property
    def accountant(self) -> str:
        """Whose epsilon it is."""
        return "PLD" if self.sampling == "poisson" else "RDP"

    @property
    def relation(self) -> str:
        """Which data sets count as neighbors."""
        return RELATIONS[self.sampling]

    def start(self, params: Params) -> Stats:
        """What `noised` starts from: `step.initial(..., privacy=plan.start)`."""
        return started(params, self.noise, self.clip)

    def stream(self, source: Source, seed: int, **options: Any) -> Stream:
        """Batches drawn as the plan accounts for. Raises InputError for another number of examples."""
        if len(source) != self.examples:
            problem = f"the plan is for {self.examples:,} examples, and the data has {len(source):,}"
            raise InputError(problem, "plan with the number of training examples")
        if self.sampling == "fixed":
            return FixedSize(source, self.batch, seed, **options)
        bands = len(self.noise.bands)
        return Poisson(source, self.batch, seed, capacity=self.capacity, bands=bands, **options)

    def spent(self, steps: int) -> float:
        """Epsilon after so many of the steps, at the plan's delta; 0 before the first."""
        return 0.0 if steps == 0 else self._after(steps).epsilon

    def _after(self, steps: int) -> "Plan":
        return _accounted(replace(self, steps=steps))

    def told(self, steps: int | None = None) -> dict[str, Any]:
        """The claim, in full, for a record: epsilon and delta after so many steps (all by default), and of what."""
        done = self if steps is None or steps == self.steps else self._after(steps)
        return {
            "epsilon": done.epsilon,
            "epsilon_rdp": done.epsilon_rdp,
            "delta": done.delta,
            "accountant": self.accountant,
            "relation": self.relation,
            "sampling": {"kind": self.sampling, "examples": self.examples, "batch": self.batch, "rows": self.capacity},
            "steps": done.steps,
            "noise": {"multipliers": list(self.noise.levels), "from_steps": list(self.noise.starts),
                      "bands": len(self.noise.bands)},
            "clip": self.clip.clip,
        }  # fmt: skip

    def require(self, step: Step, state: TrainState, stream: Stream, steps: int) -> None:
        """Raise InputError where a run would do something else than what the plan accounts for.

        The step is traced, for states and batches like these, and what it clips by and releases is read off; so it
        does not matter what is around them. The stream must draw as planned, and the run have no more steps.
        """
        with noted() as notes:
            # a function of its own, for what JAX has traced before it does not trace again
            jax.eval_shape(lambda state, batch: step(state, batch), state, stream.batch(0))
        releases = [fact for fact in notes if isinstance(fact, Release)]
        rules = [fact for fact in notes if isinstance(fact, Rule)]
        if len(releases) != 1 or not rules:
            problem = f"the step adds noise {len(releases)} times to {'clipped' if rules else 'unclipped'} gradients"
            raise InputError(problem, "build it of privacy.private(loss, plan), once")
        for rule in (*rules, releases[0].clip):
            _agree("clips by", _shown(rule), "is for", _shown(self.clip), rule == self.clip)
        found = releases[0]
        _agree("has noise", found.noise.levels, "is for", self.noise.levels, found.noise == self.noise)
        _agree("divides by", found.batch, "is for", self.batch, found.batch == self.batch)
        _agree("sees", _drawing(stream), "is for", _drawing(self._like(stream)), self._draws(stream))
        _agree("has", f"{steps} steps", "is for", self.steps, steps <= self.steps)
        done = int(state.stats[NAME]["steps"])
        _agree("has done", f"{done} private steps", "knows of", int(state.step), done == int(state.step))

    def _like(self, stream: Stream) -> Stream:
        return self.stream(stream.source, stream.seed)

    def _draws(self, stream: Stream) -> bool:
        return len(stream.source) == self.examples and _drawing(stream) == _drawing(self._like(stream))


def plan(
    examples: int,
    batch: int,
    steps: int,
    clip: Rule | float,
    noise: Noise | float | None,
    delta: float,
    *,
    epsilon: float | None = None,
    sampling: str = "poisson",
    capacity: int | None = None,
    multiple: int = 1,
) -> Plan:
    """The plan of a private run, with its epsilon at `delta`; or, given `epsilon`, with the noise that it takes.

    batch: the expected number of examples in a step. noise: a multiplier, or a course of multipliers, which `epsilon`
    raises or lowers as a whole; None is a constant one. sampling: "poisson" joins each example to each batch by itself;
    epsilon is then that of privacy loss distributions, for one example added or removed, beside Renyi accounting's.
    "fixed" draws exactly `batch` examples; epsilon is then Renyi accounting's, for one example replaced, which moves
    the sum by twice the norm. capacity: rows of a Poisson batch. Left out, it is a multiple of `multiple` so large that
    a batch which does not fit takes a 1e-8th of delta; given, batches are cut off there and so accounted for (Ganesh
    2025, https://arxiv.org/abs/2508.15089). Raises InputError for numbers that cannot be, for an epsilon that no noise
    reaches, and where dp-accounting is missing.
    """
    _check(examples, batch, steps, delta, sampling, multiple)
    if noise is None and epsilon is None:
        raise InputError("the plan has neither noise nor an epsilon to reach", "give noise=1.0 or epsilon=3.0, say")
    course = constant(1.0) if noise is None else noise if isinstance(noise, Noise) else constant(noise)
    rows = capacity if capacity is not None else batch
    fields = Plan(
        examples, batch, steps, as_rule(clip), course, delta, sampling, rows, capacity is not None, math.inf, None
    )
    _check_mechanism(fields)
    if epsilon is not None:
        fields = _calibrated(fields, epsilon)
    fields = _accounted(fields)
    if fields.truncated or sampling == "fixed":
        return fields
    rows = _capacity(fields)
    return replace(fields, capacity=min(-(-rows // multiple) * multiple, -(-examples // multiple) * multiple))


def event(plan: Plan) -> Any:
    """The run as a tree of dp-accounting's events. Raises InputError where dp-accounting is missing."""
    dp, bands = _dp_accounting(), len(plan.noise.bands)
    parts = []
    for level, steps in plan.noise.spans(plan.steps):
        level = _joint(level, plan.clip)
        parts.append(dp.SelfComposedDpEvent(_once(plan, level, bands), -(-steps // bands)))
    return parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts)


def _once(plan: Plan, level: float, bands: int) -> Any:
    """One release. With bands an example may take part in every so manieth only, by so many times the probability."""
    dp = _dp_accounting()
    if plan.sampling == "fixed":
        # one example replaced by another takes one gradient out and puts one in
        gaussian = dp.GaussianDpEvent(level / 2)
        return dp.SampledWithoutReplacementDpEvent(plan.examples, plan.batch, gaussian)
    share = probability(plan.examples, plan.batch, bands)
    if plan.truncated:
        return dp.TruncatedSubsampledGaussianDpEvent(-(-plan.examples // bands), share, plan.capacity, level)
    return dp.PoissonSampledDpEvent(share, dp.GaussianDpEvent(level))


def _joint(level: float, clip: Rule) -> float:
    """The multiplier of the gradient and the count of what is clipped together (Andrew et al. 2021, Theorem 1).

    The count moves by 1/2 at most, so its multiplier is twice its noise.
    """
    if clip.adaptation is None or level == 0:
        return level
    return (level**-2 + (2 * clip.adaptation.noise) ** -2) ** -0.5


@functools.lru_cache(maxsize=256)
def _accounted(plan: Plan) -> Plan:
    """The plan with its epsilons."""
    whole = event(plan)
    if plan.sampling == "fixed":
        epsilon = _epsilon(_renyi("REPLACE_ONE"), whole, plan.delta)
        return replace(plan, epsilon=epsilon, epsilon_rdp=epsilon)
    delta = plan.delta if plan.truncated else plan.delta * (1 - OVERFLOW)
    epsilon = _epsilon(_loss_distributions, whole, delta)
    rdp = None if plan.truncated else _epsilon(_renyi("ADD_OR_REMOVE_ONE"), whole, delta)
    return replace(plan, epsilon=epsilon, epsilon_rdp=rdp)


def _epsilon(accountant: Callable[[], Any], whole: Any, delta: float) -> float:
    with _quiet():
        return float(accountant().compose(whole).get_epsilon(delta))


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


def _renyi(relation: str) -> Callable[[], Any]:
    from dp_accounting.rdp import RdpAccountant

    neighbors = _dp_accounting().NeighboringRelation[relation]
    return lambda: RdpAccountant(neighboring_relation=neighbors)


@functools.lru_cache(maxsize=256)
def _calibrated(plan: Plan, epsilon: float) -> Plan:
    """The plan with its noise raised or lowered to reach epsilon, never past it."""
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon {epsilon} is not positive and finite", "3 is a usual budget")
    if not any(plan.noise.levels):
        raise InputError("noise of multiplier 0 cannot be raised to reach an epsilon", "give a course above 0")
    relation = "REPLACE_ONE" if plan.sampling == "fixed" else "ADD_OR_REMOVE_ONE"
    ideal, top = replace(plan, truncated=False), max(plan.noise.levels)
    dp = _dp_accounting()
    # Renyi accounting is quick and asks for somewhat more noise than is needed: from there the search is short
    guess = _factor(ideal, epsilon, _renyi(relation), dp.LowerEndpointAndGuess(0.05 / top, 2 / top))
    if plan.sampling == "fixed":
        return replace(plan, noise=plan.noise.scaled(guess))
    bracket = dp.LowerEndpointAndGuess(0.7 * guess, 1.02 * guess)
    return replace(plan, noise=plan.noise.scaled(_factor(plan, epsilon, _loss_distributions, bracket)))


def _factor(plan: Plan, epsilon: float, accountant: Callable[[], Any], bracket: Any) -> float:
    """What the noise has to be multiplied by, 0.1 % too much at most. Raises InputError where nothing is enough."""
    dp = _dp_accounting()
    try:
        with _quiet():
            return dp.calibrate_dp_mechanism(
                accountant,
                lambda factor: event(replace(plan, noise=plan.noise.scaled(factor))),
                epsilon,
                plan.delta * (1 - OVERFLOW),
                bracket,
                tol=1e-3 * bracket.initial_guess,
            )
    except (dp.mechanism_calibration.NoBracketIntervalFoundError, ValueError) as error:
        problem = f"no noise makes {plan.steps} steps cost epsilon {epsilon} at delta {plan.delta}: {error}"
        raise InputError(problem, "give a greater epsilon or delta, fewer steps, or a smaller batch") from error


def _capacity(plan: Plan) -> int:
    """Rows for which a run with a batch that does not fit costs OVERFLOW * delta at most.

    Such a run is as far from the accounted one as it is probable, so delta grows by (1 + e^epsilon) times that.
    """
    from scipy.stats import binom

    bands = len(plan.noise.bands)
    members = -(-plan.examples // bands)
    share = probability(plan.examples, plan.batch, bands)
    wanted = math.log(OVERFLOW * plan.delta) - math.log(plan.steps) - np.logaddexp(0, min(plan.epsilon, 600.0))
    low, high = plan.batch, members
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binom.logsf(middle, members, share) <= wanted else (middle + 1, high)
    return low


def _check(examples: int, batch: int, steps: int, delta: float, sampling: str, multiple: int) -> None:
    if sampling not in SAMPLINGS:
        raise unknown("sampling", sampling, SAMPLINGS)
    if examples < 1 or steps < 1 or multiple < 1:
        raise InputError(f"{examples} examples over {steps} steps are no run", "give at least 1 of each")
    probability(examples, batch)
    if not 0 < delta < 1:
        raise InputError(f"delta {delta} is not between 0 and 1", f"1e-5, or less than 1/{examples}, is usual")


def _check_mechanism(plan: Plan) -> None:
    bands = len(plan.noise.bands)
    if bands > 1 and plan.sampling == "fixed":
        raise InputError("noise that is correlated between steps needs Poisson sampling", 'use sampling="poisson"')
    if bands > 1 and plan.clip.adaptation is not None:
        raise InputError("noise that is correlated between steps needs a fixed norm", "clip by a number")
    probability(plan.examples, plan.batch, bands)
    if plan.truncated and plan.capacity < plan.batch:
        problem = f"a capacity of {plan.capacity} rows is below the expected batch of {plan.batch}"
        raise InputError(problem, "give more, or leave it out")
    _dp_accounting()


def _agree(does: str, found: Any, planned: str, wanted: Any, alike: bool) -> None:
    if not alike:
        problem = f"the run {does} {found}, and its plan {planned} {wanted}"
        raise InputError(problem, "make the plan of what the run does, or build the run of the plan")


def _shown(rule: Rule) -> str:
    name = {"whole": "flat", "by_layer": "per layer"}.get(getattr(rule.groups, "__name__", ""), "")
    return f"a {name} norm of {rule.clip}{' that adapts' if rule.adaptation else ''}"


def _drawing(stream: Stream) -> str:
    """How a stream draws, in words that two streams share where they draw alike."""
    match stream:
        case Poisson():
            what = f"Poisson batches with probability {stream.probability:.6g} in {stream.capacity} rows"
            return f"{what}, one step in {stream.bands}" if stream.bands > 1 else what
        case FixedSize():
            return f"fresh batches of {stream.batch_size} of {stream.examples}"
    return f"shuffled epochs in batches of {stream.batch_size}"


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError:
        problem = "what a run costs in privacy is counted by the package dp-accounting, which is not installed"
        raise InputError(problem, 'pip install "lepton-jax[private]"') from None
    return dp_accounting
