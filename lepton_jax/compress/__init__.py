"""Compression as transforms of parameter trees: prune, quantize, factorize, distill; one algebra, packed files."""

from lepton_jax.compress.base import Compression, chain, compressed, identity
from lepton_jax.compress.evaluation import applied
from lepton_jax.compress.leaves import Factored, Quantized, Sparse, unpacked

__all__ = ["Compression", "Factored", "Quantized", "Sparse", "applied", "chain", "compressed", "identity", "unpacked"]
