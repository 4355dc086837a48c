"""Small medical images in MedMNIST's layout (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8): one .npz of
train_images, train_labels, val_images, val_labels, test_images and test_labels.

Classes are seldom of one size there, so they count the same, and the result is of the checkpoint with the best AUC on
the validation data.

python -m experiments.medical --data-dir pathmnist.npz --seeds 3
"""

from dataclasses import dataclass

import lepton_jax as lp


@dataclass(frozen=True)
class Config(lp.cli.Config):
    """Classify small medical images: accuracy, recall, F1 and AUC."""

    model: str = "cnn"
    """cnn, the one with two convolutions; resnet8, resnet20, resnet18-small, vit-tiny-28 ..."""
    balanced: bool = True
    """Weigh examples so that every class counts the same in training."""
    crop_padding: int = 2
    """Pixels of padding before the random crop."""
    flip: bool = True
    """Mirror half of the images, and turn half of them upside down; wrong where sides matter, as in chest X-rays."""
    rotation: float = 15.0
    """Turn images by up to this many degrees."""
    jitter: float = 0.1
    """Strength of brightness and contrast jitter."""


PRESETS = {
    "medmnist": Config(
        data="npz",
        epochs=30,
        batch_size=128,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-2,
        warmup_epochs=1,
        monitor="auc",
        restore="best",
        log_every=50,
    ),
    "smoke": Config(epochs=2, optimizer="adamw", learning_rate=3e-3, flip=False),
}


def compose(config: Config) -> "lp.recipe.Recipe":
    """Data, model, loss and update as the flags say."""
    dataset = lp.recipe.dataset(config)
    if config.balanced:
        weights = lp.data.class_weights(dataset.train, len(dataset.classes))
        dataset = dataset._replace(train=lp.data.weighted(dataset.train, weights))
    stream = lp.data.Stream(dataset.train, config.batch_size, config.seed)
    network = lp.models.build(config.model, len(dataset.classes))
    model = lp.models.normalized(network, *lp.data.statistics(dataset.train))
    criterion = lp.cross_entropy(config.label_smoothing)
    schedule, optimizer = lp.recipe.optimization(config, stream)

    augment = augmentation(config, dataset.input_shape)

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        return lp.augmented(lp.computed(loss, config.precision), augment)

    step, stats = lp.recipe.step(config, around(lp.supervised(model, criterion)), optimizer)
    return lp.recipe.Recipe("medical", dataset, stream, model, criterion, optimizer, schedule, step, around, stats)


def main(config: Config) -> "lp.experiment.Result":
    """Run the recipe."""
    return lp.experiment.run(compose(config), config)


def augmentation(config: Config, shape: tuple[int, ...]) -> "lp.augment.Transform":
    """What may happen to an image without changing what it shows."""
    transforms = [lp.augment.random_crop(shape[0], padding=config.crop_padding)]
    if config.flip:
        transforms += [lp.augment.random_horizontal_flip(), lp.augment.random_vertical_flip()]
    if config.rotation:
        transforms.append(lp.augment.random_rotation(config.rotation))
    if config.jitter:
        transforms.append(lp.augment.color_jitter(config.jitter, config.jitter))
    return lp.augment.compose(*transforms)


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
