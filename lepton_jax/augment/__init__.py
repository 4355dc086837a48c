"""Augmentation of one image at a time: (key, image) -> image, jitted and vmapped with per-example keys."""

from lepton_jax.augment import functional
from lepton_jax.augment.base import Transform, batched, compose, deterministic, identity
from lepton_jax.augment.random_color import color_jitter
from lepton_jax.augment.random_geometry import (
    random_crop,
    random_horizontal_flip,
    random_rotation,
    random_vertical_flip,
)

__all__ = [
    "Transform",
    "batched",
    "color_jitter",
    "compose",
    "deterministic",
    "functional",
    "identity",
    "random_crop",
    "random_horizontal_flip",
    "random_rotation",
    "random_vertical_flip",
]
