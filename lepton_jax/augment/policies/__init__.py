"""Policies: operations chosen at random for each image, from a list and by strengths that others found to work."""

from lepton_jax.augment.policies.augmix import Mixture, augmix
from lepton_jax.augment.policies.autoaugment import autoaugment
from lepton_jax.augment.policies.chain import Chain
from lepton_jax.augment.policies.randaugment import randaugment, trivialaugment
from lepton_jax.augment.policies.timm import randaugment_timm

__all__ = [
    "Chain",
    "Mixture",
    "augmix",
    "autoaugment",
    "randaugment",
    "randaugment_timm",
    "trivialaugment",
]
