"""Augmentation of one image at a time: (key, image) -> image, jitted and vmapped with per-example keys."""

from lepton_jax.augment import functional, masking, tabular, text
from lepton_jax.augment.base import Transform, batched, compose, deterministic, identity
from lepton_jax.augment.catalog import mixed_by, policy
from lepton_jax.augment.elastic import random_elastic
from lepton_jax.augment.erasing import random_erasing
from lepton_jax.augment.mixing import cutmix, mixup, mixup_or_cutmix
from lepton_jax.augment.mosaic import mosaic
from lepton_jax.augment.policies import augmix, autoaugment, randaugment, randaugment_timm, trivialaugment
from lepton_jax.augment.random_color import color_jitter
from lepton_jax.augment.random_geometry import (
    random_affine,
    random_crop,
    random_horizontal_flip,
    random_perspective,
    random_rotation,
    random_vertical_flip,
)
from lepton_jax.augment.random_resize import center_crop, random_resized_crop, resize
from lepton_jax.augment.random_tone import (
    gaussian_blur,
    normalize,
    random_adjust_sharpness,
    random_autocontrast,
    random_equalize,
    random_grayscale,
    random_invert,
    random_posterize,
    random_solarize,
    to_float,
)
from lepton_jax.augment.targets import Boxes, Keypoints, Mask, boxes, keypoints

__all__ = [
    "Boxes",
    "Keypoints",
    "Mask",
    "Transform",
    "augmix",
    "autoaugment",
    "batched",
    "boxes",
    "center_crop",
    "color_jitter",
    "compose",
    "cutmix",
    "deterministic",
    "functional",
    "gaussian_blur",
    "identity",
    "keypoints",
    "masking",
    "mixed_by",
    "mixup",
    "mixup_or_cutmix",
    "mosaic",
    "normalize",
    "policy",
    "randaugment",
    "randaugment_timm",
    "random_adjust_sharpness",
    "random_affine",
    "random_autocontrast",
    "random_crop",
    "random_elastic",
    "random_equalize",
    "random_erasing",
    "random_grayscale",
    "random_horizontal_flip",
    "random_invert",
    "random_perspective",
    "random_posterize",
    "random_resized_crop",
    "random_rotation",
    "random_solarize",
    "random_vertical_flip",
    "resize",
    "tabular",
    "text",
    "to_float",
    "trivialaugment",
]
