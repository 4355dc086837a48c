"""Image files and arrays as uint8 [height, width, channel] of one size."""

import os
from typing import TYPE_CHECKING

import numpy as np

from lepton_jax.data.sources import flat_labels
from lepton_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 2**26  # in one file: a small file may claim any size, and its pixels would fill the memory
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def read(path: str | os.PathLike[str], channels: int, size: int | None) -> np.ndarray:
    """An image file as uint8 [height, width, channels], turned upright as its camera says.

    `channels` is 1 (gray) or 3 (RGB; transparency is dropped). `size` as for `fit`. A broken file raises
    whatever Pillow raises for it, and one of more than 2**26 pixels ValueError.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.width * image.height > PIXELS:
            raise ValueError(f"it has {image.width}x{image.height} pixels, and {PIXELS:,} is the limit")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return fit(np.asarray(_in_mode(image, channels)).reshape(image.height, image.width, channels), size)


def is_gray(path: str | os.PathLike[str]) -> bool:
    """Whether an image file has no color, by its header alone. A broken file raises as in `read`."""
    from PIL import Image

    with Image.open(path) as image:
        return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def _in_mode(image: "Image", channels: int) -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("the pixels are floating-point numbers of unknown range")
    if image.mode == "P":  # a palette may hold transparency, which Pillow warns about unless it is asked for
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Integers 0..65535 scaled to uint8 0..255. Raises ValueError outside that range."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixel values {values.min()}..{values.max()} are outside 0..65535")
    return np.round(values / 257).astype(np.uint8)


def fit(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """uint8 [height, width, channels] as [size, size, channels]; as it is where `size` is None.

    The shorter side is resized to `size` (bilinear, antialiased), then the center is cut out.
    """
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    from PIL import Image

    height, width, channels = pixels.shape
    scale = size / min(height, width)
    shape = max(size, round(width * scale)), max(size, round(height * scale))
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image = image.resize(shape, Image.Resampling.BILINEAR)
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).reshape(size, size, channels)


def check_size(image_size: int | None) -> None:
    """Raises InputError for an image size below 1."""
    if image_size is not None and image_size < 1:
        raise InputError(f"the image size {image_size} is below 1", "use a size in pixels of at least 1")


def stack(name: str, images: np.ndarray) -> np.ndarray:
    """An array as images [n, height, width, channel], integers as uint8; features [n, features] as they are.

    Raises InputError for another shape, and for integers outside 0..255; `name` says where the array comes from.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim not in (2, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 2, 3, 4)):
        raise InputError(
            f"{name!r} has shape {images.shape}, which is not a set of images",
            "store [n, height, width] or [n, height, width, channel] with 1 to 4 channels",
        )
    if images.dtype.kind in "iu" and images.dtype != np.uint8 and images.ndim == 4:
        if images.size and (images.min() < 0 or images.max() > 255):
            raise InputError(
                f"{name!r} has integers {images.min()}..{images.max()}, outside 0..255",
                "scale the images to uint8 0..255, or to float32 in [0, 1]",
            )
        images = images.astype(np.uint8)
    return images


def class_numbers(name: str, labels: np.ndarray) -> np.ndarray:
    """An array as labels [n]; [n, 1] will do. Raises InputError for what is not one integer per image."""
    labels = flat_labels(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{name!r} is {labels.dtype} of shape {labels.shape}; one integer per example is needed",
            "store class numbers [n]; several labels per image are not supported",
        )
    return labels
