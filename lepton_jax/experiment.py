"""A recipe's pieces, arranged into a run: mesh, run directory, resume, screen, loop, result."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lepton_jax import checkpoint, data, evaluate, keys, page, report, runs, summary, train, tree
from lepton_jax import mesh as meshes
from lepton_jax import step as steps
from lepton_jax.cli import Config
from lepton_jax.data.paths import reason
from lepton_jax.errors import InputError
from lepton_jax.optimizers import learning_rate_scale
from lepton_jax.recipe import Recipe
from lepton_jax.types import TrainState


class Result(NamedTuple):
    """The end of a run: its final state, the metrics by name ("test/accuracy"), and its directory."""

    state: TrainState
    metrics: dict[str, float]
    directory: pathlib.Path


class Clock:
    """Seconds that a run has taken, over all its lives."""

    def __init__(self):
        self._begun, self._before, self._finished = time.perf_counter(), 0.0, False

    def add(self, seconds: float, finished: bool) -> None:
        """Count an earlier life's seconds too; after a finished one, showing the result again takes none."""
        self._before, self._finished = self._before + seconds, finished

    def seconds(self) -> float:
        """Seconds so far."""
        return round(self._before + (0.0 if self._finished else time.perf_counter() - self._begun), 3)


def run(recipe: Recipe, config: Config) -> Result:
    """Train as composed, or go on from the newest checkpoint of `--run`, and leave the run directory complete."""
    clock = Clock()
    mesh = meshes.make(config.mesh)
    state = prepared(recipe, config, mesh)
    directory = opened(recipe, config, state)
    with runs.writing(directory):
        return recorded(recipe, config, mesh, state, directory, clock)


def recorded(
    recipe: Recipe, config: Config, mesh: Mesh, state: TrainState, directory: pathlib.Path, clock: Clock
) -> Result:
    """Train and evaluate, with all that a run directory holds."""
    total = recipe.stream.steps(config.epochs)
    assess, evaluation = assessor(recipe, config, mesh), None

    def scored(state: TrainState) -> Mapping[str, float]:
        nonlocal evaluation
        evaluation = assess(state)
        return evaluation.metrics

    with checkpoint.Checkpoints(directory / "checkpoints", config.keep) as checkpoints:
        if checkpoints.latest() is not None:
            state, info = checkpoints.restore(state, mesh, recipe.model.rules)
            clock.add(info["seconds"], finished=int(state.step) >= total)

        def save(state: TrainState, scores: Mapping[str, float]) -> None:
            checkpoints.save(state, {"seconds": clock.seconds()}, scores)

        with reporters(directory, total, int(state.step)) as reporter:
            known = summary.facts(recipe, config, mesh, state)
            reporter.say(summary.opening(known, state, directory, total))
            job = planned(recipe, config, mesh, reporter, scored, save)
            state, scores = train.fit(job, state)
    assert evaluation is not None  # of the final state: the loop ends with it
    record = result(recipe, config, mesh, total, scores, clock.seconds())
    page.write(directory, told(recipe, config, directory, known, record, evaluation))
    runs.write(directory / "result.json", record)
    reporter.say(summary.closing(recipe, directory, evaluation, record))
    return Result(state, record["metrics"], directory)


def prepared(recipe: Recipe, config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, once data, model, step, batch and mesh are known to fit together.

    All that a step refuses it refuses here, before any file is written.
    """
    steps.check_batch(config.batch_size, config.microbatches, mesh)
    batch, key = steps.shapes(recipe.stream.batch(0)), keys.seeded(config.seed)
    inputs, classes = batch["input"], len(recipe.dataset.classes)
    with jax.set_mesh(mesh), accepting(inputs):
        state = steps.initial(recipe.model, recipe.optimizer, key, inputs, **recipe.stats)
        variables = {"params": state.params, **state.stats.get("model", {})}
        outputs, _ = jax.eval_shape(lambda v, x: recipe.model.apply(v, x, False, None), variables, inputs)
        if outputs.shape != (len(inputs), classes):
            problem = f"the model gives outputs {outputs.shape} for a batch of {len(inputs)} with {classes} classes"
            raise InputError(problem, f"give the model {classes} outputs")
        jax.eval_shape(recipe.step, state, batch)
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
    identity = {"parameters": tree.count(state.params), "data": data.fingerprint(recipe.dataset.train)}
    runs.check(directory, recipe.name, flags, identity)
    record = {"experiment": recipe.name, "config": flags, "identity": identity}
    # the newest few, the best, and one being written
    runs.create(directory, record, (config.keep + 2) * tree.nbytes(state._replace(key=jnp.uint32(0))))
    return directory


def assessor(recipe: Recipe, config: Config, mesh: Mesh) -> Callable[[TrainState], evaluate.Evaluation]:
    """The evaluation of a state on the test data; of its averaged parameters where it has them."""
    judge = evaluate.evaluator(recipe.model, recipe.criterion, mesh, len(recipe.dataset.classes))
    size = evaluate.batch_size_for(mesh, min(config.eval_batch_size, len(recipe.dataset.test)))

    def assess(state: TrainState) -> evaluate.Evaluation:
        params = state.stats.get("ema", state.params)
        return judge(params, state.stats, data.evaluation_batches(recipe.dataset.test, size))

    return assess


def planned(recipe: Recipe, config: Config, mesh: Mesh, reporter: report.Reporter, assess: Any, save: Any) -> train.Job:
    """The recipe as a job for the loop, with the learning rate among the metrics."""
    return train.Job(
        step=steps.observed(
            recipe.step, learning_rate=lambda s: recipe.schedule(s.step) * learning_rate_scale(s.opt_state)
        ),
        stream=recipe.stream,
        mesh=mesh,
        steps=recipe.stream.steps(config.epochs),
        rules=recipe.model.rules,
        log_every=config.log_every,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        evaluate=assess,
        save=save,
        reporter=reporter,
    )


def reporters(directory: pathlib.Path, total: int, step: int) -> report.Reporter:
    """The screen, metrics.jsonl and TensorBoard, going on after `step`."""
    runs.rewind(directory, step)
    return report.Together([report.screen(total), report.Journal(directory), report.Events(directory, step)])


def result(recipe: Recipe, config: Config, mesh: Mesh, steps: int, scores: Mapping[str, float], seconds: float) -> Any:
    """The record of result.json."""
    return {
        "experiment": recipe.name,
        "status": "complete",
        "steps": steps,
        "examples": steps * config.batch_size,
        "metrics": {f"test/{name}": value for name, value in scores.items()},
        "mesh": dict(mesh.shape),
        "devices": f"{mesh.size} {mesh.devices.flat[0].device_kind}{' simulated' * meshes.is_simulated(mesh)}",
        "seconds": seconds,
        "seed": config.seed,
        "versions": summary.versions(),
    }


def told(
    recipe: Recipe,
    config: Config,
    directory: pathlib.Path,
    known: Mapping[str, str],
    record: Mapping[str, Any],
    evaluation: evaluate.Evaluation,
) -> page.Page:
    """The run as report.html tells it."""
    return page.Page(
        record=record,
        facts=known,
        rows=runs.rows(directory),
        confusion=evaluation.confusion,
        per_class=evaluation.per_class,
        classes=recipe.dataset.classes,
        flags=asdict(config),
        command=summary.command(recipe, None),
    )
