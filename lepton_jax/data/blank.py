"""Images of zeros, to plan or to time a recipe whose data is elsewhere."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lepton_jax.data.sources import Dataset
from lepton_jax.errors import InputError

FORM = re.compile(r"(\d+)x(\d+)x(\d+):(\d+)")


class Blank:
    """One black image (uint8) of each class."""

    in_memory = True

    def __init__(self, shape: tuple[int, ...], classes: int):
        self.shape, self.labels = shape, np.arange(classes, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"input": np.zeros(self.shape, np.uint8), "label": self.labels[i]}

    def gather(self, indices: Sequence[int] | Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """Many at once."""
        return {"input": np.zeros((len(indices), *self.shape), np.uint8), "label": self.labels[np.asarray(indices)]}


def blank(form: str) -> Dataset:
    """The data set of a form like 224x224x3:1000: height, width, channels, and classes. Raises InputError."""
    match = FORM.fullmatch(form)
    numbers = [int(number) for number in match.groups()] if match else []
    if not numbers or min(numbers) < 1 or numbers[3] < 2:
        problem = f"'blank:{form}' is no shape of images with a number of classes"
        raise InputError(problem, "write height, width, channels and classes, as in blank:224x224x3:1000")
    *shape, classes = numbers
    source = Blank(tuple(shape), classes)
    return Dataset("blank", source, source, tuple(map(str, range(classes))), tuple(shape))
