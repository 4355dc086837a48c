"""From files and arrays to deterministic batches."""

from lepton_jax.data.catalog import NAMES, load
from lepton_jax.data.checks import check, check_labels
from lepton_jax.data.description import describe
from lepton_jax.data.drawing import Drawing
from lepton_jax.data.labeling import labels
from lepton_jax.data.mapping import mapped
from lepton_jax.data.mixing import Mixture, mixture
from lepton_jax.data.owning import owned, owners
from lepton_jax.data.resident import Resident
from lepton_jax.data.sources import Arrays, Dataset, Source, as_source, gather
from lepton_jax.data.splits import Subset, split
from lepton_jax.data.stream import Batches, Stream, evaluation_batches
from lepton_jax.data.summary import fingerprint, statistics
from lepton_jax.data.weighting import class_weights, weighted

__all__ = [
    "Arrays",
    "Batches",
    "Dataset",
    "Drawing",
    "Mixture",
    "NAMES",
    "Resident",
    "Source",
    "Stream",
    "Subset",
    "as_source",
    "check",
    "check_labels",
    "class_weights",
    "describe",
    "evaluation_batches",
    "fingerprint",
    "gather",
    "labels",
    "load",
    "mapped",
    "mixture",
    "owned",
    "owners",
    "split",
    "statistics",
    "weighted",
]
