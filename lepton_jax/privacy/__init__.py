"""Differential privacy: clipped and noised gradients as functions, and what they cost."""

from lepton_jax.privacy.accounting import event
from lepton_jax.privacy.audit import Audit, audited, planted, scores
from lepton_jax.privacy.clipping import clipped
from lepton_jax.privacy.engine import Engine, vmapped
from lepton_jax.privacy.features import featured, normed, scattering
from lepton_jax.privacy.ghosts import ghost
from lepton_jax.privacy.multiplicity import multiplied, tempered
from lepton_jax.privacy.noise import Noise, banded, constant, exponential, linear, noised, started, stepwise
from lepton_jax.privacy.plans import Plan, plan
from lepton_jax.privacy.private import private
from lepton_jax.privacy.rules import Rule, adaptive, automatic, flat, per_layer
from lepton_jax.privacy.sampling import FixedSize, Poisson
from lepton_jax.privacy.twopass import two_pass

__all__ = [
    "Audit",
    "Engine",
    "FixedSize",
    "Noise",
    "Plan",
    "Poisson",
    "Rule",
    "adaptive",
    "audited",
    "automatic",
    "banded",
    "clipped",
    "constant",
    "event",
    "exponential",
    "featured",
    "flat",
    "ghost",
    "linear",
    "multiplied",
    "noised",
    "normed",
    "per_layer",
    "plan",
    "planted",
    "private",
    "scattering",
    "scores",
    "started",
    "stepwise",
    "tempered",
    "two_pass",
    "vmapped",
]
