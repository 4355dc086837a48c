"""Data sets by name."""

import os

from lepton_jax import errors
from lepton_jax.data.checks import check
from lepton_jax.data.cifar import cifar10
from lepton_jax.data.digits import digits
from lepton_jax.data.folder import ON_BAD_IMAGE, folder
from lepton_jax.data.images import check_size
from lepton_jax.data.npz import npz
from lepton_jax.data.sources import Dataset
from lepton_jax.data.tfds import tfds
from lepton_jax.errors import InputError

NAMES = ("digits", "cifar10", "folder", "npz", "tfds:NAME")


def load(
    name: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    image_size: int | None = None,
    on_bad_image: str = "stop",
) -> Dataset:
    """The data set `name`, read from `directory` and checked. Nothing is ever downloaded.

    digits (no directory; split by `seed`), cifar10, folder (class folders of images), npz (a .npz file), or
    tfds:NAME (prepared by TensorFlow Datasets). `image_size` (pixels) resizes the images of folder and tfds;
    `on_bad_image` ("stop" or "skip") is for folder. Raises InputError for an unknown name, data that is
    missing or cannot be read, and data that cannot be trained on.
    """
    if on_bad_image not in ON_BAD_IMAGE:
        raise errors.unknown("choice for bad images", on_bad_image, ON_BAD_IMAGE)
    check_size(image_size)
    kind, _, rest = name.partition(":")
    if image_size is not None and kind in ("digits", "cifar10", "npz"):
        raise InputError(
            f"the images of {kind!r} have a fixed size, and --image-size {image_size} is given",
            "leave --image-size out, or use it with folder or tfds",
        )
    if kind == "tfds":
        return check(tfds(rest, directory, image_size))
    match name:
        case "digits":
            if directory is not None:
                problem = f"'digits' reads no files, and --data-dir {str(directory)!r} is given"
                raise InputError(problem, "leave it out, or name the data that lies there: --data cifar10, folder ...")
            return check(digits(seed))
        case "cifar10":
            return check(cifar10(directory))
        case "folder":
            return check(folder(directory, image_size, on_bad_image))
        case "npz":
            return check(npz(directory))
        case _:
            raise errors.unknown("data set", name, NAMES)
