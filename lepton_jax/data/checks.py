"""Data that cannot be trained on, found before the first step rather than as a NaN an hour later."""

from collections.abc import Iterator, Mapping

import numpy as np

from lepton_jax.data.sources import Dataset, Source, gather, in_memory
from lepton_jax.data.summary import spread
from lepton_jax.errors import InputError

SAMPLE = 256  # examples looked at in a source that is not in memory
CHUNK = 4096  # examples looked at together


def check(dataset: Dataset) -> Dataset:
    """`dataset`, if it can be trained on. Raises InputError if not, naming split, index and value.

    Each split has examples; labels are integers within the classes, one per example or, for token ids (int32),
    one per token; floating-point inputs are finite; all splits agree with `input_shape` and in the inputs' type.
    Sources in memory are looked at in full, others at 256 evenly spread examples.
    """
    for split, source in dataset.splits.items():
        if len(source) == 0:
            raise InputError(f"the {split} split has no examples", "give at least one example")
    expected = gather(dataset.train, [0])["input"].dtype
    for split, source in dataset.splits.items():
        for positions, columns in _pieces(source):
            _check_shape(split, columns["input"], dataset.input_shape, expected)
            _check_finite(split, positions, columns["input"])
            _check_labels(split, positions, columns, len(dataset.classes))
    return dataset


def check_labels(split: str, source: Source, classes: int) -> None:
    """Raise InputError for labels that are not integers, one per example, in 0..classes-1; looks as `check` does."""
    for positions, columns in _pieces(source):
        _check_labels(split, positions, columns, classes)


def _pieces(source: Source) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(positions, columns) of what is to be looked at."""
    looked_at = np.arange(len(source)) if in_memory(source) else spread(len(source), SAMPLE)
    for start in range(0, len(looked_at), CHUNK):
        positions = looked_at[start : start + CHUNK]
        yield positions, gather(source, positions)


def _check_shape(split: str, inputs: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if inputs.shape[1:] != shape:
        raise InputError(
            f"{split} inputs have shape {inputs.shape[1:]} and the data set's are {shape}",
            "give every split the same shape (for image folders: --image-size)",
        )
    if inputs.dtype != dtype:
        raise InputError(
            f"{split} inputs are {inputs.dtype} and train inputs are {dtype}",
            "store both as uint8 0..255, or both as float32 in [0, 1]",
        )


def _check_finite(split: str, positions: np.ndarray, inputs: np.ndarray) -> None:
    if inputs.dtype.kind != "f" or np.isfinite(inputs).all():
        return
    row = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(1)))
    value = inputs[row][~np.isfinite(inputs[row])].flat[0]
    raise InputError(
        f"the {split} input at index {positions[row]} has the value {value}; inputs must be finite",
        "remove the example or repair its values",
    )


def _check_labels(split: str, positions: np.ndarray, columns: Mapping[str, np.ndarray], classes: int) -> None:
    labels, inputs = columns.get("label"), columns.get("input")
    if labels is None:
        raise InputError(f"the {split} split has no labels", "give a column 'label' of integers")
    one_per_token = inputs is not None and inputs.dtype == np.int32 and labels.shape == inputs.shape
    if labels.dtype.kind not in "iu" or not (labels.ndim == 1 or one_per_token):
        raise InputError(
            f"{split} labels are {labels.dtype} of shape {('examples', *labels.shape[1:])}",
            "give one integer per example: 0 for the first class, 1 for the second ...",
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(np.argmax(outside.reshape(len(labels), -1).any(1)))
        raise InputError(
            f"the {split} label at index {positions[row]} is {labels[row][outside[row]].flat[0]}, "
            f"outside 0..{classes - 1}",
            f"there are {classes} classes; number them from 0",
        )
