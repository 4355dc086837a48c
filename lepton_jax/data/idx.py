"""idx files, the form of MNIST and of the sets made after it; packed as .gz or not.

LeCun et al. 1998, http://yann.lecun.com/exdb/mnist/. A file is a magic number (0, 0, type, dimensions), the sizes, and
the values, all big-endian. Names are as published: train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k-images...
and t10k-labels... (test-..., val-...), with any prefix, as emnist-letters-train-images-idx3-ubyte.gz.
"""

import math
import os
import re
from pathlib import Path

import numpy as np

from lepton_jax.data import images, packed
from lepton_jax.data.paths import existing, inside, missing, title
from lepton_jax.data.sources import Arrays, Dataset, Source
from lepton_jax.data.splits import TRAIN_AND_TEST, split
from lepton_jax.errors import InputError

LAYOUT = (
    "train-images-idx3-ubyte and train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
    "(or .gz); without t10k or test the training data is split by the seed"
)
NAME = re.compile(r"(.*-)?(train|t10k|test|val|valid|validation)-(images|labels)[-.]idx\d-\w+(\.gz)?")
SPLITS = {"t10k": "test", "val": "validation", "valid": "validation"}
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(directory: str | os.PathLike[str] | None, seed: int = 0) -> Dataset:
    """Images [height, width, 1] of idx files, classes numbered from 0. `directory`: it, or one file of images.

    Raises InputError for files that are missing, cut short, too long, or not idx, and for shapes that do not fit.
    """
    root = existing("idx", directory, LAYOUT)
    found = {part: _source(pair) for part, pair in _pairs(root).items()}
    highest = max(int(source.columns["label"].max(initial=0)) for source in found.values())
    classes, shape = tuple(map(str, range(highest + 1))), found["train"].columns["input"].shape[1:]
    parts: dict[str, Source] = dict(found)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        parts["train"], parts["test"] = split(found["train"], TRAIN_AND_TEST, seed)
    return Dataset(title(root), parts["train"], parts["test"], classes, shape, parts.get("validation"))


def read(path: Path) -> np.ndarray:
    """The array in an idx file, in the machine's byte order. Raises InputError for a file that is none."""
    found = packed.content(path)
    kind, dimensions = (found[2], found[3]) if len(found) >= 4 else (0, 0)
    if found[:2] != b"\0\0" or kind not in TYPES or not dimensions:
        raise InputError(
            f"{str(path)!r} begins with {found[:4].hex(' ') or 'nothing'}, which no idx file does",
            "expected the bytes 00 00, a type 08..0e, and the number of dimensions; get the file again",
        )
    dtype, head = np.dtype(TYPES[kind]), 4 + 4 * dimensions
    shape = tuple(np.frombuffer(found[4:head].ljust(4 * dimensions, b"\0"), ">u4").tolist())
    wanted = head + math.prod(shape) * dtype.itemsize
    if len(found) != wanted:
        fault = "cut short" if len(found) < wanted else "too long"
        problem = f"{str(path)!r} has {len(found):,} bytes, its header {list(shape)} asks for {wanted:,}: it is {fault}"
        raise InputError(problem, "get the file again")
    return np.frombuffer(found, dtype, offset=head).reshape(shape).astype(dtype.newbyteorder("="))


def _pairs(root: Path) -> dict[str, tuple[Path, Path]]:
    """The files of images and labels by split; those of a single file of images count as train."""
    if root.is_file():
        match = NAME.fullmatch(root.name)
        labels = root.with_name(re.sub(r"idx\d", "idx1", root.name.replace("-images", "-labels")))
        if match is None or match[3] != "images" or not labels.is_file():
            problem = f"{str(root)!r} is not a file of images with its labels beside it"
            raise InputError(problem, f"give the directory; expected there: {LAYOUT}")
        return {"train": (root, labels)}
    place = root / "raw" if (root / "raw").is_dir() else root  # where torchvision puts them
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(place.iterdir(), key=lambda path: (path.suffix == ".gz", path.name)):  # unpacked ones first
        if match := NAME.fullmatch(path.name):
            key = SPLITS.get(match[2], match[2]), match[3]
            if key in files and files[key].name != path.name.removesuffix(".gz"):
                problem = f"{str(files[key])!r} and {str(path)!r} are both {key[0]} {key[1]}"
                raise InputError(problem, "keep one data set in a directory")
            files.setdefault(key, inside(root, path))
    splits = dict.fromkeys(split for split, _ in files)
    if "train" not in splits:
        raise missing("idx", root, LAYOUT)
    for part in splits:
        for kind in ("images", "labels"):
            if (part, kind) not in files:
                raise InputError(f"{str(place)!r} has no {part} {kind}", f"expected there: {LAYOUT}")
    return {part: (files[part, "images"], files[part, "labels"]) for part in splits}


def _source(pair: tuple[Path, Path]) -> Arrays:
    pixels, numbers = (read(path) for path in pair)
    columns = {"input": images.stack(str(pair[0]), pixels), "label": images.class_numbers(str(pair[1]), numbers)}
    return Arrays(columns)
