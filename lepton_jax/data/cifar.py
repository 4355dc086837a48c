"""CIFAR-10 from its official files, or as TFDS has prepared it.

Krizhevsky 2009, "Learning multiple layers of features from tiny images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lepton_jax.data import pickles
from lepton_jax.data.paths import existing, missing, reason
from lepton_jax.data.sources import Arrays, Dataset, Source
from lepton_jax.data.tfds import prepared, tfds
from lepton_jax.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
LAYOUT = (
    "data_batch_1.bin ... test_batch.bin, or data_batch_1 ... test_batch (the Python version), "
    "or cifar10/VERSION prepared by TFDS as array_record"
)

Batch = tuple[np.ndarray, np.ndarray]  # uint8 [n, 3072], channel by channel, and labels [n]


def cifar10(directory: str | os.PathLike[str] | None) -> Dataset:
    """uint8 [32, 32, 3] images of 10 classes. The first found is read: binary files, Python files, TFDS.

    The files lie in `directory` or in the folder that the official archives unpack to. Raises InputError for
    files that are missing, cut short, or not what they should be.
    """
    root = existing("cifar10", directory, LAYOUT)
    kinds: list[tuple[str, str, Callable[[Path], Batch]]] = [
        ("cifar-10-batches-bin", ".bin", _binary),
        ("cifar-10-batches-py", "", _pickled),
    ]
    for folder, suffix, read in kinds:
        for place in (root, root / folder):
            if (place / f"test_batch{suffix}").is_file() or (place / f"data_batch_1{suffix}").is_file():
                train, test = _split(place, suffix, read)
                return Dataset("cifar10", train, test, CLASSES, (32, 32, 3))
    if prepared(root, "cifar10"):
        return tfds("cifar10", root)._replace(name="cifar10")
    raise missing("cifar10", root, LAYOUT)


def _split(place: Path, suffix: str, read: Callable[[Path], Batch]) -> tuple[Source, Source]:
    pattern = re.compile(rf"data_batch_(\d+){re.escape(suffix)}")
    numbers = sorted(int(match[1]) for path in place.iterdir() if (match := pattern.fullmatch(path.name)))
    test = place / f"test_batch{suffix}"
    if not test.is_file():
        raise InputError(f"{str(place)!r} has no {test.name}", f"expected there: {LAYOUT}")
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        absent = min(set(range(1, len(numbers) + 2)) - set(numbers))
        raise InputError(f"{str(place)!r} has no data_batch_{absent}{suffix}", f"expected there: {LAYOUT}")
    return _source([read(place / f"data_batch_{n}{suffix}") for n in numbers]), _source([read(test)])


def _source(batches: list[Batch]) -> Arrays:
    pixels = np.concatenate([pixels for pixels, _ in batches])
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Arrays({"input": images, "label": np.concatenate([labels for _, labels in batches])})


def _binary(path: Path) -> Batch:
    """Records of one label byte and 3,072 pixel bytes."""
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % (PIXELS + 1):
        raise InputError(
            f"{str(path)!r} has {len(content)} bytes, not a multiple of {PIXELS + 1}: it is cut short",
            "download the CIFAR-10 binary version again",
        )
    records = content.reshape(-1, PIXELS + 1)
    return records[:, 1:], records[:, 0]


def _pickled(path: Path) -> Batch:
    try:
        content = pickles.loads(path.read_bytes())
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS) or labels.dtype.kind not in "iu":
            raise ValueError("it does not hold uint8 data [n, 3072] and n labels")
    except Exception as error:  # a broken pickle raises nearly anything
        raise InputError(
            f"{str(path)!r} is not a CIFAR-10 batch: {reason(error)}",
            "download the CIFAR-10 Python version again, and do not trust this file",
        ) from error
    return pixels, labels
