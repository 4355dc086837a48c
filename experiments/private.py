"""Images of about 28x28 under differential privacy (Abadi et al. 2016, https://arxiv.org/abs/1607.00133): accuracy with
its epsilon and delta, and the same model without privacy beside it.

python -m experiments.private --epsilon 3 --seeds 3
python -m experiments.private --preset images --data idx --data-dir MNIST --epsilon 3
python -m experiments.private --preset images --data-dir pathmnist.npz
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import lepton_jax as lp


@dataclass(frozen=True)
class Config(lp.cli.Config):
    """Train a classifier of images with differential privacy, and the same one without."""

    epsilon: float = 3.0
    """The budget: the noise is the least that keeps the whole run within it."""
    delta: float = 1e-5
    """The probability that epsilon may be passed with; below one over the number of training examples."""
    clipping_norm: float = 1.0
    """The greatest norm of an example's gradient."""
    clipping: str = "flat"
    """flat, per-layer, automatic (AUTO-S), or adaptive (to the median, by a private count)."""
    noise: str = "constant"
    """Over the steps: constant, step (half as much after two thirds), exponential or linear (to half), or banded
    (correlated over eight steps)."""
    sampling: str = "poisson"
    """poisson (each example by itself), or fixed (batches of one size, which cost more)."""
    engine: str = "ghost"
    """How gradients are clipped: ghost, two-pass, or vmapped. The result is the same."""
    features: str = "scattering"
    """What the model sees: scattering (a fixed transform, and the pixels, computed once unless there are copies), or
    pixels."""
    model: str = "linear"
    """linear, mlp, cnn, wrn16-4-group; a model with batch norm is refused."""
    copies: int = 1
    """Average each example's gradient over so many augmented copies before it is clipped; 1 does not augment."""
    baseline: bool = True
    """Train the same model without privacy, too."""
    baseline_epochs: float = 60
    """Epochs of that."""
    baseline_batch_size: int = 128
    """Its batch."""
    baseline_learning_rate: float = 0.5
    """Its learning rate."""

    def check(self) -> None:
        """Raise InputError for what would not be private, or would not be this run."""
        super().check()
        parts = {"--microbatches": self.microbatches, "--mesh": self.mesh}
        for name, value in parts.items():
            if value == "auto":
                raise lp.InputError(f"{name} auto composes a step without privacy", f"give {name} a value")
        for name in ("bitwise", "sharpness", "spike", "rollbacks"):
            if getattr(self, name):
                problem = f"--{name} {getattr(self, name)} looks at the gradient or the loss again, without noise"
                raise lp.InputError(problem, f"leave --{name} {0 if name == 'rollbacks' else 'out'}")
        if self.precision == "float16":
            raise lp.InputError("--precision float16 scales the loss by what it sees", "use bfloat16 or float32")


STILL = Config(schedule="constant", weight_decay=0.0, rollbacks=0)
PRESETS = {
    "digits": replace(
        STILL,
        epochs=60,
        batch_size=1024,
        learning_rate=0.3,
        ema=0.97,
        log_every=10,
        eval_every=20,
        checkpoint_every=20,
    ),
    "images": replace(
        STILL,
        data="npz",
        epochs=40,
        batch_size=4096,
        learning_rate=1.0,
        ema=0.99,
        microbatches=4,
        log_every=50,
        eval_every=10,
        checkpoint_every=5,
        baseline_epochs=20,
        baseline_learning_rate=0.2,
    ),
    "smoke": replace(STILL, epochs=2, batch_size=256, features="pixels", learning_rate=1.0, baseline_epochs=1),
}


class Given(NamedTuple):
    """Data, plan, engine, the model of images, and what is trained: a model of examples, perhaps of features."""

    dataset: "lp.data.Dataset"
    plan: "lp.privacy.Plan"
    engine: "lp.privacy.Engine"
    model: "lp.types.Model"
    trained: "lp.types.Model"
    examples: "lp.data.Source"


def compose(config: Config, given: Given | None = None) -> "lp.recipe.Recipe":
    """Data, model, loss, plan and update as the flags say. given: what `read` has found for these flags."""
    dataset, plan, engine, model, trained, examples = given or read(config)
    stream = plan.stream(examples, config.seed)
    criterion = lp.cross_entropy(config.label_smoothing)
    schedule, optimizer = lp.recipe.optimization(config, stream)

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        return copied(lp.computed(loss, config.precision), config, dataset.input_shape)

    loss = around(lp.supervised(trained, criterion))
    step = lp.descend(lp.privacy.private(loss, plan, engine, config.parts), optimizer)
    step, stats = lp.recipe.averaged(config, step, {"privacy": plan.start})

    def require(state: "lp.types.TrainState") -> None:
        plan.require(step, state, stream, stream.steps(config.epochs))

    parts = (dataset, stream, model, criterion, optimizer, schedule, step, around, stats)
    return lp.recipe.Recipe("private", *parts, require=require)


def main(config: Config) -> "lp.experiment.Result":
    """Run the recipe, and the one without privacy beside it."""
    given = read(config)
    result = lp.experiment.run(compose(config, given), config)
    if config.find_learning_rate or config.explain_sharding:
        return result
    steps = lp.runs.result(result.directory)["steps"]
    claim = given.plan.told(steps)
    measured = {"epsilon": claim["epsilon"], "delta": claim["delta"]}
    if config.baseline:
        beside = without_privacy(config, given, str(result.directory / "baseline"))
        measured |= {f"baseline/{name}": value for name, value in beside.metrics.items()}
    metrics = lp.runs.amend(result.directory, measured, privacy=claim)["metrics"]
    cost = f"epsilon {claim['epsilon']:.4g}, delta {config.delta:g} ({claim['accountant']}, {claim['relation']})"
    said = f"private    accuracy {metrics['test/accuracy']:.4f} at {cost}"
    print(said, f"baseline   accuracy {metrics.get('baseline/test/accuracy', math.nan):.4f} without privacy", sep="\n")
    return result._replace(metrics=metrics)


def without_privacy(config: Config, given: Given, directory: str) -> "lp.experiment.Result":
    """The same model on the same data, by plain gradients."""
    changed = {name: getattr(config, f"baseline_{name}") for name in ("epochs", "batch_size", "learning_rate")}
    config = replace(config, run=directory, ema=0.0, microbatches=1, eval_every=math.inf, **changed)
    stream = lp.data.Stream(given.examples, config.batch_size, config.seed)
    criterion = lp.cross_entropy(config.label_smoothing)
    schedule, optimizer = lp.recipe.optimization(config, stream)
    step = lp.descend(lp.plain(lp.supervised(given.trained, criterion)), optimizer)
    parts = (given.dataset, stream, given.model, criterion, optimizer, schedule, step, lambda loss: loss)
    return lp.experiment.run(lp.recipe.Recipe("private", *parts), config)


def planned(config: Config, dataset: "lp.data.Dataset") -> "lp.privacy.Plan":
    """What the flags ask for, with the noise that keeps to the budget."""
    examples = len(dataset.train)
    steps = math.ceil(config.epochs * examples / config.batch_size)
    rules = {
        "flat": lp.privacy.flat,
        "per-layer": lp.privacy.per_layer,
        "automatic": lp.privacy.automatic,
        "adaptive": lambda norm: lp.privacy.adaptive(norm, noise=config.batch_size / 20),
    }
    courses = {
        "constant": lambda: lp.privacy.constant(1.0),
        "step": lambda: lp.privacy.stepwise(1.0, 0.5, max(1, 2 * steps // 3), steps),
        "exponential": lambda: lp.privacy.exponential(1.0, 0.5, steps),
        "linear": lambda: lp.privacy.linear(1.0, 0.5, steps),
        "banded": lambda: lp.privacy.banded(1.0, 8),
    }
    rule = lp.errors.named("clipping", config.clipping, rules)(config.clipping_norm)
    noise = lp.errors.named("noise", config.noise, courses)()
    devices = math.prod(lp.mesh.parse(config.mesh).values()) if config.mesh else 8
    return lp.privacy.plan(
        examples,
        config.batch_size,
        steps,
        rule,
        noise,
        config.delta,
        epsilon=config.epsilon,
        sampling=config.sampling,
        multiple=devices * config.parts if config.sampling == "poisson" else 1,
    )


def read(config: Config) -> Given:
    """Data, plan and model as the flags say. Nothing is measured on the data, which would not be private.

    Features that nothing changes are computed here, once, where memory holds them.
    """
    dataset = lp.recipe.dataset(config)
    # these first: they refuse at once what features may take a minute for
    engines = {"ghost": lp.privacy.ghost, "two-pass": lp.privacy.two_pass, "vmapped": lp.privacy.vmapped}
    engine, plan = lp.errors.named("engine", config.engine, engines), planned(config, dataset)
    classes = len(dataset.classes)
    network = lp.models.mlp((), classes) if config.model == "linear" else lp.models.build(config.model, classes)
    views = {
        "scattering": lambda: lp.privacy.featured(network, seen),
        "pixels": lambda: lp.models.normalized(network, 0.5, 0.5),
    }
    model = lp.errors.named("features", config.features, views)()
    if config.features == "scattering" and config.copies == 1:
        ahead = lp.data.mapped(dataset.train, seen)
        if ahead is not None:
            return Given(dataset, plan, engine, model, network, ahead)
    return Given(dataset, plan, engine, model, model, dataset.train)


def seen(images: Any) -> Any:
    """Scattered images, without their averages, and the images themselves, each at a length of its own."""
    import jax.numpy as jnp

    images = lp.models.unit(images)
    scattered = lp.privacy.scattering(images, scales=1 if images.shape[1] < 16 else 2)
    parts = lp.privacy.normed(scattered[..., images.shape[-1] :], 7.0), lp.privacy.normed(images, 4.0)
    return jnp.concatenate(parts, axis=1)


def copied(loss: "lp.types.Loss", config: Config, shape: tuple[int, ...]) -> "lp.types.Loss":
    """The loss over shifted copies of each image."""
    if config.copies == 1:
        return loss
    shift = lp.augment.random_crop(shape[0], padding=max(1, shape[0] // 14))
    return lp.privacy.multiplied(lp.augmented(loss, shift), config.copies)


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
