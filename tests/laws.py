"""The laws, as functions over one table of models and one table of techniques.

A new technique is one more row in TECHNIQUES: it then goes through every law.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lepton_jax as lp
from lepton_jax import data, keys, mesh, step, tree
from lepton_jax.types import GradFn, Loss, Model, Step, TrainState

BATCH = 16
CLASSES = 10


class Technique(NamedTuple):
    """How a technique enters: as a Loss, as a GradFn, or as a Step, with the stats that it starts from."""

    loss: Callable[[Loss], Loss] = lambda loss: loss
    gradient: Callable[[Loss], GradFn] = lp.plain
    around: Callable[[GradFn], GradFn] = lambda gradient: gradient  # outside accumulation
    step: Callable[[Step], Step] = lambda step: step
    stats: Callable[[], dict[str, Any]] = dict
    deterministic: bool = True  # the same loss as without it, up to rounding
    across: bool = False  # examples see each other, so that a microbatch is another batch
    start: Callable[[TrainState], TrainState] = lambda state: state
    rules: Callable[[Any], Any] = lambda rules: rules
    axes: str = "data=2,fsdp=2,model=2"  # a mesh that it works on


def shifted(loss: Loss) -> Loss:
    """Random crops, flips and colors."""
    augment = lp.augment.compose(
        lp.augment.random_crop(8, padding=1),
        lp.augment.random_horizontal_flip(),
        lp.augment.color_jitter(0.4),
    )
    return lp.augmented(loss, augment)


def mixing() -> lp.augment.mixing.Mixing:
    """Blended or pasted, each example with a partner drawn anew."""
    return lp.augment.mixup_or_cutmix(CLASSES, by="example", partner="permutation")


def pruned() -> lp.compress.Compression:
    """Half of the weights gone at the third step, by magnitude."""
    densities = lp.compress.uniform(0.5)
    return lp.compress.prune(lp.compress.magnitude, lp.compress.within(densities), lp.compress.once(2))


def diloco() -> optax.GradientTransformation:
    """What merges models trained apart."""
    return optax.sgd(0.7, momentum=0.9, nesterov=True)


def federated(loss: Loss) -> GradFn:
    """Each example a client of its own, who makes one step of SGD(1.0)."""
    sgd = optax.sgd(1.0)
    gradient = lp.federated.federated(lp.federated.local(lp.descend(lp.plain(loss), sgd), sgd))

    def of_examples(params: Any, stats: Any, batch: Any, key: Any) -> Any:
        columns = {name: x[:, None, None] for name, x in {**batch, "index": keys.index(batch)}.items()}
        return gradient(params, stats, {**columns, "client": keys.index(batch)}, key)

    return of_examples


def ledger(noise: float, clip: float) -> Callable[[Any], dict[str, Any]]:
    """What private gradients start from."""
    parts = lp.privacy.constant(noise), lp.privacy.flat(clip)
    return lambda params: lp.privacy.started(params, *parts)


TECHNIQUES = {
    "plain": Technique(),
    "accumulate": Technique(gradient=lambda loss: lp.accumulate(lp.plain(loss), 2)),
    "augmented": Technique(loss=shifted, deterministic=False),
    "through": Technique(
        loss=lambda loss: lp.through(loss, lambda params: tree.scale(params, 0.5)), deterministic=False
    ),
    "resident": Technique(loss=lambda loss: lp.resident(loss, digits().columns["input"])),
    "rematerialized": Technique(loss=lambda loss: lp.rematerialized(loss)),
    "scaled": Technique(gradient=lp.scaled, stats=lambda: {"loss_scale": lp.loss_scale()}),
    "sharp": Technique(around=lambda gradient: lp.sharpness_aware(gradient, 0.05), deterministic=False),
    "mixed": Technique(loss=lambda loss: lp.mixed(loss, mixing()), deterministic=False, across=True),
    "mixed around": Technique(around=lambda gradient: lp.mixed(gradient, mixing()), deterministic=False),
    "sharded": Technique(around=lambda gradient: lp.sharded(gradient, 2), axes="2x1"),
    "compressed": Technique(
        around=lambda gradient: lp.compress.compressed(gradient, pruned()),
        stats=lambda: {"compress": lambda params: pruned().init(params)[1]},
    ),
    "federated": Technique(gradient=federated),
    "private": Technique(
        gradient=lambda loss: lp.privacy.clipped(loss, 1e6),
        around=lambda gradient: lp.privacy.noised(gradient, 0.0, 1e6, BATCH),
        stats=lambda: {"privacy": ledger(0.0, 1e6)},
    ),
    "noised": Technique(
        gradient=lambda loss: lp.privacy.clipped(loss, 0.5),
        around=lambda gradient: lp.privacy.noised(gradient, 1.0, 0.5, BATCH),
        stats=lambda: {"privacy": ledger(1.0, 0.5)},
        deterministic=False,
    ),
    "averaged": Technique(step=lambda step: lp.averaged(step, 0.9), stats=lambda: {"ema": lp.step.ema}),
    "apart": Technique(
        step=lambda step: lp.replicas.apart(step, diloco(), 2, every=3),
        start=lambda state: lp.replicas.started(state, diloco(), 2),
        rules=lp.replicas.rules,
    ),
    "all": Technique(
        loss=lambda loss: lp.rematerialized(shifted(loss)),
        gradient=lambda loss: lp.accumulate(lp.scaled(loss), 2),
        step=lambda step: lp.averaged(step, 0.9),
        stats=lambda: {"loss_scale": lp.loss_scale(), "ema": lp.step.ema},
        deterministic=False,
    ),
}


class Smooth(nn.Module):
    """Convolutions and batch norm as in a ResNet, and no kink: rounding cannot take a unit to the other side of one."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for number, features in enumerate((8, 16)):
            x = nn.Conv(features, (3, 3), use_bias=False, name=f"conv{number}")(x)
            x = nn.gelu(nn.BatchNorm(not train, momentum=0.9, name=f"norm{number}")(x))
        return nn.Dense(CLASSES, name="head")(jnp.mean(x, (1, 2)))


def transformer(make: Callable[..., Model], depth: int) -> Model:
    """A class token before 16 patches, so that no axis divides the tokens; all that draws at random; heads for 4."""
    return make(lp.models.vit.Size(16, depth, 4), CLASSES, patch=2, dropout=0.1, stochastic_depth=0.2)


def models() -> dict[str, Callable[[], Model]]:
    """A model without batch statistics, one with, one that draws at random, one without kinks, and transformers."""
    from lepton_jax import models

    mean, std = np.array([0.3], np.float32), np.array([0.4], np.float32)
    return {
        "mlp": lambda: models.normalized(models.mlp((32, 32), CLASSES), mean, std),
        "resnet": lambda: models.normalized(models.resnet.small(8, CLASSES), mean, std),
        "dropout": lambda: models.normalized(models.cnn(CLASSES, widths=(8, 16), hidden=32, dropout=0.5), mean, std),
        "smooth": lambda: models.normalized(models.linen(Smooth()), mean, std),
        "vit": lambda: models.normalized(transformer(models.vit.standard, 2), mean, std),
        "stacked": lambda: models.normalized(transformer(models.stacked.vision_transformer, 4), mean, std),
    }


def digits() -> data.Source:
    """Eighty real digits: five batches, so that fifty steps see ten epochs."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[:80, ..., None] * (255 / 16)).astype(np.uint8)
    return data.Arrays({"input": images, "label": digits.target[:80].astype(np.int32)})


class Run(NamedTuple):
    """What a short run left behind."""

    losses: np.ndarray
    state: TrainState
    samples: np.ndarray


def optimizer(name: str = "sgd") -> optax.GradientTransformation:
    """Momentum and decay, so that the optimizer has state of its own."""
    return lp.optimizers.build(name, lambda count: 0.05, weight_decay=1e-4)


def gradient(model: Model, technique: Technique) -> GradFn:
    """The gradient of a model through a technique."""
    return technique.around(technique.gradient(technique.loss(lp.supervised(model, lp.cross_entropy()))))


def beginning(model: Model, technique: Technique, dtype: Any = jnp.float32, by: str = "sgd") -> TrainState:
    """The state before the first step, its numbers in `dtype`."""
    inputs = step.shapes(data.Stream(digits(), BATCH, 0).batch(0)["input"])
    state = step.initial(model, optimizer(by), jax.random.key(7), inputs, **technique.stats())
    parts = {part: tree.cast(getattr(state, part), dtype) for part in ("params", "stats", "opt_state")}
    return technique.start(state._replace(**parts))


def update(model: Model, technique: Technique, by: str = "sgd") -> Step:
    """One update of a model through a technique."""
    return technique.step(lp.descend(gradient(model, technique), optimizer(by)))


def train(model: Model, technique: Technique, axes: str, steps: int, dtype: Any = jnp.float32, by: str = "sgd") -> Run:
    """A short run on a mesh, as a user's would go."""
    over = mesh.make(axes)
    stream = data.Stream(digits(), BATCH, 3)
    rules = technique.rules(model.rules)
    state = step.place(beginning(model, technique, dtype, by), over, rules)
    compiled = step.compile(update(model, technique, by), state, stream.batch(0), over, rules)
    losses, samples = [], []
    for number in range(steps):
        batch = stream.batch(number)
        state, metrics = compiled(state, mesh.place(batch, over))
        losses.append(metrics["loss"].value())
        samples.append(batch["index"])
    return Run(
        np.array(losses),
        jax.device_get(state._replace(key=jax.random.key_data(state.key))),
        np.array(samples),
    )


def partings(model: Model, technique: Technique, axes: str, steps: int) -> list[float]:
    """At each step of a float32 run on one device, how far from its parameters the same step on a mesh ends."""
    stream, state = data.Stream(digits(), BATCH, 3), beginning(model, technique)
    compiled = {}
    for name in ("1x1", axes):
        over = mesh.make(name)
        placed = step.place(state, over, model.rules)
        compiled[over] = step.compile(update(model, technique), placed, stream.batch(0), over, model.rules)
    found = []
    for number in range(steps):
        ends = []
        for over, run in compiled.items():
            # a copy, for the step gives its state's buffers away
            begun = step.place(jax.tree.map(jnp.copy, state), over, model.rules)
            ends.append(run(begun, mesh.place(stream.batch(number), over))[0])
        state = jax.device_put(ends[0], jax.devices()[0])
        found.append(tree.distance(ends[1].params, ends[0].params))
    return found


def gradient_of(model: Model, technique: Technique, batch: dict[str, Any]) -> tuple[Any, Any]:
    """(mean gradient, mean loss) at the beginning, for one batch."""
    state = beginning(model, technique)
    mean, aux = jax.jit(gradient(model, technique))(state.params, state.stats, batch, jax.random.key(5))
    return mean.value(), aux.metrics["loss"].value()


def traces(model: Model, technique: Technique, steps: int) -> int:
    """How often the model is traced in a run of `steps` steps."""
    count = 0

    def apply(*args: Any) -> Any:
        nonlocal count
        count += 1
        return model.apply(*args)

    train(model._replace(apply=apply), technique, "4x2", steps)
    return count


def padded(batch: dict[str, Any], to: int) -> dict[str, Any]:
    """The batch with rows of weight 0 that hold nonsense."""
    rows = keys.size(batch)
    extra = {"input": np.full((to - rows, *batch["input"].shape[1:]), 255, np.uint8)}
    extra["label"] = np.zeros(to - rows, np.int32)
    extra["index"] = np.arange(10_000, 10_000 + to - rows, dtype=np.int32)
    weight = np.concatenate([np.ones(rows, np.float32), np.zeros(to - rows, np.float32)])
    return {**{name: np.concatenate([batch[name], rest]) for name, rest in extra.items()}, "weight": weight}
