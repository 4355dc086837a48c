"""Compression as transforms of parameter trees: prune, quantize, factorize, distill; one algebra, packed files."""

from lepton_jax.compress.adaptation import frozen, lora, lora_only
from lepton_jax.compress.base import Compression, chain, compressed, identity
from lepton_jax.compress.channels import choose, fewer_channels, fewer_macs, l1, l2, norm_scale, remove, taylor
from lepton_jax.compress.decompositions import svd, tucker
from lepton_jax.compress.densities import each, erdos_renyi, erdos_renyi_kernel, uniform
from lepton_jax.compress.dependencies import graph
from lepton_jax.compress.distill import attention, beside, decoupled, fitnet, hinted, hinton, unhinted
from lepton_jax.compress.evaluation import applied
from lepton_jax.compress.exposure import exposed
from lepton_jax.compress.leaves import Factored, Quantized, Sparse, unpacked
from lepton_jax.compress.lottery import tickets
from lepton_jax.compress.lowrank import by_factors, factorized, output_error
from lepton_jax.compress.masks import fixed, held
from lepton_jax.compress.norms import wanda
from lepton_jax.compress.programs import macs
from lepton_jax.compress.pruning import gradual, magnitude, once, prune, pruned, random, saliency
from lepton_jax.compress.ranking import across, blocks, n_of_m, per_output, within
from lepton_jax.compress.ranks import by_budget, by_energy, by_ratio, explicit
from lepton_jax.compress.regrowth import rigl
from lepton_jax.compress.widths import shrunk

__all__ = [
    "Compression",
    "Factored",
    "Quantized",
    "Sparse",
    "across",
    "applied",
    "attention",
    "beside",
    "blocks",
    "by_budget",
    "by_energy",
    "by_factors",
    "by_ratio",
    "chain",
    "choose",
    "compressed",
    "decoupled",
    "each",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "explicit",
    "exposed",
    "factorized",
    "fewer_channels",
    "fewer_macs",
    "fitnet",
    "fixed",
    "frozen",
    "gradual",
    "graph",
    "held",
    "hinted",
    "hinton",
    "identity",
    "l1",
    "l2",
    "lora",
    "lora_only",
    "macs",
    "magnitude",
    "n_of_m",
    "norm_scale",
    "once",
    "output_error",
    "per_output",
    "prune",
    "pruned",
    "random",
    "remove",
    "rigl",
    "saliency",
    "shrunk",
    "svd",
    "taylor",
    "tickets",
    "tucker",
    "unhinted",
    "uniform",
    "unpacked",
    "wanda",
    "within",
]
