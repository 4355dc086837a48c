"""Examples by position: what a source is, sources in memory, and reading many examples at once.

An example is a dict: "input" (images as height, width, channel; uint8 0..255 or float in [0, 1]), "label"
(int32) and optional "weight" (0 takes the example out of every average). Anything with `__len__` and
`__getitem__` that gives such dicts is a source: a list of dicts, a grain.MapDataset, a class of one's own.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lepton_jax.data.prefetch import THREADS
from lepton_jax.errors import InputError

IN_MEMORY_BYTES = 2 * 1024**3  # decoded sets up to this size are held in memory
LAST_INT32 = 2**31 - 1


@runtime_checkable
class Source(Protocol):
    """Random access to examples, from several threads at once.

    May also have `gather(indices) -> dict of arrays`, the same for many at once; `labels`, those of all examples;
    `in_memory`, whether reading costs no more than copying; and `bad`, the paths of the files that could not be
    read and that have weight 0.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class Dataset(NamedTuple):
    """A data set as a recipe needs it. `input_shape` is one example's; `classes` are the labels' names."""

    name: str
    train: Source
    test: Source
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    validation: Source | None = None

    @property
    def splits(self) -> dict[str, Source]:
        """The sources by name: train, test, and validation where there is one."""
        given = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: source for name, source in given.items() if source is not None}

    @property
    def bad(self) -> tuple[str, ...]:
        """The files that could not be read and have weight 0, as far as they have been met."""
        return tuple(path for source in self.splits.values() for path in getattr(source, "bad", ()))


class Columns:
    """Columns in memory, in canonical types, whose leading axis is the examples."""

    in_memory = True
    columns: dict[str, np.ndarray]
    bad: tuple[str, ...] = ()

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[i] for name, column in self.columns.items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, in that order."""
        return {name: column.take(indices, axis=0) for name, column in self.columns.items()}

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples, where there are any."""
        return self.columns.get("label")


class Arrays(Columns):
    """A source in memory: a dict of arrays whose leading axis is the examples, and which must have "input".

    64-bit columns become 32-bit ones, labels int32, weights float32. Raises InputError for columns of
    different lengths and for columns that are not numbers.
    """

    def __init__(self, columns: Mapping[str, Any], bad: tuple[str, ...] = ()):
        self.columns = {name: canonical(name, column) for name, column in columns.items()}
        self.bad = bad
        if "input" not in self.columns:
            raise InputError(
                f"the data has no column 'input' (columns: {', '.join(self.columns) or 'none'})",
                "name the model's inputs 'input' and the targets 'label'",
            )
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"the columns have different numbers of examples ({counts})", "give each the same")

    def __len__(self) -> int:
        return len(self.columns["input"])


def canonical(name: str, column: Any) -> np.ndarray:
    """A column in the types that a batch has: 32-bit numbers, int32 labels, float32 weights.

    Raises InputError for text, objects, a scalar, and integers that int32 cannot hold.
    """
    array = np.asarray(column)
    if array.dtype.kind in "OSUMm" or array.ndim == 0:
        held = "a single value" if array.ndim == 0 else f"values of type {array.dtype}"
        raise InputError(f"the column {name!r} holds {held}", "give an array of numbers, one row per example")
    if name == "weight" or array.dtype == np.float64:
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "iub" and (array.dtype.itemsize == 8 or name == "label"):
        if array.size and (array.max() > LAST_INT32 or array.min() < -LAST_INT32):
            raise InputError(f"the column {name!r} has numbers beyond 32 bits", "use smaller integers")
        return array.astype(np.int32, copy=False)
    return array


def gather(source: Source, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """The examples at `indices` (at least one) as a dict of arrays with a leading axis, in canonical types.

    Uses the source's own `gather` where it has one. Raises InputError where examples differ in shape.
    """
    indices = np.asarray(indices)
    if isinstance(source, Columns):
        return source.gather(indices)  # in canonical types from the start
    together = getattr(source, "gather", None)
    if together is not None:
        columns = together(indices)
    else:
        items = [source[int(i)] for i in indices]
        columns = {name: _stack(name, items, indices) for name in items[0]}
    return {name: canonical(name, column) for name, column in columns.items()}


def in_memory(source: Source) -> bool:
    """Whether reading from `source` costs no more than copying, as it says itself."""
    return bool(getattr(source, "in_memory", False))


def _stack(name: str, items: list[Any], indices: np.ndarray) -> np.ndarray:
    rows = [np.asarray(item[name]) if name in item else None for item in items]
    first = rows[0]
    assert first is not None
    for i, row in zip(indices, rows, strict=True):
        if row is None or row.shape != first.shape:
            got = "no such column" if row is None else f"shape {row.shape}"
            raise InputError(
                f"example {i} has {got} for {name!r}, and example {indices[0]} has shape {first.shape}",
                "give every example the same columns and shapes (resize or pad them)",
            )
    return np.stack([row for row in rows if row is not None])


class View:
    """What sources over another source have in common: `source`, how fast it is read, and what of it is broken."""

    source: Source

    @property
    def in_memory(self) -> bool:
        """Whether reading costs no more than copying."""
        return in_memory(self.source)

    @property
    def bad(self) -> tuple[str, ...]:
        """The files of the source that could not be read, as far as they have been asked for."""
        return getattr(self.source, "bad", ())


def as_source(data: Any) -> Source:
    """`data` as a source: a source itself, a dict of columns, (inputs, labels), or an array of inputs alone.

    Labels of shape [examples, 1] lose their last axis. Raises InputError for anything else.
    """
    if isinstance(data, Mapping):
        return Arrays(data)
    if isinstance(data, tuple) and len(data) == 2:
        return Arrays({"input": data[0], "label": flat_labels(data[1])})
    if hasattr(data, "__array__"):
        return Arrays({"input": data})
    if isinstance(data, Source) and len(data) and isinstance(data[0], Mapping) and "input" in data[0]:
        return data
    raise InputError(
        f"data of type {type(data).__name__} is not a source",
        "give (inputs, labels), a dict of arrays, or a sequence of dicts with 'input' and 'label'",
    )


def flat_labels(labels: Any) -> np.ndarray:
    """Labels of shape [examples, 1], as some data sets store them, as [examples]."""
    labels = np.asarray(labels)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def decoded(source: Source) -> Source:
    """All of `source` in memory, read in threads, if that takes at most IN_MEMORY_BYTES; else `source`."""
    examples = len(source)
    if examples == 0:
        return source
    first = {name: np.asarray(value) for name, value in source[0].items()}
    if examples * sum(value.nbytes for value in first.values()) > IN_MEMORY_BYTES:
        return source
    columns = {name: np.empty((examples, *value.shape), value.dtype) for name, value in first.items()}

    def fill(start: int) -> None:
        for i in range(start, min(start + 64, examples)):
            for name, value in source[i].items():
                if np.shape(value) != first[name].shape:
                    _stack(name, [first, {name: value}], np.array([0, i]))  # says which and raises
                columns[name][i] = value

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, range(0, examples, 64)):
            pass
    return Arrays(columns, bad=getattr(source, "bad", ()))
