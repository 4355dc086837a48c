"""A recipe of simulated rounds as a job between machines."""

from typing import Any

import jax

from lepton_jax import experiment, keys, mesh
from lepton_jax import federated as wing
from lepton_jax import step as steps
from lepton_jax.config import Config
from lepton_jax.errors import InputError
from lepton_jax.federated.algorithms import Algorithm
from lepton_jax.federated.rounds import CLIENTS
from lepton_jax.federation.job import Job
from lepton_jax.recipe import Recipe
from lepton_jax.types import Batch, Step, TrainState


def composed(
    recipe: Recipe,
    config: Config,
    algorithm: Algorithm,
    client: wing.Client,
    step: Step,
    combine: wing.Combine | None = None,
) -> Job:
    """The job of clients client-0, client-1 ..., each with what it holds in the recipe's stream.

    client: what each does. step: the recipe's, over `received` instead of a simulated round. combine: as there. What
    clients keep is no part of the state, but theirs. Raises InputError for a recipe that does not stream cohorts.
    """
    cohorts = recipe.stream
    if not isinstance(cohorts, wing.Cohorts):
        problem = f"experiments.{recipe.name} trains on batches, and a job is of clients"
        raise InputError(problem, "compose it over federated.Cohorts")
    if cohorts.cohort != cohorts.examples:
        problem = f"the data is that of {cohorts.examples} clients, and the job is one of {cohorts.cohort}"
        raise InputError(problem, f"give --clients {cohorts.examples}")
    names = tuple(f"client-{number}" for number in range(cohorts.examples))
    batches = steps.shapes(cohorts.of(0, 0))

    def data(name: str, round: int) -> Batch:
        return cohorts.of(names.index(name), round)

    def state() -> TrainState:
        shared = {name: start for name, start in recipe.stats.items() if name != CLIENTS}
        inputs = batches["input"]
        one = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
        return steps.initial(recipe.model, recipe.optimizer, keys.seeded(config.seed), one, **shared)

    def evaluate(state: TrainState) -> dict[str, Any]:
        assess = experiment.assessor(recipe, config, mesh.make("1x1"))
        return {f"test/{name}": value for name, value in assess(state, "test").metrics.items()}

    return Job(
        name=recipe.name,
        state=state,
        client=client,
        step=step,
        clients=names,
        rounds=cohorts.steps(config.epochs),
        batches=batches,
        data=data,
        own=algorithm.started,
        combine=combine,
        evaluate=evaluate,
    )
