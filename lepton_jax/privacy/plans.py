"""What a run's privacy is: epsilon from the whole plan of it, and from nowhere else.

plan = privacy.plan(examples=60_000, batch=256, steps=14_062, clip=1.0, noise=1.12, delta=1e-5)
plan.epsilon                                     # 2.31
plan.stream(source, seed), plan.start            # batches drawn as accounted for, and the ledger to start with
plan.require(step, state, stream, steps)         # refuses a step that does otherwise
"""

from dataclasses import dataclass, replace
from typing import Any

import jax

from lepton_jax.data import Batches, Drawing, Source, Stream
from lepton_jax.errors import InputError
from lepton_jax.noting import Bound, noted
from lepton_jax.privacy.accounting import Mechanism, calibrated, epsilons, rows
from lepton_jax.privacy.noise import Noise, Release, constant, started
from lepton_jax.privacy.rules import NAME, Rule, as_rule, flat
from lepton_jax.privacy.sampling import FixedSize, Poisson
from lepton_jax.types import Params, Stats, Step, TrainState


@dataclass(frozen=True)
class Plan(Mechanism):
    """A private run, and what it costs.

    capacity: rows of a batch. epsilon holds at delta, by the accountant, for the neighboring relation; epsilon_rdp is
    that of Renyi accounting, None where it cannot say.
    """

    delta: float
    capacity: int
    epsilon: float
    epsilon_rdp: float | None

    def start(self, params: Params) -> Stats:
        """What `noised` starts from: `step.initial(..., privacy=plan.start)`."""
        return started(params, self.noise, self.clip)

    @property
    def drawing(self) -> Drawing:
        """How the batches of the run have to be drawn."""
        return Drawing(self.sampling, self.examples, self.batch, self.capacity, self.bands)

    def stream(self, source: Source, seed: int, **options: Any) -> Stream:
        """Batches drawn as the plan accounts for. Raises InputError for another number of examples."""
        if len(source) != self.examples:
            problem = f"the plan is for {self.examples:,} examples, and the data has {len(source):,}"
            raise InputError(problem, "plan with the number of training examples")
        if self.sampling == "fixed":
            return FixedSize(source, self.batch, seed, **options)
        return Poisson(source, self.batch, seed, capacity=self.capacity, bands=self.bands, **options)

    def spent(self, steps: int) -> float:
        """Epsilon after so many of the steps, at the plan's delta; 0 before the first."""
        return self._costs(steps)[0]

    def _costs(self, steps: int) -> tuple[float, float | None]:
        if steps == self.steps:
            return self.epsilon, self.epsilon_rdp
        return epsilons(replace(self, steps=steps), self.delta) if steps else (0.0, 0.0)

    def told(self, steps: int | None = None) -> dict[str, Any]:
        """The claim, in full, for a record: epsilon and delta after so many steps (all by default), and of what."""
        done = self.steps if steps is None else steps
        epsilon, renyi = self._costs(done)
        return {
            "epsilon": epsilon,
            "epsilon_rdp": renyi,
            "delta": self.delta,
            "accountant": self.accountant,
            "relation": self.relation,
            "sampling": {"kind": self.sampling, "examples": self.examples, "batch": self.batch, "rows": self.capacity},
            "steps": done,
            "noise": {"multipliers": list(self.noise.levels), "from_steps": list(self.noise.starts),
                      "bands": self.bands},
            "clip": self.clip.clip,
        }  # fmt: skip

    def require(self, step: Step, state: TrainState, stream: Batches, steps: int) -> None:
        """Raise InputError where a run would do something else than what the plan accounts for.

        The step is traced, for states and batches like these, and what it clips by and releases is read off; so it
        does not matter what is around them. The stream must draw as planned, and the run have no more steps.
        """
        with noted() as notes:
            # a function of its own, for what JAX has traced before it does not trace again
            jax.eval_shape(lambda state, batch: step(state, batch), state, stream.batch(0))
        releases = [fact for fact in notes if isinstance(fact, Release)]
        rules = [fact for fact in notes if isinstance(fact, Rule)]
        rules += [flat(fact.norm) for fact in notes if isinstance(fact, Bound)]
        if len(releases) != 1 or not rules:
            problem = f"the step adds noise {len(releases)} times to {'clipped' if rules else 'unclipped'} gradients"
            raise InputError(problem, "build it of privacy.private(loss, plan), once")
        for rule in (*rules, releases[0].clip):
            _agree("clips by", _shown(rule), "is for", _shown(self.clip), rule == self.clip)
        found = releases[0]
        _agree("has noise", found.noise.levels, "is for", self.noise.levels, found.noise == self.noise)
        _agree("divides by", found.batch, "is for", self.batch, found.batch == self.batch)
        _agree("sees", stream.drawing, "is for", self.drawing, stream.drawing == self.drawing)
        _agree("has", f"{steps} steps", "is for", self.steps, steps <= self.steps)
        done = int(state.stats[NAME]["steps"])
        _agree("has done", f"{done} private steps", "knows of", int(state.step), done == int(state.step))


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
    if noise is None and epsilon is None:
        raise InputError("the plan has neither noise nor an epsilon to reach", "give noise=1.0 or epsilon=3.0, say")
    if not 0 < delta < 1:
        raise InputError(f"delta {delta} is not between 0 and 1", f"1e-5, or less than 1/{examples}, is usual")
    if multiple < 1:
        raise InputError(f"rows in multiples of {multiple}", "give at least 1")
    course = constant(1.0) if noise is None else noise if isinstance(noise, Noise) else constant(noise)
    mechanism = Mechanism(examples, batch, steps, as_rule(clip), course, sampling, capacity)
    if epsilon is not None:
        mechanism = calibrated(mechanism, epsilon, delta)
    found, renyi = epsilons(mechanism, delta)
    fitting = batch if capacity is None else capacity
    if sampling == "poisson" and capacity is None:
        fitting = -(-rows(mechanism, found, delta) // multiple) * multiple
    return Plan(**vars(mechanism), delta=delta, capacity=fitting, epsilon=found, epsilon_rdp=renyi)


def _agree(does: str, found: Any, planned: str, wanted: Any, alike: bool) -> None:
    if not alike:
        problem = f"the run {does} {found}, and its plan {planned} {wanted}"
        raise InputError(problem, "make the plan of what the run does, or build the run of the plan")


def _shown(rule: Rule) -> str:
    name = {"whole": "flat", "by_layer": "per layer"}.get(getattr(rule.groups, "__name__", ""), "")
    return f"a {name} norm of {rule.clip}{' that adapts' if rule.adaptation else ''}"
