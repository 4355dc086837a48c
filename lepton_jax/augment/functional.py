"""The deterministic kernels, each a function of one image [height, width, channels] and numbers."""

from lepton_jax.augment.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
)
from lepton_jax.augment.geometry import (
    center_crop,
    crop,
    horizontal_flip,
    pad,
    rotate,
    vertical_flip,
)

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "center_crop",
    "crop",
    "grayscale",
    "horizontal_flip",
    "pad",
    "rotate",
    "vertical_flip",
]
