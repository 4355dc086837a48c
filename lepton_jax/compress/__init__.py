"""Compression as transforms of parameter trees: prune, quantize, factorize, distill; one algebra, packed files."""

from lepton_jax.compress.activations import input_scales, rounded_inputs, whole_in_floats, whole_numbers, with_inputs
from lepton_jax.compress.adaptation import frozen, lora, lora_only
from lepton_jax.compress.allocation import allocate, sensitivities
from lepton_jax.compress.base import Compression, chain, compressed, identity
from lepton_jax.compress.channels import (
    both,
    choose,
    fewer_channels,
    fewer_macs,
    fewer_numbers,
    l1,
    l2,
    norm_scale,
    remove,
    taylor,
)
from lepton_jax.compress.comparison import audit, require
from lepton_jax.compress.decompositions import Method, svd, tucker
from lepton_jax.compress.densities import each, erdos_renyi, erdos_renyi_kernel, uniform
from lepton_jax.compress.dependencies import graph
from lepton_jax.compress.distill import attention, beside, decoupled, fitnet, hinted, hinton, unhinted
from lepton_jax.compress.evaluation import applied
from lepton_jax.compress.exposure import exposed
from lepton_jax.compress.folding import constants, folded
from lepton_jax.compress.grids import affine
from lepton_jax.compress.inputs import measured, second_moment
from lepton_jax.compress.leaves import Constant, Factored, Quantized, Sparse, unpacked
from lepton_jax.compress.lottery import tickets
from lepton_jax.compress.lowrank import by_factors, factorized, output_error
from lepton_jax.compress.masks import fixed, held
from lepton_jax.compress.norms import wanda
from lepton_jax.compress.programs import macs
from lepton_jax.compress.pruning import gradual, magnitude, once, prune, pruned, random, saliency
from lepton_jax.compress.quantize import groups, groups_of, quantized
from lepton_jax.compress.ranking import across, blocks, n_of_m, per_output, within
from lepton_jax.compress.ranks import by_budget, by_energy, by_ratio, by_share, explicit, in_multiples
from lepton_jax.compress.regrowth import rigl
from lepton_jax.compress.rounding import adaround, gptq, largest_first, rounded
from lepton_jax.compress.stepsizes import learned
from lepton_jax.compress.widths import shrunk

__all__ = [
    "Compression",
    "Constant",
    "Factored",
    "Method",
    "Quantized",
    "Sparse",
    "across",
    "adaround",
    "affine",
    "allocate",
    "applied",
    "attention",
    "audit",
    "beside",
    "blocks",
    "both",
    "by_budget",
    "by_energy",
    "by_factors",
    "by_ratio",
    "by_share",
    "chain",
    "choose",
    "compressed",
    "constants",
    "decoupled",
    "each",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "explicit",
    "exposed",
    "factorized",
    "fewer_channels",
    "fewer_macs",
    "fewer_numbers",
    "fitnet",
    "fixed",
    "folded",
    "frozen",
    "gptq",
    "gradual",
    "graph",
    "groups",
    "groups_of",
    "held",
    "hinted",
    "hinton",
    "identity",
    "in_multiples",
    "input_scales",
    "l1",
    "l2",
    "largest_first",
    "learned",
    "lora",
    "lora_only",
    "macs",
    "magnitude",
    "measured",
    "n_of_m",
    "norm_scale",
    "once",
    "output_error",
    "per_output",
    "prune",
    "pruned",
    "quantized",
    "random",
    "remove",
    "require",
    "rigl",
    "rounded",
    "rounded_inputs",
    "saliency",
    "second_moment",
    "sensitivities",
    "shrunk",
    "svd",
    "taylor",
    "tickets",
    "tucker",
    "unhinted",
    "uniform",
    "unpacked",
    "wanda",
    "whole_in_floats",
    "whole_numbers",
    "with_inputs",
    "within",
]
