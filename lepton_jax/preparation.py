"""Before a run: data, model, step, batch and mesh are known to fit together, and the directory is this run's alone."""

import contextlib
import pathlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lepton_jax import agreement, checkpoint, data, keys, lease, runs, tree
from lepton_jax import step as steps
from lepton_jax.config import Config
from lepton_jax.data.paths import reason
from lepton_jax.errors import InputError
from lepton_jax.recipe import Recipe
from lepton_jax.types import TrainState


def prepared(recipe: Recipe, config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, once data, model, step, batch and mesh are known to fit together.

    All that a step refuses it refuses here, before any file is written.
    """
    size, classes = recipe.stream.batch_size, len(recipe.dataset.classes)
    steps.check_batch(size, config.parts, mesh)
    batch, key = steps.shapes(recipe.stream.batch(0)), keys.seeded(config.seed)
    one = data.gather(recipe.dataset.train, [0])["input"]
    inputs = jax.ShapeDtypeStruct((size, *one.shape[1:]), one.dtype)
    with jax.set_mesh(mesh), accepting(inputs):
        state = steps.initial(recipe.model, recipe.optimizer, key, inputs, **recipe.stats)
        variables = {"params": state.params, **state.stats.get("model", {})}
        outputs, _ = jax.eval_shape(lambda v, x: recipe.model.apply(v, x, False, None), variables, inputs)
        if outputs.shape != (len(inputs), classes):
            problem = f"the model gives outputs {outputs.shape} for a batch of {len(inputs)} with {classes} classes"
            raise InputError(problem, f"give the model {classes} outputs")
        jax.eval_shape(recipe.step, state, batch)
        recipe.require(state)
    return state


@contextlib.contextmanager
def accepting(inputs: jax.ShapeDtypeStruct) -> Iterator[None]:
    """Turns what models and augmentations raise for inputs of a shape that they cannot take into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        found = f"{inputs.dtype} of shape {inputs.shape[1:]}"
        problem = f"this model or its augmentation cannot take inputs of {found}: {reason(error)}"
        raise InputError(problem, "choose other --data or another --model; --debug shows where it failed") from error


def opened(recipe: Recipe, config: Config, state: TrainState) -> pathlib.Path:
    """The run directory, new or recognised as this very run's. Raises InputError and leaves others untouched."""
    directory = pathlib.Path(config.run) if config.run else runs.fresh(recipe.name)
    flags = {name: value for name, value in asdict(config).items() if name != "run"}
    known = identity(recipe, state)
    runs.check(directory, recipe.name, flags, known)
    if config.checkpoints:
        checkpoint.located(config.checkpoints)
    record = {"experiment": recipe.name, "config": flags, "identity": known}
    # the newest few, the best, and one being written
    runs.create(directory, record, (config.keep + 2) * tree.nbytes(state._replace(key=jnp.uint32(0))))
    return directory


def identity(recipe: Recipe, state: TrainState) -> dict[str, Any]:
    """What decides a run beside its flags."""
    return {"parameters": tree.count(state.params), "data": data.fingerprint(recipe.dataset.train)}


@contextlib.contextmanager
def leased(directory: pathlib.Path) -> Iterator[None]:
    """Hold the directory's lease, in the first of the processes that write to it. Raises InputError in all."""
    with contextlib.ExitStack() as stack:
        agreement.shared(lambda: stack.enter_context(lease.held(directory)))
        yield
