"""A sheet of pictures: examples as they are stored beside what the model will see, under the names of their classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Shaped

from lepton_jax import augment, keys
from lepton_jax.augment import Transform
from lepton_jax.data.sources import Dataset, gather
from lepton_jax.data.summary import spread
from lepton_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

LEAST, MOST = 96, 256  # pixels of a picture's shorter and longer side
GAP, CAPTION = 8, 18  # pixels
MOST_PICTURES = 400
PAPER, INK = (255, 255, 255), (20, 20, 20)

Images = Shaped[np.ndarray, "examples height width channels"]


def sheet(dataset: Dataset, transform: Transform, title: str, count: int = 16, seed: int = 0) -> "Image":
    """`count` training examples, evenly spread, each before and after `transform`, drawn by `seed`, as one RGB image.

    Raises InputError for data that is not gray or RGB images, and for a count outside 1..400.
    """
    if not 1 <= count <= MOST_PICTURES:
        raise InputError(f"--count {count} is outside 1..{MOST_PICTURES}", "16 is usual")
    check_images(dataset)
    positions = spread(len(dataset.train), count)
    found = gather(dataset.train, positions)
    drawn = jax.vmap(jax.random.fold_in, (None, 0))(keys.named(keys.seeded(seed), "preview"), positions)
    after = np.asarray(jax.jit(augment.batched(transform))(drawn, found["input"]))
    return drawing(found["input"], after, [dataset.classes[label] for label in found["label"]], title)


def check_images(dataset: Dataset) -> None:
    """Raise InputError for data that is not gray or RGB images."""
    shape = dataset.input_shape
    if len(shape) != 3 or shape[-1] not in (1, 3):
        problem = f"the inputs of {dataset.name!r} have shape {list(shape)} and are not gray or RGB images"
        raise InputError(problem, "use a data set of images [height, width, 1 or 3]")


def drawing(before: Images, after: Images, names: Sequence[str], title: str) -> "Image":
    """The pairs in rows, each under its name, with a title above; uint8 as it is, floats in [0, 1]."""
    from PIL import Image, ImageDraw

    pairs = [(picture(one), picture(other)) for one, other in zip(before, after, strict=True)]
    sizes = [image.size for pair in pairs for image in pair]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    columns = max(1, round((len(pairs) / 2) ** 0.5))
    cell = 2 * width + 3 * GAP, height + CAPTION + GAP
    rows = -(-len(pairs) // columns)
    paper = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + CAPTION + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    _write(draw, (GAP, GAP), title, paper.width - 2 * GAP)
    for number, (pair, name) in enumerate(zip(pairs, names, strict=True)):
        left, top = GAP + number % columns * cell[0], CAPTION + 2 * GAP + number // columns * cell[1]
        _write(draw, (left, top), name, 2 * width + GAP)
        for place, image in enumerate(pair):
            paper.paste(image, (left + place * (width + GAP), top + CAPTION))
    return paper


def picture(pixels: Shaped[np.ndarray, "height width channels"]) -> "Image":
    """An RGB image of a size to look at: small ones enlarged in whole pixels, large ones reduced."""
    from PIL import Image

    levels = pixels if pixels.dtype == np.uint8 else np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(levels, (*levels.shape[:2], 3)).copy())
    times = -(-LEAST // min(image.size))
    if times > 1 and times * max(image.size) <= MOST:
        return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    image.thumbnail((MOST, MOST))
    return image


def _write(draw: "ImageDraw", at: tuple[int, int], text: str, width: int) -> None:
    """One line of text, cut to a width in pixels; what the font lacks becomes a question mark."""
    from PIL import ImageFont

    font = ImageFont.load_default()
    shown = " ".join(text.encode("latin-1", "replace").decode("latin-1").split())
    while shown and draw.textlength(shown, font=font) > width:
        shown = shown[:-4] + "..." if len(shown) > 4 else ""
    draw.text(at, shown, INK, font=font)
