"""`Trainer`: the same functions, arranged for a notebook."""

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lepton_jax import (
    checkpoint,
    data,
    errors,
    evaluate,
    gradients,
    keys,
    losses,
    models,
    optimizers,
    precision,
    report,
    runs,
    schedules,
)
from lepton_jax import mesh as meshes
from lepton_jax import step as steps
from lepton_jax import train as loop
from lepton_jax.cli import PRECISIONS
from lepton_jax.errors import InputError
from lepton_jax.types import Model, TrainState

CRITERIA = {"cross_entropy": losses.cross_entropy(), "squared_error": losses.squared_error}


class Trainer:
    """Trains a model on arrays.

        trainer = Trainer(mesh="8x1").fit(model, (images, labels), valid=(more, theirs), batch_size=100, epochs=10)
        trainer.results["accuracy"]; trainer.predict(images)

    mesh: "8x1", "data=4,fsdp=2" ...; by default all accelerators, or one CPU. precision: float32, bfloat16 or
    float16. run: a directory for checkpoints, from which the same `fit` goes on; none by default. After `fit`,
    `state` is the TrainState, `results` the last evaluation, `history` the logged rows.
    """

    def __init__(
        self,
        *,
        mesh: str | None = None,
        precision: str = "float32",
        microbatches: int = 1,
        run: str | pathlib.Path | None = None,
        seed: int = 0,
        log_every: int = 20,
        verbose: bool = True,
    ):
        if precision not in PRECISIONS:
            raise errors.unknown("precision", precision, PRECISIONS)
        self.mesh = meshes.make(mesh)
        self.precision, self.microbatches, self.seed = precision, microbatches, seed
        self.run, self.log_every, self.verbose = run, log_every, verbose
        self.results: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self._fitted: tuple[Model, losses.Criterion, TrainState] | None = None

    def fit(
        self,
        model: Any,
        train: Any,
        valid: Any = None,
        *,
        batch_size: int = 128,
        epochs: float = 10,
        optimizer: str | optax.GradientTransformation = "adamw",
        schedule: str | optax.Schedule = "cosine",
        learning_rate: float = 1e-3,
        loss: str | losses.Criterion = "cross_entropy",
        augment: Callable[[Any, Any], Any] | None = None,
    ) -> "Trainer":
        """Train from the start, or on from the newest checkpoint of `run`; evaluate on `valid` after every epoch.

        model: a Linen or NNX module, a pair (init, apply), or a Model. train, valid: (inputs, labels), a dict with
        "input" and "label", or anything with len() and [i]. optimizer, schedule: a name, or optax's own; the
        learning rate is for names. loss: a name, or (outputs, labels) -> a loss per example. augment: (key, input)
        -> input, for one example. Raises InputError.
        """
        model, criterion = models.as_model(model), errors.named("loss", loss, CRITERIA)
        stream = data.Stream(data.as_source(train), batch_size, self.seed)
        valid = valid if valid is None else data.as_source(valid)
        steps.check_batch(batch_size, self.microbatches, self.mesh)
        if isinstance(schedule, str):
            schedule = schedules.build(schedule, learning_rate, stream.steps(epochs), stream.steps_per_epoch)
        if isinstance(optimizer, str):
            optimizer = optimizers.build(optimizer, schedule)
        step, stats = self._composed(model, criterion, optimizer, augment)
        inputs = steps.shapes(stream.batch(0)["input"])
        state = steps.initial(model, optimizer, keys.seeded(self.seed), inputs, **stats)
        for split, source in (("train", stream.source), ("valid", valid)):
            if loss == "cross_entropy" and source is not None:
                check_classes(split, source, output_shape(model, state, source)[-1])
        history = report.History()
        job = loop.Job(
            step=step,
            stream=stream,
            mesh=self.mesh,
            steps=stream.steps(epochs),
            rules=model.rules,
            log_every=self.log_every,
            eval_every=1,
            checkpoint_every=1,
            evaluate=valid if valid is None else assessor(model, criterion, self.mesh, state, valid),
            reporter=report.Together([history, report.screen(stream.steps(epochs))] if self.verbose else [history]),
        )
        with job.reporter:
            state, self.results = self._fit(job, state)
        self._fitted, self.history = (model, criterion, state), history.rows
        return self

    def _composed(self, model: Model, criterion: losses.Criterion, optimizer: Any, augment: Any) -> tuple[Any, Any]:
        """The step, and the stats that it starts from."""
        loss = precision.computed(losses.supervised(model, criterion), self.precision)
        if augment is not None:
            loss = losses.augmented(loss, augment)
        gradient, stats = precision.differentiated(loss, self.precision)
        return steps.descend(gradients.accumulate(gradient, self.microbatches), optimizer), stats

    def _fit(self, job: loop.Job, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """`loop.fit`, with checkpoints where there is a directory for them."""
        if self.run is None:
            return loop.fit(job, state)
        with checkpoint.Checkpoints(pathlib.Path(self.run) / "checkpoints") as checkpoints:
            stream = job.stream
            identity = {"data": data.fingerprint(stream.source), "batch_size": stream.batch_size, "seed": stream.seed}
            if checkpoints.latest() is not None:
                state, found = checkpoints.restore(state, self.mesh, job.rules)
                runs.require_same(self.run, found, identity)

            def save(state: TrainState, scores: Mapping[str, float], _: Any) -> None:
                checkpoints.save(state, identity, scores)

            return loop.fit(replace(job, survival=loop.Survival(save, checkpoints.check)), state)

    def evaluate(self, examples: Any) -> dict[str, float]:
        """Loss, and for classification all that `evaluate.Evaluation.metrics` has, on (inputs, labels) or a source."""
        model, criterion, state = self._trained()
        return assessor(model, criterion, self.mesh, state, data.as_source(examples))(state)

    def predict(self, inputs: Any) -> Any:
        """The model's outputs for inputs [n, ...], numpy; logits for a classifier."""
        model, _, state = self._trained()
        return evaluate.predictor(model, self.mesh)(state.params, state.stats, inputs)

    @property
    def state(self) -> TrainState:
        """The TrainState that `fit` ended with."""
        return self._trained()[2]

    def _trained(self) -> tuple[Model, losses.Criterion, TrainState]:
        if self._fitted is None:
            raise InputError("this trainer has not been fitted", "call fit first")
        return self._fitted


def output_shape(model: Model, state: TrainState, source: data.Source) -> tuple[int, ...]:
    """The shape of the model's outputs for one example of a source; (0,) where they are not one array."""
    inputs = data.gather(source, np.array([0]))["input"]
    variables = {"params": state.params, **state.stats.get("model", {})}
    outputs = jax.eval_shape(lambda v: model.apply(v, inputs, False, None)[0], variables)
    return getattr(outputs, "shape", (0,))


def check_classes(split: str, source: data.Source, classes: int) -> None:
    """Raise InputError for labels that cross-entropy would silently take for no class of the model's."""
    labels = data.gather(source, np.array([0])).get("label", np.int32(0))
    if labels.ndim == 1 and labels.dtype.kind == "f":
        problem = f"the {split} labels are {labels.dtype} numbers, and the loss is cross_entropy"
        raise InputError(problem, 'give class numbers as integers, or loss="squared_error" to predict the numbers')
    if labels.shape[1:] != (classes,):  # that would be a distribution over the classes
        data.check_labels(split, source, classes)


def assessor(
    model: Model, criterion: losses.Criterion, mesh: Mesh, state: TrainState, source: data.Source
) -> Callable[[TrainState], dict[str, float]]:
    """State -> metrics on a source: all of a classifier's where labels are integers, else the mean loss."""
    labels, outputs = data.gather(source, np.array([0]))["label"], output_shape(model, state, source)
    size = evaluate.batch_size_for(mesh, min(256, len(source)))
    if labels.ndim == 1 and labels.dtype.kind in "iu" and len(outputs) == 2 and outputs[1] > 1:
        judge = evaluate.evaluator(model, criterion, mesh, outputs[1])
        return lambda state: judge(state.params, state.stats, data.evaluation_batches(source, size)).metrics
    measure = evaluate.loss_evaluator(model, criterion, mesh)
    return lambda state: measure(state.params, state.stats, data.evaluation_batches(source, size))
