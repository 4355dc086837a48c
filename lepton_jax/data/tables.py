"""Tables: a CSV file (comma) or TSV file (tab) of numbers with one column of labels.

The first line names the columns. Every column but the label's is a feature. Labels are whole numbers or text; the
class names, sorted, number them.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lepton_jax.data import packed
from lepton_jax.data.labeling import class_name, in_order, numbered
from lepton_jax.data.owning import owned
from lepton_jax.data.paths import existing, reason, split_files, title
from lepton_jax.data.sources import Arrays, Dataset, Source
from lepton_jax.data.splits import TRAIN_AND_TEST, split
from lepton_jax.errors import InputError, unknown

LAYOUT = "train.csv and test.csv, or one .csv file, which is then split by the seed; the first line names the columns"
LABEL = "label"


class Table(NamedTuple):
    """A file as read: feature names, features [examples, features], a class name and a line number per example, and
    whose it is where that was asked for."""

    path: Path
    names: tuple[str, ...]
    features: np.ndarray
    labels: list[str]
    lines: list[int]
    owners: list[str] | None = None


def table(
    directory: str | os.PathLike[str] | None, label: str = LABEL, seed: int = 0, by: str | None = None
) -> Dataset:
    """The data set in CSV files: float32 [features] with the classes of the column `label`.

    by: the column that says whose an example is, which is then no feature.

    Raises InputError for files that are missing, for a row of another length, a value that is not a finite number,
    a label column that is missing or there twice, and test labels or columns that the training data lacks.
    """
    root = existing("csv", directory, LAYOUT)
    tables = {part: read(path, label, by) for part, path in split_files("csv", root, (".csv", ".tsv"), LAYOUT).items()}
    first = tables["train" if "train" in tables else "all"]
    classes = in_order(first.labels)
    found: dict[str, Source] = {part: _source(one, first, classes) for part, one in tables.items()}
    found |= {part: owned(found[part], one.owners) for part, one in tables.items() if one is first}
    if "all" in found:
        found["train"], found["test"] = split(found["all"], TRAIN_AND_TEST, seed)
    shape = (len(first.names),)
    return Dataset(title(root), found["train"], found["test"], classes, shape, found.get("validation"))


def read(path: Path, label: str = LABEL, by: str | None = None) -> Table:
    """One file. Raises InputError, naming the line."""
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    rows = csv.reader(io.StringIO(packed.text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        head = [name.strip() for name in next(rows, [])]
        column = _label_column(path, head, label)
        owner = None if by is None else _owner_column(path, head, label, by)
        rest = [place for place in range(len(head)) if place not in (column, owner)]
        features, names, lines, owners = [], [], [], []
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(head):
                problem = f"line {rows.line_num} of {str(path)!r} has {len(row)} values, and the first line {len(head)}"
                raise InputError(problem, "give every row one value per column; quote text that holds the delimiter")
            names.append(_label(path, rows.line_num, row[column]))
            owners.append("" if owner is None else _owner(path, rows.line_num, row[owner]))
            features.append([row[place] for place in rest])
            lines.append(rows.line_num)
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {str(path)!r}: {reason(error)}", "repair the line") from error
    if not features:
        raise InputError(f"{str(path)!r} has no rows under its first line", f"expected: {LAYOUT}")
    kept = tuple(head[place] for place in rest)
    return Table(path, kept, _numbers(path, kept, features, lines), names, lines, None if owner is None else owners)


def _label_column(path: Path, head: Sequence[str], label: str) -> int:
    if twice := [name for name, count in Counter(head).items() if count > 1]:
        raise InputError(f"{str(path)!r} has the column {twice[0]!r} twice", "give every column a name of its own")
    if not head:
        problem = f"{str(path)!r} has no label column {label!r}: its first line is empty"
        raise InputError(problem, f"expected: {LAYOUT}")
    if label not in head:
        problem = unknown("column", label, head)
        raise InputError(
            f"{str(path)!r} has no label column {label!r} in its first line",
            f"{problem.remedy}; name the labels' column as in --data csv:NAME",
        )
    if len(head) == 1:
        raise InputError(f"{str(path)!r} has only the label column {label!r}", "give at least one column of features")
    return head.index(label)


def _owner_column(path: Path, head: Sequence[str], label: str, by: str) -> int:
    if by not in head or by == label or len(head) == 2:
        problem = f"{str(path)!r} has no column {by!r} that says whose a row is, beside the label and a feature"
        raise InputError(problem, f"its columns are {', '.join(head)}")
    return head.index(by)


def _owner(path: Path, line: int, value: str) -> str:
    if not value.strip():
        raise InputError(f"line {line} of {str(path)!r} does not say whose it is", "name somebody in every row")
    return value.strip()


def _label(path: Path, line: int, value: str) -> str:
    try:
        return class_name(value)
    except ValueError as error:
        raise InputError(f"line {line} of {str(path)!r}: {error}", "name a class in every row") from error


def _numbers(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[int]) -> np.ndarray:
    features = np.empty((len(rows), len(names)), np.float32)
    with np.errstate(over="ignore"):  # too large for float32 is named below
        for number, row in enumerate(rows):
            try:
                features[number] = [float(value) for value in row]
            except ValueError:
                features[number] = [_number_or_nan(value) for value in row]
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise InputError(
            f"line {lines[row]} of {str(path)!r} has {rows[row][column]!r} for {names[column]!r}, "
            "which is not a finite number",
            "give a number; leave out the row or the column where there is none",
        )
    return features


def _number_or_nan(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def _source(table: Table, first: Table, classes: tuple[str, ...]) -> Arrays:
    if table.names != first.names:
        problem = f"{str(table.path)!r} has the columns {', '.join(table.names)}, and {str(first.path)!r} "
        raise InputError(problem + ", ".join(first.names), "give all files the same columns in the same order")
    places = [f"line {line} of {str(table.path)!r}" for line in table.lines]
    return Arrays({"input": table.features, "label": numbered(table.labels, classes, places)})
