"""A small data set made larger on disk: the originals and augmented copies, with a record of where each came from."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lepton_jax import augment, files, keys
from lepton_jax.augment import Transform
from lepton_jax.data import npz, packed
from lepton_jax.data.checks import check
from lepton_jax.data.folder import Folder, opened
from lepton_jax.data.paths import reason
from lepton_jax.data.sheet import check_images
from lepton_jax.data.sources import Dataset, Source, gather
from lepton_jax.data.summary import fingerprint
from lepton_jax.errors import InputError

CHUNK = 64  # images augmented at once
RECORD = "provenance.json"
FILE = 8192  # bytes that a file may take beside its content: the rest of its last block, its lines in the record


def expand(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    policy: str,
    copies: int,
    seed: int = 0,
    image_size: int | None = None,
) -> Path:
    """Write `destination`: the data of `source`, `copies` augmented copies of each training image, and provenance.json.

    `source` is a directory of class folders, or a .npz file (or a directory of just one), which gives a directory
    with such a file. Held-out data is copied as it is. Copy k of image i is drawn from (seed, k, i) alone. The
    directory appears when it is complete, or not at all. Raises InputError for a destination that exists or is too
    small, data that cannot be read or are no images, an unknown policy, and fewer than 1 copy.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if copies < 1:
        raise InputError(f"--copies {copies} is below 1", "give the number of augmented copies of each image")
    key = keys.named(keys.seeded(seed), "expand")
    _check_places(source, destination)
    archive = _archive(source)
    dataset = check(opened(source, image_size) if archive is None else npz.npz(archive))
    if archive is not None and image_size is not None:
        raise InputError(f"the images of {str(archive)!r} have a fixed size", "leave --image-size out")
    check_images(dataset)
    made = _copies(dataset.train, augment.policy(policy, dataset.input_shape), copies, key)
    record = {
        "source": str(source),
        "fingerprint": fingerprint(dataset.train),
        "policy": policy,
        "copies": copies,
        "seed": seed,
        "image_size": image_size,
        "versions": _versions(),
    }
    nbytes = _folder_bytes(dataset, copies) if archive is None else _archive_bytes(archive, copies)
    with complete(destination, nbytes) as place:
        files = _write_folder(source, place, dataset, made) if archive is None else _write_npz(archive, place, made)
        (place / RECORD).write_text(json.dumps({**record, "files": files}, indent=1) + "\n")
    return destination


@contextlib.contextmanager
def complete(destination: Path, nbytes: int) -> Iterator[Path]:
    """A new directory beside `destination` to write in, which becomes it at the end and is removed where that fails.

    nbytes: what is going to be written at most. Raises InputError where it cannot be written or is too small.
    """
    place = destination.with_name(destination.name + ".part")
    try:
        place.mkdir()
    except FileExistsError:
        problem = f"{str(place)!r} is there: another expansion writes it, or one was stopped"
        raise InputError(problem, "remove it if no other is running") from None
    except OSError as error:
        raise _unwritable(destination, error) from error
    try:
        files.require_room(place, nbytes, "it")
        yield place
        place.rename(destination)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise _unwritable(destination, error) from error
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _folder_bytes(dataset: Dataset, copies: int) -> int:
    """What `_write_folder` and the record take at most."""
    train, paths = dataset.train, []
    for split in dataset.splits.values():
        assert isinstance(split, Folder)
        paths += split.paths
    # a PNG file of noise is as large as its pixels, and less than a hundredth more
    copy = math.prod(dataset.input_shape) * 101 // 100 + FILE
    return sum(path.stat().st_size + FILE for path in paths) + copies * len(train) * copy


def _archive_bytes(archive: Path, copies: int) -> int:
    """What `_write_npz` and the record take at most: all arrays for each copy, as if nothing could be compressed."""
    with zipfile.ZipFile(archive) as file:
        whole = sum(member.file_size for member in file.infolist())
    return (copies + 1) * whole * 101 // 100 + 2 * FILE


def _unwritable(destination: Path, error: OSError) -> InputError:
    problem = f"{str(destination)!r} cannot be written: {error.strerror or reason(error)}"
    return InputError(problem, "give a place in a directory that exists, with room")


def _check_places(source: Path, destination: Path) -> None:
    if os.path.lexists(destination):
        raise InputError(f"{str(destination)!r} exists", "give a new directory; nothing is ever overwritten")
    if destination.suffix == ".npz":
        problem = f"{str(destination)!r} would be a directory, with a .npz file and {RECORD} in it"
        raise InputError(problem, f"as in {destination.with_suffix('')}")
    if source.is_dir() and destination.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{str(destination)!r} lies in the data that it is made from", "give a place outside")


def _archive(source: Path) -> Path | None:
    """The .npz file that is meant, or None where it is a directory of classes."""
    return source if source.is_file() else next(iter(source.glob("*.npz")), None)


def _copies(source: Source, transform: Transform, copies: int, key: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """(copy, position, image), copy by copy: number 1 of every image, then number 2 ..."""
    several = jax.jit(augment.batched(transform))
    examples = len(source)
    for copy in range(1, copies + 1):
        own = jax.random.fold_in(key, copy)
        for start in range(0, examples, CHUNK):
            positions = np.minimum(np.arange(start, start + CHUNK), examples - 1)  # of one shape: compiled once
            drawn = jax.vmap(jax.random.fold_in, (None, 0))(own, positions)
            images = np.asarray(several(drawn, gather(source, positions)["input"]))
            yield from ((copy, start + row, image) for row, image in enumerate(images[: examples - start]))


def _write_folder(
    root: Path, place: Path, dataset: Dataset, made: Iterator[tuple[int, int, np.ndarray]]
) -> dict[str, Any]:
    """All files of the splits, and the copies beside the training images: the origin of each file."""
    from PIL import Image

    files: dict[str, Any] = {}
    for split in dataset.splits.values():
        assert isinstance(split, Folder)
        for path in split.paths:
            name = path.relative_to(root)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / name)
            files[name.as_posix()] = {"origin": name.as_posix(), "copy": 0}
    assert isinstance(dataset.train, Folder)
    for copy, position, image in made:
        origin = dataset.train.paths[position].relative_to(root)
        name = origin.with_name(f"{origin.name}.{copy}.png")
        if name.as_posix() in files:
            raise InputError(f"{str(root / name)!r} has the name that a copy would get", "rename it")
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place / name)
        files[name.as_posix()] = {"origin": origin.as_posix(), "copy": copy}
    return files


def _write_npz(archive: Path, place: Path, made: Iterator[tuple[int, int, np.ndarray]]) -> dict[str, Any]:
    """The file with more training images and labels: how to tell the origin of each."""
    columns = packed.arrays(archive)
    images, labels = next((a.format("train"), b.format("train")) for a, b in npz.NAMES if a.format("train") in columns)
    examples, shape = len(columns[images]), columns[images].shape[1:]
    new = np.stack([image for _, _, image in made]).reshape(-1, *shape).astype(columns[images].dtype)
    times = len(new) // examples + 1
    columns[labels] = np.concatenate([columns[labels]] * times)
    columns[images] = np.concatenate([columns[images], new])
    with (place / archive.name).open("wb") as file:
        arrays: dict[str, Any] = columns
        np.savez_compressed(file, **arrays)
    rule = {"origin of training image p": f"p % {examples}", "its copy, 0 for the original": f"p // {examples}"}
    return {archive.name: rule}


def _versions() -> dict[str, str]:
    names = ("lepton-jax", "jax", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
