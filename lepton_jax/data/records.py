"""JSON lines: one object a line, with a "label" (a whole number or text) and one of

"input"   numbers, or lists of them, of one shape in all lines
"text"    a text, which becomes its UTF-8 bytes: int32 [length], and "mask", bool [length], where there are any
"image"   the name of an image file, relative to the file of lines and inside its directory
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.data import folder, packed
from lepton_jax.data.labeling import class_name, in_order, numbered
from lepton_jax.data.owning import owned
from lepton_jax.data.paths import existing, inside, reason, split_files, title
from lepton_jax.data.sources import Arrays, Dataset, Source, decoded
from lepton_jax.data.splits import TRAIN_AND_TEST, split
from lepton_jax.data.text import LENGTH, encoded, padded
from lepton_jax.errors import InputError

LAYOUT = "train.jsonl and test.jsonl, or one .jsonl file, which is then split by the seed"
EXPECTED = 'expected: one object a line, as {"input": [0.5, 1], "label": "a"}'
KINDS = ("input", "text", "image")


class Records(NamedTuple):
    """A file as read: what its inputs are, and an input, a class name and a line number per example, and whose it is
    where that was asked for."""

    path: Path
    kind: str
    inputs: list[Any]
    labels: list[str]
    lines: list[int]
    owners: list[str] | None = None


def records(
    directory: str | os.PathLike[str] | None,
    length: int = LENGTH,
    image_size: int | None = None,
    on_bad_image: str = "stop",
    seed: int = 0,
    by: str | None = None,
) -> Dataset:
    """The data set in JSON lines. Texts are cut or padded to `length`; images as for `folder`.

    by: the key of a text or whole number that says whose a line is.

    Raises InputError, naming the line, for what is not such an object, for a key that comes twice, for numbers that
    are not finite, and for images outside the directory.
    """
    root = existing("jsonl", directory, LAYOUT)
    files = {part: read(path, by) for part, path in split_files("jsonl", root, (".jsonl",), LAYOUT).items()}
    first = files["train" if "train" in files else "all"]
    for other in files.values():
        if other.kind != first.kind:
            problem = f"{str(other.path)!r} has {other.kind!r} and {str(first.path)!r} {first.kind!r}"
            raise InputError(problem, "give all files the same kind of inputs")
    classes = in_order(first.labels)
    shape = folder.shape(_images(first), image_size) if first.kind == "image" else None

    def source(one: Records) -> Source:
        places = [f"line {line} of {str(one.path)!r}" for line in one.lines]
        numbers = numbered(one.labels, classes, places)
        if shape is not None:
            skip = on_bad_image == "skip"
            return decoded(folder.Folder(_images(one), numbers.tolist(), shape, image_size, skip))
        columns = _texts(one.inputs, length) if one.kind == "text" else {"input": _stacked(one)}
        return Arrays({**columns, "label": numbers})

    found = {part: owned(source(one), one.owners if one is first else None) for part, one in files.items()}
    if "all" in found:
        found["train"], found["test"] = split(found["all"], TRAIN_AND_TEST, seed)
    given = found["train"][0]["input"].shape
    return Dataset(title(root), found["train"], found["test"], classes, given, found.get("validation"))


def read(path: Path, by: str | None = None) -> Records:
    """One file. Raises InputError, naming the line."""
    inputs, names, lines, kinds, owners = [], [], [], [], []
    for number, line in enumerate(packed.text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = _object(line)
            kind, value, name = _record(record)
            owners.append("" if by is None else _owner(record, by))
            if kinds and kind != kinds[0]:
                raise ValueError(f"it has {kind!r}, and line {lines[0]} has {kinds[0]!r}")
        except (ValueError, RecursionError) as error:
            problem = f"line {number} of {str(path)!r}: {reason(error)}"
            raise InputError(problem, EXPECTED) from error
        kinds.append(kind)
        inputs.append(value)
        names.append(name)
        lines.append(number)
    if not inputs:
        raise InputError(f"{str(path)!r} has no lines", f"expected: {LAYOUT}")
    return Records(path, kinds[0], inputs, names, lines, None if by is None else owners)


def _object(line: str) -> dict[str, Any]:
    """What a line holds. Raises ValueError."""
    try:
        record = json.loads(line, object_pairs_hook=_once, parse_constant=_refuse)
    except json.JSONDecodeError as error:  # its own message counts lines, of which it has seen one
        raise ValueError(f"{error.msg} at character {error.colno}") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__} and not an object")
    return record


def _owner(record: dict[str, Any], by: str) -> str:
    """Whose a record is. Raises ValueError."""
    name = record.get(by)
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        known = f"its {by!r} is {json.dumps(name)}" if by in record else f"it has no {by!r}"
        raise ValueError(f"{known}, which is to say whose it is")
    return str(name)


def _record(record: dict[str, Any]) -> tuple[str, Any, str]:
    """The kind of a record's input, the input, and its class name. Raises ValueError."""
    given = [kind for kind in KINDS if kind in record]
    if len(given) != 1:
        raise ValueError(f"it has {' and '.join(map(repr, given)) or 'none'} of {', '.join(map(repr, KINDS))}")
    label = record.get("label")
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        raise ValueError(f"its 'label' is {json.dumps(label)}" if "label" in record else "it has no 'label'")
    kind, value = given[0], record[given[0]]
    if kind != "input" and not isinstance(value, str):
        raise ValueError(f"its {kind!r} is not a text")
    return kind, _array(value) if kind == "input" else value, class_name(label)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a finite number")


def _array(value: Any) -> np.ndarray:
    """Numbers, or lists of them, as float32. Raises ValueError for anything else."""
    array = np.asarray(value)  # raises for ragged lists
    if array.dtype.kind not in "iuf" or not array.size:
        raise ValueError("its 'input' is not made of numbers alone")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("its 'input' has a number that float32 cannot hold")
    return np.atleast_1d(array)


def _stacked(found: Records) -> np.ndarray:
    shapes = [value.shape for value in found.inputs]
    for line, shape in zip(found.lines, shapes, strict=True):
        if shape != shapes[0]:
            problem = f"line {line} of {str(found.path)!r} has an 'input' of shape {shape}, and line {found.lines[0]} "
            raise InputError(f"{problem}one of {shapes[0]}", "give every input the same shape")
    return np.stack(found.inputs)


def _texts(texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
    pieces = [encoded(text) for text in texts]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    ids, mask = padded(np.concatenate([*pieces, np.zeros(1, np.uint8)]), starts, ends, length)
    return {"input": ids, "mask": mask}


def _images(found: Records) -> list[Path]:
    """The image files, each inside the directory of lines. Raises InputError for one that is not."""
    root, paths = found.path.parent, []
    for line, name in zip(found.lines, found.inputs, strict=True):
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise InputError(
                f"line {line} of {str(found.path)!r} names the image {name!r}, which leaves its directory",
                f"name images relative to {str(root)!r} and inside it",
            )
        paths.append(inside(root, root / name))
    return paths
