"""The deterministic kernels, each a function of one image [height, width, channels] and numbers."""

from lepton_jax.augment.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
)
from lepton_jax.augment.elastic import elastic
from lepton_jax.augment.enhance import adjust_sharpness, gaussian_blur
from lepton_jax.augment.erasing import erase
from lepton_jax.augment.geometry import (
    affine,
    center_crop,
    crop,
    horizontal_flip,
    pad,
    perspective,
    rotate,
    vertical_flip,
)
from lepton_jax.augment.normalization import normalize, to_float
from lepton_jax.augment.resampling import resize, resized_crop
from lepton_jax.augment.tone import autocontrast, equalize, invert, posterize, solarize

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "affine",
    "autocontrast",
    "center_crop",
    "crop",
    "elastic",
    "equalize",
    "erase",
    "gaussian_blur",
    "grayscale",
    "horizontal_flip",
    "invert",
    "normalize",
    "pad",
    "perspective",
    "posterize",
    "resize",
    "resized_crop",
    "rotate",
    "solarize",
    "to_float",
    "vertical_flip",
]
