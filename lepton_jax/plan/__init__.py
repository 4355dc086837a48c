"""Resource scheduling before the run: which mesh and how many microbatches fit, and which of them is the fastest."""

from lepton_jax.plan.accelerators import ACCELERATORS, Accelerator
from lepton_jax.plan.choice import Plan, candidates, planned
from lepton_jax.plan.collectives import moved
from lepton_jax.plan.prediction import Prediction, Predictor
from lepton_jax.plan.rehearsal import Report, Work, rehearse
from lepton_jax.plan.work import of_recipe

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Plan",
    "Prediction",
    "Predictor",
    "Report",
    "Work",
    "candidates",
    "moved",
    "of_recipe",
    "planned",
    "rehearse",
]
