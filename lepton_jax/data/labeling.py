"""Labels: those of a whole source, and class names as numbers."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from lepton_jax.data.prefetch import ahead
from lepton_jax.data.sources import Source, gather
from lepton_jax.errors import InputError, unknown

CHUNK = 256  # examples read at once


def labels(source: Source) -> Int[np.ndarray, " examples"]:
    """The label of every example, int32: the source's own `labels`, or read one by one, in threads.

    Raises InputError for a source without one integer label per example.
    """
    found = getattr(source, "labels", None)
    found = column(source, "label") if found is None else np.asarray(found)
    if found is None or found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError("the examples have no class each", "give a column 'label' of one integer per example")
    return found.astype(np.int32, copy=False)


def column(source: Source, name: str) -> np.ndarray | None:
    """A column of all examples, read in threads; None where the first one does not have it."""
    if not len(source) or name not in gather(source, [0]):
        return None

    def chunk(number: int) -> np.ndarray:
        return gather(source, np.arange(number * CHUNK, min((number + 1) * CHUNK, len(source))))[name]

    return np.concatenate(list(ahead(chunk, 0, -(-len(source) // CHUNK))))


def class_name(value: str | float) -> str:
    """A label as the name of its class: text as it is, whole numbers as such ("1.0" is "1").

    Raises ValueError for an empty one and for a number that is not whole.
    """
    name = str(value).strip()
    if not name:
        raise ValueError("the label is empty")
    try:
        number = float(name)
    except ValueError:
        return name
    if not number.is_integer():
        raise ValueError(f"the label {name!r} is not a class: neither text nor a whole number")
    return str(int(number))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The different names, sorted: by number where all are numbers, else as text."""
    different = set(names)
    try:
        return tuple(sorted(different, key=int))
    except ValueError:
        return tuple(sorted(different))


def numbered(names: Sequence[str], classes: Sequence[str], places: Sequence[str]) -> Int[np.ndarray, " examples"]:
    """The position of each name among the classes. Raises InputError for one that is not there, at its place."""
    number = {name: position for position, name in enumerate(classes)}
    for name, place in zip(names, places, strict=True):
        if name not in number:
            problem = unknown("label", name, classes)
            raise InputError(f"{problem.problem} in {place}: the training data has none", problem.remedy)
    return np.array([number[name] for name in names], np.int32)
