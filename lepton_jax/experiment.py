"""A recipe's pieces, arranged into a run: mesh, run directory, resume, screen, loop, result."""

import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lepton_jax import (
    agreement,
    data,
    evaluate,
    finder,
    preparation,
    progress,
    recovery,
    report,
    runs,
    selection,
    sharding,
    summary,
    survival,
    train,
)
from lepton_jax import mesh as meshes
from lepton_jax import step as steps
from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import Config
from lepton_jax.optimizers import learning_rate_scale
from lepton_jax.plan import auto, work
from lepton_jax.recipe import Recipe
from lepton_jax.report import examples, page
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
    """Train as composed, or go on from the newest checkpoint of `--run`, and leave the run directory complete.

    With `--find-learning-rate`, sweep instead; with `--explain-sharding`, say how arrays lie, and write nothing. Of
    several processes the first one writes. What is left to `auto` is planned first, and recorded as chosen.
    """
    clock = Clock()
    if auto.asked(config):
        with preparation.accepting(work.shapes(recipe, config)["input"]):
            recipe, config = auto.resolved(recipe, config)
    mesh = meshes.make(config.mesh)
    if config.find_learning_rate:
        finder.require_drawing()
    state = preparation.prepared(recipe, config, mesh)
    if config.explain_sharding:
        return explained(recipe, config, mesh, state)
    directory = pathlib.Path(agreement.shared(lambda: str(preparation.opened(recipe, config, state))))
    with runs.writing(directory), preparation.leased(directory):
        recipe = replace(recipe, stream=recipe.stream.part(*meshes.part(mesh)).without(recovery.skipped(directory)))
        if config.find_learning_rate:
            return swept(recipe, config, mesh, state, directory)
        return recorded(recipe, config, mesh, state, directory, clock)


def explained(recipe: Recipe, config: Config, mesh: Mesh, state: TrainState) -> Result:
    """How every array lies over the mesh, printed; nothing is written."""
    if agreement.is_first():
        lines = sharding.explained(recipe.step, state, recipe.stream.batch(0), mesh, recipe.model.rules)
        print("\n".join(lines), flush=True)
    return Result(state, {}, pathlib.Path(config.run) if config.run else runs.fresh(recipe.name))


def swept(recipe: Recipe, config: Config, mesh: Mesh, state: TrainState, directory: pathlib.Path) -> Result:
    """The learning-rate finder over the recipe; the state is the one before the first step."""
    steps = finder.RANGE[-1]
    with report.screen(steps) if agreement.is_first() else report.Reporter() as reporter:
        reporter.say(summary.opening(summary.facts(recipe, config, mesh, state), state, directory, steps))
        found = finder.sweep(
            recipe.step, state, recipe.stream, mesh, recipe.schedule, steps, recipe.model.rules, reporter
        )
        if agreement.is_first():
            finder.write(directory, found)
    reporter.say(finder.told(found))
    reporter.say(f"suggested  --learning-rate {found.suggestion:.2g}")
    reporter.say(f"files      {directory}/learning-rate.json  learning-rate.png")
    return Result(state, {"learning_rate": found.suggestion}, directory)


def recorded(
    recipe: Recipe, config: Config, mesh: Mesh, state: TrainState, directory: pathlib.Path, clock: Clock
) -> Result:
    """Train and evaluate, with all that a run directory holds."""
    total, judged = recipe.stream.steps(config.epochs), judged_on(recipe)
    assess, evaluation = assessor(recipe, config, mesh), None
    stop = stopping(directory, config, judged)

    def scored(state: TrainState) -> Mapping[str, float]:
        nonlocal evaluation
        evaluation = assess(state, judged)
        return evaluation.metrics

    with survival.kept(config, directory) as checkpoints:
        state, begun = survival.resumed(recipe, mesh, state, checkpoints)
        with reporters(directory, total, int(state.step)) as reporter:
            clock.add(begun["seconds"], finished=int(state.step) >= total or stop())
            known = summary.facts(recipe, config, mesh, state)
            reporter.say(summary.opening(known, state, directory, int(state.step) if stop() else total))
            for said in remarks(config, judged, checkpoints):
                reporter.say(said)
            survives = survival.surviving(recipe, config, mesh, directory, checkpoints, begun, clock.seconds, reporter)
            job = planned(recipe, config, mesh, reporter, scored, stop, survives)
            state, scores = train.fit(job, state)
            ended = ending(job, config, state, stop())
            if ended["step"] < total:
                reporter.say(f"stopped    {ended['reason']}")
        chosen = survival.selected(checkpoints, recipe, config, mesh, state)
        if chosen is not state or judged != "test":
            evaluation = assess(chosen, "test")
        if chosen is not state and judged != "test":
            scores = assess(chosen, judged).metrics
    assert evaluation is not None  # of the final state: the loop ends with it
    measured = {f"{judged}/{name}": value for name, value in scores.items()}
    measured |= {f"test/{name}": value for name, value in evaluation.metrics.items()}
    choice = {"of": config.restore, "by": f"{judged}/{config.monitor}", "step": int(chosen.step)}
    record = result(recipe, config, mesh, ended, choice, measured, clock.seconds())
    if agreement.is_first():
        page.write(directory, told(recipe, config, directory, known, record, evaluation))
        runs.write(directory / "result.json", record)
    reporter.say(summary.closing(recipe, directory, evaluation, record))
    return Result(chosen, record["metrics"], directory)


def remarks(config: Config, judged: str, checkpoints: Checkpoints) -> Iterator[str]:
    """What a person should know before the run goes on."""
    for damage in checkpoints.aside.values():
        yield f"note       set aside: {damage}"
    if judged == "test" and (config.patience is not None or config.restore == "best"):
        yield "note       there is no validation data: chosen on the test data, scores flatter"


def judged_on(recipe: Recipe) -> str:
    """What a run is judged on while it goes: the validation data, or the test data where there is none."""
    return "test" if recipe.dataset.validation is None else "validation"


def stopping(directory: pathlib.Path, config: Config, judged: str) -> Callable[[], bool]:
    """Whether `--patience` is at an end, by the rows of metrics.jsonl, so that a resumed run decides alike."""
    patience = config.patience
    if patience is None:
        return lambda: False
    name = f"{judged}/{config.monitor}"
    return lambda: agreement.shared(lambda: selection.stalled(runs.rows(directory), name, patience, config.eval_every))


def ending(job: train.Job, config: Config, state: TrainState, early: bool) -> dict[str, Any]:
    """Where the training stopped, and why."""
    step, every = int(state.step), f"after all {config.epochs:g} epochs"
    if not early or step == job.steps:
        return {"step": step, "epoch": job.epoch(step), "reason": every}
    word = "fallen" if config.monitor in selection.FALLING else "risen"
    waited = f"{job.judged_on}/{config.monitor} has not {word} in {config.patience:g} epoch(s)"
    return {"step": step, "epoch": job.epoch(step), "reason": waited}


def assessor(recipe: Recipe, config: Config, mesh: Mesh) -> Callable[[TrainState, str], evaluate.Evaluation]:
    """(state, split) -> the evaluation of a state, of its averaged parameters where it has them, on a split's data."""
    judge = evaluate.evaluator(recipe.model, recipe.criterion, mesh, len(recipe.dataset.classes))

    def assess(state: TrainState, split: str) -> evaluate.Evaluation:
        source = recipe.dataset.splits[split]
        size = evaluate.batch_size_for(mesh, min(config.eval_batch_size, len(source)))
        params = state.stats.get("ema", state.params)
        return judge(params, state.stats, data.evaluation_batches(source, size, shard=meshes.part(mesh)))

    return assess


def planned(
    recipe: Recipe, config: Config, mesh: Mesh, reporter: report.Reporter, assess: Any, stop: Any, survives: Any
) -> train.Job:
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
        judged_on=judged_on(recipe),
        stop=stop,
        survival=survives,
        reporter=reporter,
    )


def reporters(directory: pathlib.Path, total: int, step: int) -> report.Reporter:
    """The screen, metrics.jsonl and TensorBoard, going on after `step`; of several processes the first one's."""
    watched = progress.reporter()  # by a supervisor, each process by itself
    if not agreement.is_first():
        return watched
    records = [report.Journal(directory, step), report.Events(directory, step)]
    return report.Together([report.screen(total), *records, watched])


def result(
    recipe: Recipe,
    config: Config,
    mesh: Mesh,
    stopped: Mapping[str, Any],
    choice: Mapping[str, Any],
    measured: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The record of result.json. stopped: where the training ended, and why. choice: the state that was measured."""
    return {
        "experiment": recipe.name,
        "status": "complete",
        "steps": stopped["step"],
        "examples": stopped["step"] * recipe.stream.batch_size,
        "stopped": dict(stopped),
        "selected": dict(choice),
        "metrics": dict(measured),
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
        command=summary.command(recipe, None, config.seed),
        examples=examples.shown(recipe.dataset.test, evaluation, recipe.dataset.classes),
    )
