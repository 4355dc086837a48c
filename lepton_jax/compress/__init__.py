"""Compression as transforms of parameter trees: prune, quantize, factorize, distill; one algebra, packed files."""

from lepton_jax.compress.base import Compression, chain, compressed, identity
from lepton_jax.compress.densities import each, erdos_renyi, erdos_renyi_kernel, uniform
from lepton_jax.compress.evaluation import applied
from lepton_jax.compress.leaves import Factored, Quantized, Sparse, unpacked
from lepton_jax.compress.lottery import tickets
from lepton_jax.compress.masks import fixed, held
from lepton_jax.compress.norms import wanda
from lepton_jax.compress.pruning import gradual, magnitude, once, prune, pruned, random, saliency
from lepton_jax.compress.ranking import across, blocks, n_of_m, per_output, within
from lepton_jax.compress.regrowth import rigl

__all__ = [
    "Compression",
    "Factored",
    "Quantized",
    "Sparse",
    "across",
    "applied",
    "blocks",
    "chain",
    "compressed",
    "each",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "fixed",
    "gradual",
    "held",
    "identity",
    "magnitude",
    "n_of_m",
    "once",
    "per_output",
    "prune",
    "pruned",
    "random",
    "rigl",
    "saliency",
    "tickets",
    "uniform",
    "unpacked",
    "wanda",
    "within",
]
