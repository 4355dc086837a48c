"""A finished run made smaller: tuned through a compression, audited, and shipped as one packed file."""

import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import compress, data, decay, evaluate, keys, losses, models, optimizers, report, runs, schedules, train
from lepton_jax import step as steps
from lepton_jax.compress import activations, comparison, distill, evaluation, file, masks, programs
from lepton_jax.errors import InputError, unknown
from lepton_jax.finished import Finished
from lepton_jax.gradients import plain
from lepton_jax.report import tradeoff
from lepton_jax.types import Model, Step, TrainState, Variables

FOLDER = "compressed"  # in the run's directory
TIMED = 128  # examples in the larger of the batches that are timed
RULES = ("floats", "whole numbers")


@dataclass(frozen=True)
class Small:
    """A model made smaller, as it is shipped.

    model: the original at these widths, unpacked; variables: packed. rule: how its products are made, of `RULES`. kept:
    the channels that are left, where some were removed.
    """

    model: Model
    variables: Variables
    rule: str = "floats"
    kept: Mapping[str, Any] | None = None


def multiplied(rule: str) -> evaluation.Rule:
    """How this machine makes products by a rule of `RULES`: whole numbers in the fastest way that gives their bits."""
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    if rule == "floats":
        return evaluation.multiplied
    return activations.whole_in_floats if jax.default_backend() == "cpu" else activations.whole_numbers


def images(run: Finished, batches: int = 8) -> list[Any]:
    """Batches of training inputs, not augmented, for calibration: the same ones whenever asked for."""
    return [jnp.asarray(run.recipe.stream.batch(number)["input"]) for number in range(batches)]


def training_loss(run: Finished, batches: int = 8) -> Callable[[Variables], float]:
    """The mean loss of the run's model over the batches of `images`, in evaluation, by its variables."""
    drawn = [run.recipe.stream.batch(number) for number in range(batches)]
    inputs, labels = (jnp.concatenate([jnp.asarray(batch[name]) for batch in drawn]) for name in ("input", "label"))

    @jax.jit
    def mean(variables: Variables) -> Any:
        outputs, _ = run.model.apply(variables, inputs, False, None)
        return jnp.mean(run.recipe.criterion(outputs, labels))

    return lambda variables: float(mean(variables))


def scorer(run: Finished) -> Callable[[Model, Variables], float]:
    """Test accuracy in [0, 1] of a model on its variables."""
    dataset, config = run.recipe.dataset, run.config
    size = evaluate.batch_size_for(run.mesh, min(config.eval_batch_size, len(dataset.test)))

    def score(model: Model, variables: Variables) -> float:
        judge = evaluate.evaluator(model, run.recipe.criterion, run.mesh, len(dataset.classes))
        others = {name: jax.tree.map(jnp.asarray, part) for name, part in variables.items()}
        params = others.pop("params")
        batches = data.evaluation_batches(dataset.test, size)
        return judge(params, {"model": others}, batches).metrics["accuracy"]

    return score


def tuned(
    run: Finished,
    model: Model,
    variables: Variables,
    compression: compress.Compression,
    epochs: float,
    learning_rate: float,
    teacher: float,
) -> tuple[Variables, Any]:
    """(variables with what is trained in params, the compression's state) after training through the compression.

    On the run's data, augmentation and batches, by SGD with momentum and a cosine. teacher: the weight of what the
    run's own model teaches the smaller one (`distill.hinton`), beside the labels. model: sees what the compression's
    view shows. Masked weights are held at zero.
    """
    stream, recipe = run.recipe.stream, run.recipe
    total = stream.steps(epochs)
    rate = schedules.build("cosine", learning_rate, total, stream.steps_per_epoch)
    optimizer = optimizers.build("sgd", rate, weight_decay=run.config.weight_decay, mask=decay.undecayed())
    criterion = distill.hinton(weight=teacher, criterion=recipe.criterion) if teacher else recipe.criterion
    loss = losses.supervised(model, criterion)
    if teacher:
        loss = losses.taught(loss, (run.model, run.variables))
    step = steps.descend(compress.compressed(plain(recipe.around(loss)), compression), optimizer)
    params, state = compression.init(variables["params"])
    others = {name: part for name, part in variables.items() if name != "params"}
    stats = {"compress": state, **({"model": others} if others else {})}
    start = TrainState(jnp.int32(0), params, stats, optimizer.init(params), keys.seeded(run.config.seed))
    with report.screen(total) as reporter:
        job = train.Job(_held(step, state), stream, run.mesh, total, reporter=reporter, log_every=run.config.log_every)
        # copied: the loop gives its buffers away, and the run's own must stay
        end, _ = train.fit(job, jax.tree.map(jnp.copy, start))
    return {"params": end.params, **end.stats.get("model", {})}, end.stats["compress"]


def _held(step: Step, state: Any) -> Step:
    return masks.held(step) if masks.found(state) else step


def shipped(run: Finished, small: Small, name: str) -> dict[str, Any]:
    """Write RUN/compressed/NAME.lepton and its audit, and return the audit. Raises InputError where it cannot."""
    directory = run.directory / FOLDER
    with runs.writing(directory):
        directory.mkdir(exist_ok=True)
        file.save(directory / f"{name}.lepton", small.variables, about(run, small))
    return audited(run, name)


def audited(run: Finished, name: str) -> dict[str, Any]:
    """Write RUN/compressed/NAME.json, the audit of the model that is read from NAME.lepton beside it, and return it.

    Raises InputError where there is no such file, or nothing can be written.
    """
    directory = run.directory / FOLDER
    again = load(directory / f"{name}.lepton", run.model)
    inputs = np.concatenate([np.asarray(part) for part in images(run, -(-TIMED // run.config.batch_size))])
    before = comparison.Subject("dense", run.model, run.variables)
    after = comparison.Subject(name, *again)
    record = comparison.audit(before, after, jnp.asarray(inputs[:TIMED]), scorer(run), programs.macs, (1, TIMED))
    with runs.writing(directory):
        runs.write(directory / f"{name}.json", record)
    return record


def told(run: Finished, name: str, record: Mapping[str, Any]) -> None:
    """Print an audit, and write the report of all of the run's audits."""
    directory, device = run.directory / FOLDER, jax.devices()[0].device_kind
    page = tradeoff.write(directory, f"Compressions of {run.directory.name}", audits(directory), device)
    print(comparison.table(record))
    print(f"files      {directory / name}.lepton  {directory / name}.json  {page}")


def about(run: Finished, small: Small) -> dict[str, Any]:
    """What a packed file says of itself: how to build its model, and what goes in and comes out."""
    dataset = run.recipe.dataset
    mean, std = data.statistics(dataset.train)
    kept = small.kept or {}
    return {
        "experiment": run.recipe.name,
        "network": getattr(run.config, "model", None),
        "classes": list(dataset.classes),
        "input": list(dataset.input_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "rule": small.rule,
        "kept": {name: ["".join("01"[int(bit)] for bit in mask) for mask in each] for name, each in kept.items()},
    }


def load(path: str | pathlib.Path, model: Model | None = None) -> tuple[Model, Variables]:
    """(model, variables) of a packed file: `model.apply(variables, images, False, None)` runs on the packed leaves.

    model: the original, of which the file's was made; by default the built-in network that the file names. Raises
    InputError for a file that is damaged, or that names no such network.
    """
    packed = file.load(path)
    try:
        model, kept, rule = model or _named(packed.about), _kept(packed.about["kept"]), multiplied(packed.about["rule"])
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{path} does not say what model it is of: {error}"
        raise InputError(problem, "give the original model, or a file that experiments.compress wrote") from error
    return evaluation.applied(compress.shrunk(model, kept) if kept else model, rule), packed.tree


def _named(about: Mapping[str, Any]) -> Model:
    mean, std = (np.asarray(about[name], np.float32) for name in ("mean", "std"))
    return models.normalized(models.build(about["network"], len(about["classes"])), mean, std)


def _kept(masks: Mapping[str, list[str]]) -> dict[str, tuple[np.ndarray, ...]]:
    return {name: tuple(np.array([bit == "1" for bit in mask]) for mask in each) for name, each in masks.items()}


def audits(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The audits in a directory, by name."""
    found = sorted(directory.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}
