"""What a recipe composes, and its parts that flags name: data, schedule and optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, field

import optax

from lepton_jax import data, decay, finder, gradients, optimizers, precision, rematerialization, schedules
from lepton_jax import step as steps
from lepton_jax.config import Config, flag
from lepton_jax.errors import InputError
from lepton_jax.losses import Criterion
from lepton_jax.types import GradFn, Loss, Model, Stats, Step, TrainState

# flags that only these schedules have
TAKEN_BY = {"gamma": ("step", "exponential"), "step_size": ("step",)}


@dataclass(frozen=True)
class Recipe:
    """What a recipe has composed. `stats` are the entries that its techniques start from.

    around: what it puts around a supervised loss, precision and augmentation, for those who compose it anew.
    require: raises InputError where the state before the first step does not fit what was composed.
    """

    name: str
    dataset: data.Dataset
    stream: data.Batches
    model: Model
    criterion: Criterion
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    step: Step
    around: Callable[[Loss], Loss]
    stats: Stats = field(default_factory=dict)
    require: Callable[[TrainState], None] = lambda state: None


def dataset(config: Config, by: str | None = None) -> data.Dataset:
    """The data that the flags name, checked. by: a field that says whose an example is. Raises InputError."""
    options = {"image_size": config.image_size, "on_bad_image": config.on_bad_image}
    whole = data.load(config.data, config.data_dir, seed=config.seed, by=by, **options)
    return whole if config.examples is None else part(whole, config.examples)


def part(dataset: data.Dataset, examples: int) -> data.Dataset:
    """The same data set with so many training examples, the same ones whatever the seed. Raises InputError."""
    there = len(dataset.train)
    if examples > there:
        problem = f"--examples {examples} are more than the {there} training examples"
        raise InputError(problem, f"give at most {there}, or leave it out for all")
    if examples == there:
        return dataset
    return dataset._replace(train=data.split(dataset.train, (examples / there, 1 - examples / there), seed=0)[0])


def step(config: Config, loss: Loss, optimizer: optax.GradientTransformation) -> tuple[Step, Stats]:
    """The update that the flags make of a loss, and the stats that its techniques start from. Raises InputError."""
    derived, stats = gradient(config, loss)
    return averaged(config, steps.descend(derived, optimizer), stats)


def gradient(config: Config, loss: Loss) -> tuple[GradFn, Stats]:
    """The gradient that the flags make of a loss, and the stats that its techniques start from.

    From the inside out: rematerialization, loss scaling, microbatches, virtual shards, sharpness. Raises InputError.
    """
    if config.remat:
        loss = rematerialization.rematerialized(loss, config.remat)
    derived, stats = precision.differentiated(loss, config.precision)
    derived = gradients.accumulate(derived, config.parts)
    if config.bitwise:
        derived = gradients.sharded(derived, config.bitwise)
    if config.sharpness:
        derived = gradients.sharpness_aware(derived, config.sharpness)
    return derived, stats


def averaged(config: Config, update: Step, stats: Stats) -> tuple[Step, Stats]:
    """The update with the average of `--ema` around it, where that is asked for, and the stats with its start."""
    if not config.ema:
        return update, stats
    return steps.averaged(update, config.ema), {**stats, "ema": steps.ema}


def optimization(config: Config, stream: data.Batches) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule and the optimizer that the flags name; the finder's sweep for --find-learning-rate.

    Raises InputError.
    """
    schedule = schedules.sweep(*finder.RANGE) if config.find_learning_rate else scheduled(config, stream)
    optimizer = optimized(config, schedule)
    if config.schedule == "plateau" and not config.find_learning_rate:
        optimizer = optax.chain(optimizer, optimizers.reduce_on_plateau(stream.steps_per_epoch))
    return schedule, optimizer


def optimized(config: Config, schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The optimizer that the flags name, at that learning rate. Raises InputError."""
    optimizer = optimizers.build(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        mask=decay.undecayed(*config.undecayed),
        clip=config.clip,
    )
    if config.layer_decay < 1:
        optimizer = optax.chain(optimizer, decay.layer_decay(config.layer_decay, config.layers))
    return optimizer


def scheduled(config: Config, stream: data.Batches) -> optax.Schedule:
    """The schedule that the flags name. Raises InputError."""
    options = {name: getattr(config, name) for name in TAKEN_BY if getattr(config, name) is not None}
    for name in options:
        if config.schedule not in TAKEN_BY[name]:
            problem = f"{flag(name)} has no meaning for --schedule {config.schedule}"
            raise InputError(problem, f"leave it out, or choose {' or '.join(TAKEN_BY[name])}")
    return schedules.build(
        config.schedule,
        config.learning_rate,
        stream.steps(config.epochs),
        stream.steps_per_epoch,
        warmup_steps=stream.steps(config.warmup_epochs),
        **options,
    )
