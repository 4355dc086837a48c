"""Which examples a report shows, and their images as text that a page can hold."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from lepton_jax import data
from lepton_jax.data.stream import permutation
from lepton_jax.evaluate import Evaluation
from lepton_jax.report.page import Example, Examples

COUNT = 12  # of each kind
BYTES = 6000  # of one PNG at most: 24 of them are below 200 kB as base64
SIDE = 96  # pixels; a larger image is made smaller
COLORS = 64  # of an image that does not fit as it is
CHUNK = 1024  # examples read at once


def shown(source: data.Source, evaluation: Evaluation, classes: Sequence[str]) -> Examples | None:
    """The COUNT surest mistakes and COUNT right answers of an evaluation on `source`; None where inputs are no images.

    The right ones are drawn in an order that depends on the number of examples alone, so runs on the same data show
    mostly the same ones. Images are [height, width, 1 or 3].
    """
    first = data.gather(source, [0])["input"]
    if not is_images(first):
        return None
    correct = evaluation.predictions == evaluation.labels
    sure = evaluation.scores[np.arange(len(correct)), evaluation.predictions]
    wrong = np.flatnonzero(~correct)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:COUNT]
    order = permutation(len(correct), 0, 0)
    right = order[correct[order]][:COUNT]
    chosen = np.concatenate([wrong, right])
    places = positions(source, len(correct))[chosen]
    pictures = map(uri, pixels(data.gather(source, places)["input"])) if len(chosen) else []
    told = [
        Example(int(place), picture, classes[int(label)], classes[int(prediction)], float(probability))
        for place, picture, label, prediction, probability in zip(
            places, pictures, evaluation.labels[chosen], evaluation.predictions[chosen], sure[chosen], strict=True
        )
    ]
    return Examples(told[: len(wrong)], told[len(wrong) :], int(np.sum(~correct)), int(np.sum(correct)))


def is_images(inputs: np.ndarray) -> bool:
    """Whether inputs are [examples, height, width, 1 or 3]."""
    return inputs.ndim == 4 and inputs.shape[-1] in (1, 3)


def positions(source: data.Source, evaluated: int) -> Int[np.ndarray, " evaluated"]:
    """Where the evaluated examples stand in their source: all, or those that have a weight."""
    if len(source) == evaluated:
        return np.arange(evaluated)
    everything = np.arange(len(source))
    parts = (data.gather(source, everything[start : start + CHUNK]) for start in range(0, len(source), CHUNK))
    weights = np.concatenate([part.get("weight", np.ones(len(part["input"]))) for part in parts])
    return np.flatnonzero(weights)


def pixels(images: np.ndarray) -> UInt8[np.ndarray, "examples height width channels"]:
    """Images as a screen shows them: uint8 as it is, floats from 0..1; other ranges from their least to greatest."""
    if images.dtype == np.uint8:
        return images
    values = np.nan_to_num(images.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.round((values - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)


def uri(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """An image as a data URI of a PNG of at most BYTES.

    It holds the very pixels where they fit; else it is at most SIDE pixels high and wide, in COLORS colors.
    """
    original = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    written, side = png(original), min(SIDE, max(original.size))
    while len(written) > BYTES:
        written = png(reduced(original, side))
        side = side * 4 // 5
    return "data:image/png;base64," + base64.b64encode(written).decode()


def reduced(image: Image.Image, side: int) -> Image.Image:
    """An image no higher or wider than `side`, in few colors."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small.quantize(COLORS, dither=Image.Dither.NONE)


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
