"""The directory that holds a data set, and the errors where it does not."""

import os
from pathlib import Path

from lepton_jax.errors import InputError


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


def reason(error: Exception) -> str:
    """What went wrong, in one line: the first of the error's own message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
