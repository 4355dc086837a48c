"""Augmentations and mixings by name, for the command line."""

from collections.abc import Callable

from lepton_jax.augment import mixing
from lepton_jax.augment.base import Transform, compose, identity
from lepton_jax.augment.policies import augmix, autoaugment, randaugment, trivialaugment
from lepton_jax.augment.random_color import color_jitter
from lepton_jax.augment.random_geometry import random_crop, random_horizontal_flip
from lepton_jax.errors import named

Shape = tuple[int, ...]

# with their usual settings
PUBLISHED: dict[str, Callable[[], Transform]] = {
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "autoaugment": autoaugment,
    "augmix": augmix,
}
MIXINGS: dict[str, Callable[[int], mixing.Mixing]] = {
    "none": lambda classes: lambda key, batch: batch,
    "mixup": mixing.mixup,
    "cutmix": mixing.cutmix,
    "either": mixing.mixup_or_cutmix,
}


def policy(name: str, shape: Shape) -> Transform:
    """The augmentation `name` for images of `shape` (height, width, channels). Raises InputError for an unknown one.

    none; basic, a moved crop, mirroring and mild color jitter; or a published one: randaugment, trivialaugment,
    autoaugment, augmix.
    """
    return named("policy", name, policies())(shape)


def policies() -> dict[str, Callable[[Shape], Transform]]:
    """All augmentations by name."""
    return {"none": _none, "basic": _basic, **{name: _usual(factory) for name, factory in PUBLISHED.items()}}


def mixed_by(name: str, classes: int) -> mixing.Mixing:
    """The mixing `name` of labels of so many classes: none, mixup, cutmix, or either. Raises InputError for another."""
    return named("mixing", name, MIXINGS)(classes)


def _none(shape: Shape) -> Transform:
    return identity


def _basic(shape: Shape) -> Transform:
    """A crop moved by up to an eighth of the image, a mirror image half of the time, and mild color jitter."""
    height, width, _ = shape
    return compose(
        random_crop((height, width), padding=max(1, min(height, width) // 8)),
        random_horizontal_flip(),
        color_jitter(0.2, 0.2, 0.2, 0.05),
    )


def _usual(factory: Callable[[], Transform]) -> Callable[[Shape], Transform]:
    return lambda shape: factory()
