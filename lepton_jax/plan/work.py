"""A recipe as work to be planned."""

import dataclasses

import jax
import numpy as np

from lepton_jax import data, keys, losses, recipe
from lepton_jax import step as steps
from lepton_jax.config import Config
from lepton_jax.errors import InputError
from lepton_jax.plan.rehearsal import Work
from lepton_jax.recipe import Recipe


def of_recipe(composed: Recipe, config: Config) -> Work:
    """The recipe's step for any number of microbatches, and the shapes that it works on; nothing is computed."""
    batch = shapes(composed, config)

    def initial() -> object:
        return steps.initial(
            composed.model, composed.optimizer, keys.seeded(config.seed), batch["input"], **composed.stats
        )

    def step(microbatches: int) -> recipe.Step:
        return in_microbatches(composed, config, microbatches).step

    return Work(step, jax.eval_shape(initial), batch, composed.model.rules, config.bitwise)


def shapes(composed: Recipe, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the recipe's stream as shapes, of which one example is read. Raises InputError for cohorts."""
    if not isinstance(composed.stream, data.Stream):
        problem = f"experiments.{composed.name} trains on cohorts of clients, and these cannot be planned"
        raise InputError(
            problem, "plan the same model on all data: --algorithm centralized; or give --mesh and all else"
        )
    drawn = data.gather(composed.stream.source, [0])  # perhaps with weights, perhaps without inputs
    one = {**data.gather(composed.dataset.train, [0]), **drawn, "index": np.zeros(1, np.int32)}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *column.shape[1:]), column.dtype) for name, column in one.items()
    }


def in_microbatches(composed: Recipe, config: Config, microbatches: int) -> Recipe:
    """The same recipe, its batches computed in so many parts.

    Raises InputError for one that does not compose its step as `recipe.step` does.
    """
    if microbatches == config.parts:
        return composed
    loss = composed.around(losses.supervised(composed.model, composed.criterion))
    step, stats = recipe.step(dataclasses.replace(config, microbatches=microbatches), loss, composed.optimizer)
    if set(stats) != set(composed.stats):
        problem = f"the step of experiments.{composed.name} is its own, and its microbatches cannot be chosen for it"
        raise InputError(problem, "give --microbatches a number")
    return dataclasses.replace(composed, step=step, stats=stats)
