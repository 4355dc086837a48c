"""Images in one folder per class: `train/CLASS/*.png` and `test/CLASS/*.png`.

`test` may be called `val`, `valid` or `validation`; where both are there, the latter becomes the validation
split. The class names, sorted, number the labels. Images may lie in subfolders of their class.

All images are gray where each of up to 256 evenly spread training images is, else RGB: one gray file among
photographs must not take the color from all of them.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.data import images
from lepton_jax.data.paths import existing, inside, missing, reason, title
from lepton_jax.data.sources import Dataset, decoded
from lepton_jax.data.summary import spread
from lepton_jax.errors import InputError

LAYOUT = "train/CLASS/*.png (or .jpg ...) and test/CLASS/*.png"
VALIDATION = ("val", "valid", "validation")
HEADERS = 256  # files looked at to tell gray from color
ON_BAD_IMAGE = ("stop", "skip")


class Folder:
    """Image files as a source, decoded when they are asked for, to uint8 of `shape`.

    With `skip`, an image that cannot be read is black with weight 0, and `bad` names it; without, it raises
    InputError. `image_size` as for `images.fit`; without it an image of another shape raises InputError.
    """

    def __init__(
        self, paths: list[Path], labels: list[int], shape: tuple[int, ...], image_size: int | None, skip: bool
    ):
        self.paths, self.labels = paths, np.asarray(labels, np.int32)
        self.shape, self.image_size, self.skip = shape, image_size, skip
        self._bad: set[str] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pixels, weight = self._read(self.paths[i])
        example = {"input": pixels, "label": self.labels[i]}
        return {**example, "weight": np.float32(weight)} if self.skip else example

    @property
    def bad(self) -> tuple[str, ...]:
        """The files that could not be read, as far as they have been asked for."""
        return tuple(sorted(self._bad))

    def _read(self, path: Path) -> tuple[np.ndarray, float]:
        try:
            pixels = images.read(path, self.shape[-1], self.image_size)
        except Exception as error:  # Pillow's decoders raise nearly anything for a broken file
            if not self.skip:
                raise InputError(
                    f"the image {str(path)!r} cannot be read: {reason(error)}",
                    "repair or remove it, or give such images weight 0: --on-bad-image skip",
                ) from error
            self._bad.add(str(path))
            return np.zeros(self.shape, np.uint8), 0.0
        if pixels.shape != self.shape:
            raise InputError(
                f"the image {str(path)!r} is {_pixels(pixels.shape)} and the first one {_pixels(self.shape)}",
                "give all images one size: --image-size N resizes the shorter side and cuts out the center",
            )
        return pixels, 1.0


def folder(
    directory: str | os.PathLike[str] | None, image_size: int | None = None, on_bad_image: str = "stop"
) -> Dataset:
    """The data set in a directory of class folders; uint8 images of one shape.

    Decoded into memory where that takes at most 2 GiB, else while training. `on_bad_image` is "stop" (raise
    InputError, which names the file) or "skip" (weight 0, named in `bad`). Raises InputError for a missing
    split or class, a class without training images, classes or sizes that differ, and links out of the directory.
    """
    found = opened(directory, image_size, on_bad_image)
    return found._replace(**{split: decoded(source) for split, source in found.splits.items()})


def opened(
    directory: str | os.PathLike[str] | None, image_size: int | None = None, on_bad_image: str = "stop"
) -> Dataset:
    """The same data set with a Folder for each split: nothing is decoded yet."""
    root = existing("folder", directory, LAYOUT)
    found = {name: root / name for name in ("train", "test", *VALIDATION) if (root / name).is_dir()}
    held_out = [name for name in found if name != "train"]
    if "train" not in found or not held_out:
        raise missing("folder", root, LAYOUT)
    files = {name: _class_files(found[name], root) for name in ["train", *held_out[:2]]}
    classes = tuple(files["train"])
    _check_classes(root, files)
    size = shape([path for paths in files["train"].values() for path in paths], image_size)

    def source(split: str) -> Folder:
        paths = [path for name in classes for path in files[split][name]]
        labels = [label for label, name in enumerate(classes) for _ in files[split][name]]
        return Folder(paths, labels, size, image_size, on_bad_image == "skip")

    validation = source(held_out[1]) if len(held_out) > 1 else None
    return Dataset(title(root), source("train"), source(held_out[0]), classes, size, validation)


def _class_files(split: Path, root: Path) -> dict[str, list[Path]]:
    """The image files of each class, sorted."""
    inside(root, split)
    names = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {name: _image_files(split / name, root) for name in names}


def _image_files(top: Path, root: Path) -> list[Path]:
    """Raises InputError for a link that leads out of the data directory, where anyone's files may lie."""
    found = []
    inside(root, top)
    for place, _, names in os.walk(top):
        found += [Path(place, name) for name in names if not name.startswith(".")]
    found = sorted(path for path in found if path.suffix.lower() in images.SUFFIXES)
    return [inside(root, path) if path.is_symlink() else path for path in found]


def _check_classes(root: Path, files: dict[str, dict[str, list[Path]]]) -> None:
    train = files["train"]
    if not train:
        raise InputError(f"{str(root / 'train')!r} has no class folders", f"expected in {str(root)!r}: {LAYOUT}")
    for split, classes in files.items():
        if differing := sorted(set(train) ^ set(classes)):
            where = ", ".join(f"{name} (only in {'train' if name in train else split})" for name in differing)
            raise InputError(f"the classes of train and {split} differ: {where}", "give both the same class folders")
    if empty := [name for name, paths in train.items() if not paths]:
        raise InputError(
            f"the class {empty[0]!r} has no training images in {str(root / 'train' / empty[0])!r}",
            f"add images ({', '.join(sorted(images.SUFFIXES))}) or remove the class from every split",
        )


def shape(paths: list[Path], image_size: int | None) -> tuple[int, ...]:
    """The shape that images of `paths` have: the first readable one's, in the channels of the data set.

    Raises InputError where none can be read.
    """
    gray = []
    for i in spread(len(paths), HEADERS):
        try:
            gray.append(images.is_gray(paths[i]))
        except Exception:  # named when it is read, or skipped
            continue
    channels = 1 if gray and all(gray) else 3
    if image_size is not None:
        return image_size, image_size, channels
    for path in paths:
        try:
            return images.read(path, channels, None).shape
        except Exception:  # as above
            continue
    raise InputError(f"none of the {len(paths)} training images can be read, as {str(paths[0])!r}", "check the files")


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
