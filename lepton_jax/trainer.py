"""`Trainer`: the same functions, arranged for a notebook."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lepton_jax import checkpoint, data, evaluate, losses, models, optimizers, precision, report, schedules, train
from lepton_jax import mesh as meshes
from lepton_jax import step as steps
from lepton_jax.errors import InputError, unknown
from lepton_jax.types import Model, TrainState

LOSSES = {"cross_entropy": losses.cross_entropy(), "squared_error": losses.squared_error}


class Trainer:
    """Trains a model on arrays.

        trainer = Trainer(mesh="8x1").fit(model, (images, labels), valid=(more, theirs), batch_size=100, epochs=10)
        trainer.results["accuracy"], trainer.predict(images)

    mesh: as "8x1" or "data=4,fsdp=2"; all accelerators, or one CPU, by default. precision: float32, bfloat16 or
    float16. run: a directory for checkpoints, from which the same `fit` goes on; none by default.
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
        self.mesh = meshes.make(mesh)
        self.precision, self.microbatches, self.seed, self.log_every = precision, microbatches, seed, log_every
        self.directory = None if run is None else pathlib.Path(run)
        self.verbose = verbose
        self.results: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.state: TrainState | None = None
        self.model: Model | None = None
        self._criterion: Any = None

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
        loss: Any = "cross_entropy",
        augment: Any = None,
    ) -> "Trainer":
        """Train, and evaluate on `valid` after every epoch where it is given.

        model: a Linen or NNX module, an (init, apply) pair, or a Model. train, valid: (inputs, labels), a dict with
        "input" and "label", or anything with len() and [i]. optimizer, schedule: names, or optax's; a learning
        rate serves the names only. loss: a name, or a function (outputs, labels) -> a loss per example. augment:
        (key, input) -> input. Raises InputError.
        """
        self.model, self._criterion = models.as_model(model), _named(LOSSES, "loss", loss)
        stream = data.Stream(data.as_source(train), batch_size, self.seed)
        _check_batch(batch_size, self.microbatches, meshes.batch_shards(self.mesh))
        total = stream.steps(epochs)
        if isinstance(schedule, str):
            schedule = schedules.build(schedule, learning_rate, total, stream.steps_per_epoch)
        if isinstance(optimizer, str):
            optimizer = optimizers.build(optimizer, schedule)
        loss_fn = losses.supervised(self.model, self._criterion)
        loss_fn = precision.computed(loss_fn, self.precision)
        loss_fn = losses.augmented(loss_fn, augment) if augment else loss_fn
        gradient, stats = precision.differentiated(loss_fn, self.precision)
        ...
        return self
