"""Data sets by name."""

import os

from lepton_jax import errors
from lepton_jax.data import text
from lepton_jax.data.blank import blank
from lepton_jax.data.checks import check
from lepton_jax.data.cifar import cifar10
from lepton_jax.data.digits import digits
from lepton_jax.data.folder import ON_BAD_IMAGE, folder
from lepton_jax.data.idx import idx
from lepton_jax.data.images import check_size
from lepton_jax.data.npz import npz
from lepton_jax.data.records import records
from lepton_jax.data.sources import Dataset
from lepton_jax.data.tables import LABEL, table
from lepton_jax.data.tfds import tfds
from lepton_jax.errors import InputError

NAMES = (
    "digits",
    "cifar10",
    "folder",
    "npz",
    "idx",
    "csv",
    "csv:LABEL",
    "jsonl",
    "jsonl:LENGTH",
    "text",
    "text:LENGTH",
    "lines",
    "lines:LENGTH",
    "tfds:NAME",
    "blank:SHAPE",
)
RESIZED = ("folder", "jsonl", "tfds")
OWNED = ("csv", "jsonl", "npz")
QUALIFIED = ("csv", "jsonl", "text", "lines", "tfds", "blank")  # names that may go on after a colon


def load(
    name: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    image_size: int | None = None,
    on_bad_image: str = "stop",
    by: str | None = None,
) -> Dataset:
    """The data set `name`, read from `directory` and checked. Nothing is ever downloaded.

    digits (no directory), cifar10, folder (class folders of images), npz (a .npz file), idx (MNIST's files), csv
    (numbers and a column "label", or csv:COLUMN), jsonl (JSON lines of numbers, texts or images with labels), text
    (windows of 128 bytes, or text:LENGTH), lines (a document per line, likewise), tfds:NAME (prepared by TensorFlow
    Datasets), or blank:224x224x3:1000 (images of zeros, to plan and to time with; no directory). What comes in one
    piece is split 80/20 by `seed`. `image_size` (pixels) resizes the images of folder, jsonl and tfds; `on_bad_image`
    ("stop" or "skip") is for folder and jsonl. `by` is a field of csv, jsonl or npz that says whose an example is: the
    training data then has the column "owner". Raises InputError for an unknown name, data that is missing or cannot be
    read, and data that cannot be trained on.
    """
    kind, _, rest = name.partition(":")
    _check(name, kind, rest, directory, image_size, on_bad_image)
    if by is not None and kind not in OWNED:
        problem = f"{kind!r} has no field {by!r} that says whose an example is"
        raise InputError(problem, f"only {', '.join(OWNED)} may have such fields")
    match kind:
        case "digits":
            return check(digits(seed))
        case "cifar10":
            return check(cifar10(directory))
        case "folder":
            return check(folder(directory, image_size, on_bad_image))
        case "npz":
            return check(npz(directory, by))
        case "idx":
            return check(idx(directory, seed))
        case "csv":
            return check(table(directory, rest or LABEL, seed, by))
        case "jsonl":
            return check(records(directory, text.length_of(kind, rest), image_size, on_bad_image, seed, by))
        case "text":
            return check(text.text(directory, text.length_of(kind, rest), seed=seed))
        case "lines":
            return check(text.lines(directory, text.length_of(kind, rest), seed=seed))
        case "tfds":
            return check(tfds(rest, directory, image_size))
        case "blank":
            return check(blank(rest))
        case _:
            raise errors.unknown("data set", name, NAMES)


def _check(name: str, kind: str, rest: str, directory: object, image_size: int | None, on_bad_image: str) -> None:
    """Raise InputError for a name or a choice that does not exist, and for what a data set has no use for."""
    if kind not in {known.partition(":")[0] for known in NAMES} or (rest and kind not in QUALIFIED):
        raise errors.unknown("data set", name, NAMES)
    if on_bad_image not in ON_BAD_IMAGE:
        raise errors.unknown("choice for bad images", on_bad_image, ON_BAD_IMAGE)
    check_size(image_size)
    if image_size is not None and kind not in RESIZED:
        problem = f"the inputs of {kind!r} have a fixed size, and --image-size {image_size} is given"
        raise InputError(problem, f"leave --image-size out, or use it with {', '.join(RESIZED)}")
    if kind in ("digits", "blank") and directory is not None:
        problem = f"{kind!r} reads no files, and --data-dir {str(directory)!r} is given"
        raise InputError(problem, "leave it out, or name the data that lies there: --data cifar10, folder ...")
