"""The list of a checkpoint's files: how long each is, and a checksum of its bytes.

It names the file that is gone, cut short or altered, before a reader stumbles over it. It is written when a step is
complete, so a crash may leave a step without one; what its leaves hold is verified in any case (`digests`).
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any

NAME = "files.json"
LARGEST = 2**26  # bytes; what is in longer files is left to the leaves' digests
BLOCK = 2**20  # bytes
Path = Any  # of etils, which Orbax has: local or remote


def seal(place: Path) -> None:
    """Write the list of the files under a directory, local or remote, unless it is there."""
    if (place / NAME).exists():
        return
    part = place / f"{NAME}.part"
    part.write_text(json.dumps(listed(place), indent=1))
    part.replace(place / NAME)


def damage(place: Path) -> str | None:
    """What of the files is not as the list says; None where all are, or where there is no list that can be read."""
    try:
        known = {str(name): tuple(entry) for name, entry in json.loads((place / NAME).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    found = listed(place)
    for name, entry in known.items():
        if name not in found:
            return f"{place / name} is gone"
        if found[name] != entry:
            same = found[name][0] == entry[0]
            return f"{place / name} is {'altered' if same else f'{found[name][0]} bytes long and was {entry[0]}'}"
    return None


def listed(place: Path) -> dict[str, tuple[int, str]]:
    """{path: (length, checksum)} of the files under a directory but for the list itself."""
    return {name: entry(path) for name, path in sorted(_files(place)) if not name.startswith(NAME)}


def _files(place: Path, within: str = "") -> Iterator[tuple[str, Path]]:
    """(its path below the directory, itself) of every file; by names, as walk() of a store gives other paths."""
    for path in place.iterdir():
        if path.is_dir():
            yield from _files(path, f"{within}{path.name}/")
        else:
            yield within + path.name, path


def entry(path: Path) -> tuple[int, str]:
    """The length of a file and the CRC-32 of its bytes, which is empty where the file is long."""
    length, total = path.stat().length, 0
    if length > LARGEST:
        return length, ""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
    return length, f"{total:08x}"
