"""Files that are complete, or as they were before."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def written(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path beside `target` to write to; what is there at the end is on the disk, and in the target's place.

    Where writing fails the target is as it was, and nothing is left beside it. Raises OSError.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def require_room(place: os.PathLike[str], nbytes: int, what: str) -> None:
    """Raise OSError where fewer than `nbytes` are free; `what` needs them."""
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise OSError(f"disk full: {what} needs up to {_megabytes(nbytes)} and {_megabytes(free)} are free")


def _megabytes(nbytes: int) -> str:
    size = nbytes / 1e6
    return f"{f'{size:,.1f}'.removesuffix('.0') if size >= 1 else f'{size:.3f}'} MB"
