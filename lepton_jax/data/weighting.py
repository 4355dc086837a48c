"""How much each example counts, by its class."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lepton_jax.data.labeling import labels
from lepton_jax.data.sources import Source, View, gather
from lepton_jax.errors import InputError


def class_weights(source: Source, classes: int) -> Float[np.ndarray, " classes"]:
    """Weights that make every class count the same: examples / (classes * examples of the class), float32.

    They average to 1 over the examples (King and Zeng 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868;
    scikit-learn's "balanced"). Raises InputError for a class without examples, and labels outside 0..classes-1.
    """
    found = labels(source)
    counts = np.bincount(found[(found >= 0) & (found < classes)], minlength=classes)
    if counts.sum() < len(found):
        problem = f"there are labels from {found.min()} to {found.max()}, outside 0..{classes - 1}"
        raise InputError(problem, f"there are {classes} classes; number them from 0")
    if not counts.all():
        raise InputError(f"class {int(np.argmin(counts))} has no examples to weigh", "leave it out or give it examples")
    return (len(found) / (classes * counts)).astype(np.float32)


class Weighted(View):
    """`source`, where an example of class c has the weight `weights[c]`, times its own where it has one."""

    def __init__(self, source: Source, weights: Float[np.ndarray, " classes"]):
        self.source, self.weights = source, weights

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[0] for name, column in self.gather(np.array([i])).items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, in that order, with their weights."""
        columns = gather(self.source, indices)
        weight = self.weights[columns["label"]] * columns.get("weight", np.float32(1))
        return {**columns, "weight": weight}

    @property
    def labels(self) -> Int[np.ndarray, " examples"]:
        """The label of each example."""
        return labels(self.source)


def weighted(source: Source, weights: Any) -> Weighted:
    """The same source with a "weight" by class: `weights` [classes], as `class_weights` gives them.

    An example that has a weight already, as a broken image has 0, keeps it as a factor. Raises InputError for weights
    that are not finite numbers of at least 0, one per class, and for labels without one.
    """
    values = np.asarray(weights, np.float32)
    if values.ndim != 1 or not np.all(np.isfinite(values) & (values >= 0)):
        raise InputError(f"the class weights {weights} do not weigh classes", "give one number of at least 0 per class")
    found = labels(source)
    if len(found) and not 0 <= found.min() <= found.max() < len(values):
        problem = f"there are labels from {found.min()} to {found.max()} and weights for {len(values)} classes"
        raise InputError(problem, "give one weight per class")
    return Weighted(source, values)
