"""Augmentations by name, for expanding a data set and for looking at one."""

from collections.abc import Callable

from lepton_jax import augment
from lepton_jax.augment import Transform
from lepton_jax.errors import unknown

Shape = tuple[int, ...]

PUBLISHED = ("randaugment", "trivialaugment", "autoaugment", "augmix")  # with their usual settings


def policy(name: str, shape: Shape) -> Transform:
    """The augmentation `name` for images of `shape` (height, width, channels). Raises InputError for an unknown one."""
    known = policies()
    if name not in known:
        raise unknown("policy", name, known)
    return known[name](shape)


def policies() -> dict[str, Callable[[Shape], Transform]]:
    """All by name: none, basic, and the published ones."""
    there = {name: getattr(augment, name) for name in PUBLISHED if hasattr(augment, name)}
    return {"none": _none, "basic": _basic, **{name: _usual(factory) for name, factory in there.items()}}


def _none(shape: Shape) -> Transform:
    return augment.identity


def _basic(shape: Shape) -> Transform:
    """A crop moved by up to an eighth of the image, a mirror image half of the time, and mild color jitter."""
    height, width, _ = shape
    return augment.compose(
        augment.random_crop((height, width), padding=max(1, min(height, width) // 8)),
        augment.random_horizontal_flip(),
        augment.color_jitter(0.2, 0.2, 0.2, 0.05),
    )


def _usual(factory: Callable[[], Transform]) -> Callable[[Shape], Transform]:
    return lambda shape: factory()
