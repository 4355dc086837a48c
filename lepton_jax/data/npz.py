"""Images and labels in one `.npz` file.

Two sets of names are understood: MedMNIST's (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8),
    train_images, train_labels, test_images, test_labels, and optionally val_images, val_labels
and that of Keras's data sets,
    x_train, y_train, x_test, y_test, and optionally x_val, y_val.
Images are [n, height, width] or [n, height, width, channel] with 1 to 4 channels, uint8 or other integers
0..255, or floats in [0, 1]; [n, features] is taken as it is. Labels are integers [n] or [n, 1].
`classes`, an array of text, may name the classes; without it they are numbered.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lepton_jax.data.paths import existing, missing, reason
from lepton_jax.data.sources import Arrays, Dataset, flat_labels
from lepton_jax.errors import InputError

NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
LAYOUT = "one .npz file with train_images, train_labels, test_images, test_labels (or x_train, y_train ...)"


def npz(directory: str | os.PathLike[str] | None) -> Dataset:
    """The data set in a .npz file; `directory` is the file, or a directory that holds just one.

    Raises InputError for files that cannot be read, need pickle, or lack an array, and for other shapes.
    """
    path = _file(existing("npz", directory, LAYOUT))
    columns = _read(path)
    image_name, label_name = next((pair for pair in NAMES if pair[0].format("train") in columns), NAMES[0])
    splits = {}
    for split in ("train", "test", "val"):
        names = image_name.format(split), label_name.format(split)
        if split == "val" and names[0] not in columns:
            continue
        if absent := [name for name in names if name not in columns]:
            raise InputError(
                f"{str(path)!r} has no array {absent[0]!r} (it has: {', '.join(sorted(columns)) or 'none'})",
                f"expected: {LAYOUT}",
            )
        images, labels = _images(names[0], columns[names[0]]), _labels(names[1], columns[names[1]])
        splits[split] = Arrays({"input": images, "label": labels})
    train, test, validation = splits["train"], splits["test"], splits.get("val")
    shape = train.columns["input"].shape[1:]
    return Dataset(path.stem, train, test, _classes(columns, splits), shape, validation)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.npz"))
    if not files:
        raise missing("npz", path, LAYOUT)
    if len(files) > 1:
        raise InputError(
            f"{str(path)!r} holds {len(files)} .npz files",
            f"--data-dir with the file itself, as in {files[0]}",
        )
    return files[0]


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:  # opened here, as numpy leaves its own open where the zip is broken
            content = np.load(file, allow_pickle=False)  # a pickled array could run code
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read: {reason(error)}", f"expected: {LAYOUT}") from error


def _images(name: str, images: np.ndarray) -> np.ndarray:
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


def _labels(name: str, labels: np.ndarray) -> np.ndarray:
    labels = flat_labels(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{name!r} is {labels.dtype} of shape {labels.shape}; one integer per example is needed",
            "store class numbers [n]; several labels per image are not supported",
        )
    return labels


def _classes(columns: Mapping[str, np.ndarray], splits: Mapping[str, Arrays]) -> tuple[str, ...]:
    if "classes" in columns:
        return tuple(str(name) for name in columns["classes"].ravel())
    highest = max(int(source.columns["label"].max(initial=0)) for source in splits.values())
    return tuple(str(number) for number in range(highest + 1))
