"""Loss -> GradFn for daily use: all of DP-SGD, as a plan says."""

from lepton_jax.gradients import accumulate
from lepton_jax.privacy.clipping import clipped
from lepton_jax.privacy.engine import Engine, vmapped
from lepton_jax.privacy.noise import noised
from lepton_jax.privacy.plans import Plan
from lepton_jax.types import GradFn, Loss


def private(loss: Loss, plan: Plan, engine: Engine = vmapped, microbatches: int = 1) -> GradFn:
    """The clipped and noised gradient that the plan accounts for (Abadi et al. 2016,
    https://arxiv.org/abs/1607.00133): `noised(accumulate(clipped(loss, ...), microbatches), ...)`.

    Start the stats with `privacy=plan.start`, feed it from `plan.stream`, and let `plan.require` look at the whole.
    Raises InputError where its parts do.
    """
    summed = accumulate(clipped(loss, plan.clip, engine), microbatches)
    return noised(summed, plan.noise, plan.clip, plan.batch)
