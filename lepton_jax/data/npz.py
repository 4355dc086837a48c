"""Images and labels in one `.npz` file.

Two sets of names are understood: MedMNIST's (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8),
    train_images, train_labels, test_images, test_labels, and optionally val_images, val_labels
and that of Keras's data sets,
    x_train, y_train, x_test, y_test, and optionally x_val, y_val.
Images are [n, height, width] or [n, height, width, channel] with 1 to 4 channels, uint8 or other integers
0..255, or floats in [0, 1]; [n, features] is taken as it is. Labels are integers [n] or [n, 1].
`classes`, an array of text, may name the classes; without it they are numbered. A field that says whose an example is
is an array train_FIELD (or FIELD_train) of one text or whole number each.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lepton_jax.data import packed
from lepton_jax.data.images import class_numbers, stack
from lepton_jax.data.owning import owned
from lepton_jax.data.paths import existing, inside, missing, reason
from lepton_jax.data.sources import Arrays, Dataset, flat_labels
from lepton_jax.errors import InputError

NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
LAYOUT = "one .npz file with train_images, train_labels, test_images, test_labels (or x_train, y_train ...)"


def npz(directory: str | os.PathLike[str] | None, by: str | None = None) -> Dataset:
    """The data set in a .npz file; `directory` is the file, or a directory that holds just one. by: a field, as above.

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
        images, labels = stack(names[0], columns[names[0]]), class_numbers(names[1], columns[names[1]])
        splits[split] = Arrays({"input": images, "label": labels})
    train, test, validation = splits["train"], splits["test"], splits.get("val")
    shape = train.columns["input"].shape[1:]
    owners = None if by is None else _owners(path, columns, by, len(train))
    return Dataset(path.stem, owned(train, owners), test, _classes(columns, splits), shape, validation)


def _owners(path: Path, columns: Mapping[str, np.ndarray], by: str, examples: int) -> list[str]:
    name = next((name for name in (f"train_{by}", f"{by}_train") if name in columns), f"train_{by}")
    found = flat_labels(columns.get(name, ()))
    if found.shape != (examples,) or found.dtype.kind not in "iuUS":
        problem = f"{str(path)!r} has no array {name!r} of a text or whole number for each of {examples} examples"
        raise InputError(problem, f"it has: {', '.join(sorted(columns))}")
    return [str(value) for value in found.tolist()]


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
    return inside(path, files[0])


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return packed.arrays(path)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {reason(error)}", f"expected: {LAYOUT}") from error


def _classes(columns: Mapping[str, np.ndarray], splits: Mapping[str, Arrays]) -> tuple[str, ...]:
    if "classes" in columns:
        return tuple(str(name) for name in columns["classes"].ravel())
    highest = max(int(source.columns["label"].max(initial=0)) for source in splits.values())
    return tuple(str(number) for number in range(highest + 1))
