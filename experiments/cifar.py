"""CIFAR-10 by a small network, with what helps one: a policy, erasing, mixed examples, an average of the weights.

python -m experiments.cifar --data-dir CIFAR --seeds 3
python -m experiments.cifar --preset small --data-dir CIFAR --policy none
"""

from dataclasses import dataclass

import lepton_jax as lp


@dataclass(frozen=True)
class Config(lp.cli.Config):
    """Train a classifier of small images with strong augmentation."""

    model: str = "wrn16-4"
    """wrn16-4, wrn28-10, wrn40-4, resnet20, resnet56, resnet18-small ..."""
    policy: str = "trivialaugment"
    """What follows crop and flip: randaugment, trivialaugment, autoaugment, augmix, or standard, for nothing more;
    none is for no crop and no flip either."""
    erasing: float = 0.0
    """The probability that a rectangle of an image is erased."""
    mixing: str = "none"
    """mixup, cutmix, either (one or the other), or none."""


PRESETS = {
    "strong": Config(
        data="cifar10",
        epochs=100,
        batch_size=128,
        learning_rate=0.1,
        warmup_epochs=1,
        label_smoothing=0.1,
        ema=0.999,
        erasing=0.25,
        mixing="cutmix",
        log_every=50,
    ),
    "small": Config(
        data="cifar10",
        examples=2500,
        model="resnet20",
        policy="standard",
        epochs=24,
        batch_size=128,
        learning_rate=0.2,
        warmup_epochs=1,
        eval_every=24,
    ),
    "smoke": Config(model="resnet8", epochs=2, policy="randaugment", erasing=0.25, mixing="either", ema=0.9),
}


def compose(config: Config) -> "lp.recipe.Recipe":
    """Data, model, loss and update as the flags say."""
    dataset = lp.recipe.dataset(config)
    stream = lp.data.Stream(dataset.train, config.batch_size, config.seed)
    network = lp.models.build(config.model, len(dataset.classes))
    model = lp.models.normalized(network, *lp.data.statistics(dataset.train))
    criterion = lp.cross_entropy(config.label_smoothing)
    schedule, optimizer = lp.recipe.optimization(config, stream)

    augment = augmentation(config, dataset.input_shape)
    mixing = lp.augment.mixed_by(config.mixing, len(dataset.classes))

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        return lp.augmented(lp.mixed(lp.computed(loss, config.precision), mixing), augment)

    step, stats = lp.recipe.step(config, around(lp.supervised(model, criterion)), optimizer)
    return lp.recipe.Recipe("cifar", dataset, stream, model, criterion, optimizer, schedule, step, around, stats)


def main(config: Config) -> "lp.experiment.Result":
    """Run the recipe."""
    return lp.experiment.run(compose(config), config)


def augmentation(config: Config, shape: tuple[int, ...]) -> "lp.augment.Transform":
    """Crop and flip, the policy, and erasing, in the order in which torchvision's references have them."""
    size, transforms = shape[0], []
    if config.policy != "none":
        transforms += [lp.augment.random_crop(size, padding=size // 8), lp.augment.random_horizontal_flip()]
    if config.policy not in ("none", "standard"):
        transforms.append(lp.augment.policy(config.policy, shape))
    if config.erasing:
        transforms.append(lp.augment.random_erasing(config.erasing))
    return lp.augment.compose(*transforms) if transforms else lp.augment.identity


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
