"""From files and arrays to deterministic batches."""

from lepton_jax.data.catalog import NAMES, load
from lepton_jax.data.checks import check, check_labels
from lepton_jax.data.sources import Arrays, Dataset, Source, as_source, gather
from lepton_jax.data.stream import Stream, evaluation_batches
from lepton_jax.data.summary import fingerprint, statistics

__all__ = [
    "Arrays",
    "Dataset",
    "NAMES",
    "Source",
    "Stream",
    "as_source",
    "check",
    "check_labels",
    "evaluation_batches",
    "fingerprint",
    "gather",
    "load",
    "statistics",
]
