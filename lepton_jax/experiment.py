"""A recipe's pieces, arranged into a run: mesh, run directory, resume, screen, loop, result."""

import contextlib
import importlib.metadata
import pathlib
import platform
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lepton_jax import checkpoint, data, evaluate, keys, optimizers, page, report, runs, schedules, train, tree
from lepton_jax import mesh as meshes
from lepton_jax import step as steps
from lepton_jax.cli import Config, flag
from lepton_jax.data.paths import reason
from lepton_jax.errors import InputError
from lepton_jax.losses import Criterion
from lepton_jax.optimizers import learning_rate_scale
from lepton_jax.types import Model, Stats, Step, TrainState

# flags that only these schedules have
TAKEN_BY = {"gamma": ("step", "exponential"), "step_size": ("step",)}


@dataclass(frozen=True)
class Recipe:
    """What a recipe has composed. `stats` are the entries that its techniques start from."""

    name: str
    dataset: data.Dataset
    stream: data.Stream
    model: Model
    criterion: Criterion
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    step: Step
    stats: Stats = field(default_factory=dict)


class Result(NamedTuple):
    """The end of a run: its final state, the metrics by name ("test/accuracy"), and its directory."""

    state: TrainState
    metrics: dict[str, float]
    directory: pathlib.Path


def dataset(config: Config) -> data.Dataset:
    """The data that the flags name, checked. Raises InputError."""
    options = {"image_size": config.image_size, "on_bad_image": config.on_bad_image}
    return data.load(config.data, config.data_dir, seed=config.seed, **options)


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


def optimization(config: Config, stream: data.Stream) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule and the optimizer that the flags name. Raises InputError."""
    options = {name: getattr(config, name) for name in TAKEN_BY if getattr(config, name) is not None}
    for name in options:
        if config.schedule not in TAKEN_BY[name]:
            problem = f"{flag(name)} has no meaning for --schedule {config.schedule}"
            raise InputError(problem, f"leave it out, or choose {' or '.join(TAKEN_BY[name])}")
    schedule = schedules.build(
        config.schedule,
        config.learning_rate,
        stream.steps(config.epochs),
        stream.steps_per_epoch,
        warmup_steps=stream.steps(config.warmup_epochs),
        **options,
    )
    optimizer = optimizers.build(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )
    if config.schedule == "plateau":
        optimizer = optax.chain(optimizer, optimizers.reduce_on_plateau(stream.steps_per_epoch))
    return schedule, optimizer


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
            known = facts(recipe, config, mesh, state)
            reporter.say(opening(known, state, directory, total))
            job = planned(recipe, config, mesh, reporter, scored, save)
            state, scores = train.fit(job, state)
    assert evaluation is not None  # of the final state: the loop ends with it
    record = result(recipe, config, mesh, total, scores, clock.seconds())
    page.write(directory, told(recipe, config, directory, known, record, evaluation))
    runs.write(directory / "result.json", record)
    reporter.say(closing(recipe, directory, evaluation, record))
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


def facts(recipe: Recipe, config: Config, mesh: Mesh, state: TrainState) -> dict[str, str]:
    """What a person wants to know of a run before it starts, each in a line."""
    kind = mesh.devices.flat[0].device_kind
    named = f"{mesh.size}{' x' if mesh.size > 1 else ''} {'CPU' if kind == 'cpu' else kind}"
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    per_device = config.batch_size // meshes.batch_shards(mesh)
    microbatches = f", in {config.microbatches} microbatches" if config.microbatches > 1 else ""
    found = recipe.dataset
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "devices": f"{mesh.size} simulated, all on this machine's CPU" if meshes.is_simulated(mesh) else named,
        "mesh": f"{axes}; a batch of {config.batch_size:,} is {per_device:,} per device{microbatches}",
        "data": f"{found.name}: {len(found.train):,} train, {len(found.test):,} test, {len(found.classes):,} classes",
        "model": f"{tree.count(state.params):,} parameters, {config.precision}",
        **skipped(found),
    }


def skipped(dataset: data.Dataset, names: int = 10) -> dict[str, str]:
    """A fact that names the images which could not be read, where there are any."""
    bad = dataset.bad
    if not bad:
        return {}
    more = f" and {len(bad) - names:,} more" if len(bad) > names else ""
    return {"skipped": f"{len(bad):,} unreadable image(s), which count nothing: {', '.join(bad[:names])}{more}"}


def opening(known: Mapping[str, str], state: TrainState, directory: pathlib.Path, total: int) -> str:
    """The first screen: the facts, the parameters by part, and where the run is written."""
    lines = [line for name, fact in known.items() for line in labelled(name, fact)]
    lines += [f"{'':11}{line}" for line in table(state.params)]
    step = int(state.step)
    going_on = f"on from step {step:,} of {total:,}" if step < total else f"all {total:,} steps are done: evaluating"
    where = going_on if step else f"{total:,} steps"
    return "\n".join([*lines, f"{'run':<9}  {directory}, {where}"])


def labelled(label: str, text: str) -> list[str]:
    """Text in lines that fit 80 columns, the first one behind its label."""
    lines = textwrap.wrap(text, 69, break_long_words=False, break_on_hyphens=False)
    return [f"{label if n == 0 else '':<9}  {line}" for n, line in enumerate(lines)]


def table(params: Any, rows: int = 12) -> list[str]:
    """A line per top-level part of the parameters: name, arrays, numbers; the smallest together past `rows`."""
    parts = dict(params) if isinstance(params, Mapping) else {"params": params}
    counts = {name: (len(jax.tree.leaves(part)), tree.count(part)) for name, part in parts.items()}
    if len(counts) > rows:
        largest = sorted(counts, key=lambda name: counts[name][1], reverse=True)[: rows - 1]
        rest = [count for name, count in counts.items() if name not in largest]
        counts = {name: count for name, count in counts.items() if name in largest}
        counts[f"{len(rest)} more"] = (sum(a for a, _ in rest), sum(n for _, n in rest))
    width = max(map(len, counts), default=0)
    return [f"{name:<{width}}  {arrays:>4} arrays  {numbers:>13,}" for name, (arrays, numbers) in counts.items()]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("lepton-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


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
        "versions": versions(),
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
        command=command(recipe, None),
    )


def closing(recipe: Recipe, directory: pathlib.Path, evaluation: evaluate.Evaluation, record: Mapping[str, Any]) -> str:
    """How it ended: the table by class, the files written, the next commands."""
    names = recipe.dataset.classes
    shown = ("accuracy", "f1_macro", "auc", "loss")
    scores = "  ".join(report.quantity(name, record["metrics"][f"test/{name}"]) for name in shown)
    files = "  ".join(sorted(path.name + "/" * path.is_dir() for path in directory.iterdir()))
    return "\n".join(
        [
            *(per_class(names, evaluation) if len(names) <= 20 else []),
            *(line for name, fact in skipped(recipe.dataset).items() for line in labelled(name, fact)),
            f"result     {scores}  in {report.clock(record['seconds'])}",
            f"files      {directory}/",
            f"           {files}",
            f"report     {directory / 'report.html'}",
            f"next       {command(recipe, directory)}",
            "           goes on where it stopped, or shows the result again",
            f"           tensorboard --logdir {shlex.quote(str(directory / 'events'))}",
        ]
    )


def per_class(names: tuple[str, ...], evaluation: evaluate.Evaluation) -> list[str]:
    """A table of precision, recall and F1 by class."""
    names = tuple(textwrap.shorten(name, 28, placeholder="...") for name in names)
    width = max(4, *map(len, names))
    head = f"classes    {'name':<{width}}  examples  precision  recall      f1"
    rows = [
        f"{'':11}{name:<{width}}  {row['examples']:>8,}  {row['precision']:>9.4f}  {row['recall']:.4f}  {row['f1']:.4f}"
        for name, row in zip(names, evaluation.per_class, strict=True)
    ]
    return [head, *rows]


def command(recipe: Recipe, directory: pathlib.Path | None) -> str:
    """The command that was given, writing to another run directory, or to a new one."""
    given = sys.argv[1:]
    flags = [
        flag
        for before, flag in zip(["", *given], given, strict=False)
        if "--run" not in (before, flag) and not flag.startswith("--run=")
    ]
    named = [] if directory is None else ["--run", str(directory)]
    return shlex.join(["python", "-m", f"experiments.{recipe.name}", *flags, *named])
