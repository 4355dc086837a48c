"""Image files and arrays as uint8 [height, width, channel] of one size."""

import os
from typing import TYPE_CHECKING

import numpy as np

from lepton_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def read(path: str | os.PathLike[str], channels: int, size: int | None) -> np.ndarray:
    """An image file as uint8 [height, width, channels], turned upright as its camera says.

    `channels` is 1 (gray) or 3 (RGB; transparency is dropped). `size` as for `fit`. A broken file raises
    whatever Pillow raises for it.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
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
