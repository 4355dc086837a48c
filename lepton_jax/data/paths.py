"""The directory that holds a data set, the files of its splits, and the errors where they do not fit."""

import os
from pathlib import Path

from lepton_jax.errors import InputError

SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


def existing(name: str, directory: str | os.PathLike[str] | None, layout: str) -> Path:
    """`directory` as a path. Raises InputError if it is not given, not there or empty.

    `layout` says what belongs in it; the messages name the path as it was given.
    """
    if directory is None:
        raise InputError(
            f"the data set {name!r} reads files, and no directory is given",
            f"pass --data-dir PATH; expected there: {layout}",
        )
    path = Path(directory).expanduser()
    if not path.exists():
        raise InputError(f"the data directory {str(directory)!r} does not exist", f"expected there: {layout}")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"the data directory {str(directory)!r} is empty", f"expected there: {layout}")
    return path


def missing(name: str, path: Path, layout: str) -> InputError:
    """The error for a directory that is there and does not hold the data set."""
    return InputError(f"no {name} data in {str(path)!r}", f"expected there: {layout}")


def split_files(name: str, place: Path, suffixes: tuple[str, ...], layout: str) -> dict[str, Path]:
    """The files train.SUFFIX, test.SUFFIX and perhaps val.SUFFIX by split, or {"all": the only file}.

    Each may be packed, as train.SUFFIX.gz. `place` is a directory, or the only file itself. Without a test
    file, val (valid, validation) takes its part. Raises InputError where the files leave a question open.
    """
    if place.is_file():
        return {"all": place}
    files = [path for path in sorted(place.iterdir()) if path.is_file() and _bare(path).endswith(suffixes)]
    if not files:
        raise missing(name, place, layout)
    if len(files) == 1:
        return {"all": inside(place, files[0])}
    found: dict[str, Path] = {}
    for path in files:
        split = SPLITS.get(_bare(path).rpartition(".")[0].lower(), "")
        if split in found:
            raise InputError(f"{str(found[split])!r} and {str(path)!r} are both {split} data", "remove one of them")
        if split:
            found[split] = inside(place, path)
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if not {"train", "test"} <= set(found):
        raise InputError(
            f"{str(place)!r} holds {len(files)} files of {name} data, and not train and test among them",
            f"call them train{suffixes[0]} and test{suffixes[0]}, or name one file: --data-dir {files[0]}",
        )
    return found


def _bare(path: Path) -> str:
    """The file's name without .gz."""
    return path.name.removesuffix(".gz")


def inside(root: Path, path: Path) -> Path:
    """`path`, if it lies in `root` once every link is followed. Raises InputError if not."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{str(path)!r} leads to {str(path.resolve())!r}, outside the data directory {str(root)!r}",
            "copy the files into the data directory, or give the directory that holds them all",
        )
    return path


def title(root: Path) -> str:
    """What a data set in `root` is called: the directory's name, or the file's up to its first dot."""
    name = root.resolve().name
    return name.split(".")[0] or name if root.is_file() else name


def reason(error: Exception) -> str:
    """What went wrong, in one line: the first of the error's own message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
