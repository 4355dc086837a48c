"""Vision Transformers: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.

AdamW, stochastic depth, mixed examples and the decay of matrices alone make up for what convolutions know of images.

python -m experiments.vit --mesh 4x2
python -m experiments.vit --stacked --mesh pipe=2,data=4
python -m experiments.vit --preset cifar10 --data-dir CIFAR
python -m experiments.vit --preset imagenet --data-dir IMAGENET --mesh 8x1
"""

from dataclasses import dataclass, replace

import lepton_jax as lp


@dataclass(frozen=True)
class Config(lp.cli.Config):
    """Train a Vision Transformer on images."""

    width: int = 64
    """Numbers in a token. tiny has 192, small 384, base 768."""
    depth: int = 6
    """Blocks. tiny, small and base have 12."""
    heads: int = 4
    """Heads of attention, which divide the width. tiny has 3, small 6, base 12."""
    stacked: bool = False
    """Keep the parameters of all blocks in one array each: compiles sooner, and a pipe axis splits them into stages."""
    patch: int = 2
    """Pixels of a patch's side, which divides the image's."""
    dropout: float = 0.0
    """Dropout of embeddings and branches."""
    stochastic_depth: float = 0.0
    """The rate at which branches of the last block are left out; it rises to it from the first."""
    crop_padding: int = 1
    """Pixels of padding before the random crop."""
    flip: bool = False
    """Mirror half of the images; wrong for digits."""
    policy: str = "none"
    """What follows: randaugment, trivialaugment, autoaugment, augmix, or none."""
    mixing: str = "none"
    """mixup, cutmix, either (one or the other), or none."""


DIGITS = Config(
    epochs=60,
    batch_size=64,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup_epochs=5,
    clip=1.0,
    undecayed=("positions", "token"),
)
REGULARIZED = replace(
    DIGITS,
    stochastic_depth=0.1,
    label_smoothing=0.1,
    flip=True,
    policy="randaugment",
    mixing="either",
    depth=12,
    log_every=50,
)
PRESETS = {
    "digits": DIGITS,
    "smoke": replace(DIGITS, width=32, depth=2, heads=2, epochs=2, batch_size=128, warmup_epochs=0, mixing="either"),
    "cifar10": replace(
        REGULARIZED,
        data="cifar10",
        width=192,
        heads=3,
        patch=4,
        crop_padding=4,
        epochs=200,
        batch_size=256,
        warmup_epochs=10,
        ema=0.999,
    ),
    "imagenet": replace(
        REGULARIZED,
        data="folder",
        image_size=224,
        width=384,
        heads=6,
        patch=16,
        crop_padding=28,
        epochs=300,
        batch_size=1024,
        precision="bfloat16",
        ema=0.9999,
    ),
}


def compose(config: Config) -> "lp.recipe.Recipe":
    """Data, model, loss and update as the flags say."""
    dataset = lp.recipe.dataset(config)
    stream = lp.data.Stream(dataset.train, config.batch_size, config.seed)
    size = lp.models.vit.Size(config.width, config.depth, config.heads)
    make = lp.models.stacked.vision_transformer if config.stacked else lp.models.vit.standard
    network = make(
        size,
        len(dataset.classes),
        patch=config.patch,
        dropout=config.dropout,
        stochastic_depth=config.stochastic_depth,
    )
    model = lp.models.normalized(network, *lp.data.statistics(dataset.train))
    criterion = lp.cross_entropy(config.label_smoothing)
    schedule, optimizer = lp.recipe.optimization(config, stream)

    augment = augmentation(config, dataset.input_shape)
    mixing = lp.augment.mixed_by(config.mixing, len(dataset.classes))

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        return lp.augmented(lp.mixed(lp.computed(loss, config.precision), mixing), augment)

    step, stats = lp.recipe.step(config, around(lp.supervised(model, criterion)), optimizer)
    return lp.recipe.Recipe("vit", dataset, stream, model, criterion, optimizer, schedule, step, around, stats)


def main(config: Config) -> "lp.experiment.Result":
    """Run the recipe."""
    return lp.experiment.run(compose(config), config)


def augmentation(config: Config, shape: tuple[int, ...]) -> "lp.augment.Transform":
    """A moved crop, mirroring, and a policy."""
    transforms = [lp.augment.random_crop(shape[0], padding=config.crop_padding)]
    if config.flip:
        transforms.append(lp.augment.random_horizontal_flip())
    return lp.augment.compose(*transforms, lp.augment.policy(config.policy, shape))


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
