"""What is in a data set, for people: counts, classes, ranges, duplicates, broken files."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lepton_jax.data.labeling import labels
from lepton_jax.data.prefetch import ahead
from lepton_jax.data.sources import Dataset, Source, gather
from lepton_jax.data.summary import statistics
from lepton_jax.errors import InputError

CHUNK = 256  # examples read at once
CLASSES = 50  # lines of a printed table
NAMED = 10  # files, duplicates


class Part(NamedTuple):
    """One split. `counts` has an entry per class, and none where labels are per token; so have mean and deviation."""

    examples: int
    shape: tuple[int, ...]
    dtype: str
    counts: tuple[int, ...]
    mean: tuple[float, ...]  # per channel; uint8 counts as [0, 1]
    deviation: tuple[float, ...]


class Duplicate(NamedTuple):
    """An input that is there again: (split, position) of the first and of the other."""

    first: tuple[str, int]
    again: tuple[str, int]


class Description(NamedTuple):
    """A data set described."""

    name: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    duplicates: tuple[Duplicate, ...]
    bad: tuple[str, ...]

    def repeated(self, first: str, again: str) -> int:
        """How many examples of the split `again` were there before, first seen in the split `first`."""
        return sum((one.first[0], one.again[0]) == (first, again) for one in self.duplicates)

    def __str__(self) -> str:
        return "\n".join([*_splits(self), *_classes(self), *_duplicates(self), *_bad(self)])


def describe(dataset: Dataset) -> Description:
    """Read all of a data set and describe it; duplicates are found by a digest of the input's bytes.

    An example of weight 0, as a file that cannot be read, is no duplicate of anything.
    """
    duplicates = tuple(_repeated(dataset))  # reads all, and so finds all that cannot be read
    parts = {split: _part(source, len(dataset.classes)) for split, source in dataset.splits.items()}
    return Description(dataset.name, dataset.classes, parts, duplicates, dataset.bad)


def _part(source: Source, classes: int) -> Part:
    inputs = gather(source, [0])["input"]
    per_token = inputs.dtype == np.int32
    mean, deviation = (np.zeros(0), np.zeros(0)) if per_token else statistics(source)
    try:
        counts = tuple(np.bincount(labels(source), minlength=classes).tolist())
    except InputError:  # labels per token
        counts = ()
    return Part(
        len(source), inputs.shape[1:], str(inputs.dtype), counts, tuple(mean.tolist()), tuple(deviation.tolist())
    )


def _repeated(dataset: Dataset) -> Iterator[Duplicate]:
    seen: dict[bytes, tuple[str, int]] = {}
    for split, source in dataset.splits.items():
        for position, digest in enumerate(_digests(source)):
            if digest is None:
                continue
            first = seen.setdefault(digest, (split, position))
            if first != (split, position):
                yield Duplicate(first, (split, position))


def _digests(source: Source) -> Iterator[bytes | None]:
    """A digest per example; None where it has no weight."""

    def read(chunk: int) -> list[bytes | None]:
        columns = gather(source, np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(source))))
        weights = columns.get("weight", np.ones(len(columns["input"])))
        rows = zip(columns["input"], weights, strict=True)
        return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() if w else None for row, w in rows]

    for digests in ahead(read, 0, -(-len(source) // CHUNK)):
        yield from digests


def _splits(found: Description) -> list[str]:
    rows = [["split", "examples", "input", "type", "mean", "deviation"]]
    for split, part in found.parts.items():
        shape = "x".join(map(str, part.shape))
        rows.append([split, f"{part.examples:,}", shape, part.dtype, _figures(part.mean), _figures(part.deviation)])
    return [f"data        {found.name}, {len(found.classes):,} classes", "", *_aligned(rows), ""]


def _figures(values: Sequence[float]) -> str:
    shown = " ".join(f"{value:.4g}" for value in values[:4])
    return f"{shown} and {len(values) - 4} more" if len(values) > 4 else shown or "-"


def _classes(found: Description) -> list[str]:
    if not any(part.counts for part in found.parts.values()):
        return []
    rows = [["class", *found.parts]]
    for number, name in enumerate(found.classes[:CLASSES]):
        rows.append([name, *(f"{part.counts[number]:,}" if part.counts else "-" for part in found.parts.values())])
    more = len(found.classes) - CLASSES
    return [*_aligned(rows), *([f"and {more:,} more classes"] if more > 0 else []), ""]


def _duplicates(found: Description) -> list[str]:
    if not found.duplicates:
        return ["duplicates  none, within splits or across them"]
    pairs = Counter((one.first[0], one.again[0]) for one in found.duplicates)
    lines = [
        f"duplicates  {count:,} {f'within {first}' if first == again else f'in {again} that {first} has too'}"
        for (first, again), count in sorted(pairs.items())
    ]
    for one in found.duplicates[:NAMED]:
        lines.append(f"            {one.again[0]} {one.again[1]} is {one.first[0]} {one.first[1]}")
    more = len(found.duplicates) - NAMED
    return [*lines, *([f"            and {more:,} more"] if more > 0 else [])]


def _bad(found: Description) -> list[str]:
    more = len(found.bad) - NAMED
    return [
        f"broken      {len(found.bad):,} files",
        *(f"            {path}" for path in found.bad[:NAMED]),
        *([f"            and {more:,} more"] if more > 0 else []),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(max(10, widths[0])), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
