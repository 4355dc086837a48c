"""Residual networks for images: He et al. 2015, https://arxiv.org/abs/1512.03385.

python -m experiments.resnet --mesh 8x1
python -m experiments.resnet --preset cifar10 --data-dir CIFAR
python -m experiments.resnet --preset imagenet --data-dir IMAGENET --mesh 8x1
"""

from dataclasses import dataclass

import lepton_jax as lp


@dataclass(frozen=True)
class Config(lp.cli.Config):
    """Train a residual network on images."""

    model: str = "resnet8"
    """resnet8, 20, 56 ... for small images; resnet18, 34, 50, 101 for large ones (resnet18-small for small ones);
    cnn or mlp to compare with."""
    crop_padding: int = 1
    """Pixels of padding before the random crop."""
    flip: bool = False
    """Mirror half of the images; wrong for digits."""
    rotation: float = 10.0
    """Turn images by up to this many degrees."""
    jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter; hue gets a quarter of it."""


PRESETS = {
    "digits": Config(epochs=30, batch_size=64, learning_rate=0.1, warmup_epochs=2),
    "smoke": Config(epochs=2, batch_size=128),
    "cifar10": Config(
        data="cifar10",
        model="resnet20",
        epochs=3,
        batch_size=128,
        learning_rate=0.2,
        warmup_epochs=0.4,
        crop_padding=2,
        flip=True,
        rotation=0.0,
        log_every=50,
    ),
    "cifar10-long": Config(
        data="cifar10",
        model="resnet18-small",
        epochs=30,
        batch_size=512,
        learning_rate=0.4,
        warmup_epochs=5,
        precision="bfloat16",
        label_smoothing=0.1,
        crop_padding=4,
        flip=True,
        rotation=0.0,
        log_every=50,
    ),
    "imagenet": Config(
        data="folder",
        model="resnet50",
        image_size=224,
        epochs=90,
        batch_size=256,
        precision="bfloat16",
        weight_decay=1e-4,
        warmup_epochs=5,
        crop_padding=16,
        flip=True,
        rotation=0.0,
        jitter=0.4,
        label_smoothing=0.1,
    ),
}


def compose(config: Config) -> "lp.recipe.Recipe":
    """Data, model, loss and update as the flags say."""
    dataset = lp.recipe.dataset(config)
    stream = lp.data.Stream(dataset.train, config.batch_size, config.seed)
    network = lp.models.build(config.model, len(dataset.classes))
    model = lp.models.normalized(network, *lp.data.statistics(dataset.train))
    criterion = lp.cross_entropy(config.label_smoothing)
    schedule, optimizer = lp.recipe.optimization(config, stream)
    augment = [lp.augment.random_crop(dataset.input_shape[0], padding=config.crop_padding)]
    if config.flip:
        augment.append(lp.augment.random_horizontal_flip())
    if config.rotation:
        augment.append(lp.augment.random_rotation(config.rotation))
    if config.jitter:
        augment.append(lp.augment.color_jitter(config.jitter, config.jitter, config.jitter, config.jitter / 4))

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        return lp.augmented(lp.computed(loss, config.precision), lp.augment.compose(*augment))

    step, stats = lp.recipe.step(config, around(lp.supervised(model, criterion)), optimizer)
    return lp.recipe.Recipe("resnet", dataset, stream, model, criterion, optimizer, schedule, step, around, stats)


def main(config: Config) -> "lp.experiment.Result":
    """Run the recipe."""
    return lp.experiment.run(compose(config), config)


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
