"""Optimizers by name: optax's, with one order of clipping and decay.

Any other optax transformation serves as well.
"""

import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Hashable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree
from optax.contrib import ReduceLROnPlateauState

from lepton_jax import tree
from lepton_jax.decay import Mask, decay_mask, require_regular
from lepton_jax.errors import InputError, unknown


def sgd(
    schedule: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Mask = decay_mask,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """SGD with Nesterov momentum; the decay is L2, added to the gradient before the momentum.

    Sutskever et al. 2013, http://proceedings.mlr.press/v28/sutskever13.html.
    """
    descent = optax.sgd(schedule, momentum or None, nesterov=nesterov and momentum > 0)
    if weight_decay == 0:
        return descent
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), descent)


def adamw(
    schedule: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Mask = decay_mask,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled decay (Loshchilov and Hutter 2019); with none, Adam.

    https://arxiv.org/abs/1711.05101.
    """
    return optax.adamw(schedule, momentum, b2, eps, weight_decay=weight_decay, mask=mask)


def lamb(
    schedule: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Mask = decay_mask,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Adam scaled to each layer's norm, for large batches (You et al. 2020, https://arxiv.org/abs/1904.00962)."""
    return optax.lamb(schedule, momentum, b2, eps, weight_decay=weight_decay, mask=mask)


def lion(
    schedule: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Mask = decay_mask,
    b2: float = 0.99,
) -> optax.GradientTransformationExtraArgs:
    """The sign of an interpolated momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675)."""
    return optax.lion(schedule, momentum, b2, weight_decay=weight_decay, mask=mask)


# Jordan: first and last layers, and what is looked up rather than multiplied with, are left to Adam
NOT_MATRICES = r"(^|/)(stem|patches|embedding|token|positions|head)(/|$)"


def muon(
    schedule: optax.ScalarOrSchedule,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    mask: Mask = decay_mask,
    b2: float = 0.999,
    eps: float = 1e-8,
    adam: str = NOT_MATRICES,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalized momentum for matrices, AdamW for all else (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    A convolution's kernel [height, width, in, out] is the matrix [height * width * in, out], as in Jordan's; one
    input per output (depthwise) is no matrix. adam: the paths (re.search) that are left to Adam beside those.
    Updates are scaled to the size of Adam's, so that one learning rate and one decay serve both (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982). The decay is decoupled.
    """
    require_regular(adam)
    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=matrix_axes),
        scale_by_matrix(0.2),
    )
    directions: dict[Hashable, optax.GradientTransformation] = {
        "muon": orthogonal,
        "adam": optax.scale_by_adam(momentum, b2, eps),
    }
    return optax.chain(
        optax.partition(directions, lambda params: tree.map_named(functools.partial(_method, adam), params)),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )


def matrix_axes(params: PyTree) -> PyTree:
    """For each leaf the axes that its product sums over, all of its own but the last, and the one that it puts out."""

    def numbers(name: str, leaf: Array) -> Any:
        first, last = leaf.ndim - tree.rank(name, leaf), leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

    return tree.map_named(numbers, params)


def scale_by_matrix(rms: float) -> optax.GradientTransformation:
    """Updates times rms * sqrt(max(inputs, outputs)): orthogonal matrices get entries of that root mean square."""

    def scaled(name: str, update: Array) -> Array:
        *inputs, outputs = update.shape[-tree.rank(name, update) :]
        return update * (rms * math.sqrt(max(math.prod(inputs), outputs)))

    return optax.stateless(lambda updates, _: tree.map_named(scaled, updates))


def _method(adam: str, name: str, leaf: Array) -> str:
    is_depthwise = leaf.ndim == 4 and leaf.shape[2] == 1
    return "adam" if tree.rank(name, leaf) < 2 or is_depthwise or re.search(adam, name) else "muon"


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "adamw": adamw,
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
    "sgd": sgd,
}


def build(
    name: str,
    schedule: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip: float | None = None,
    mask: Mask = decay_mask,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of that name: the gradient's global norm is clipped first, then come decay and descent.

    momentum: the decay of the first moment, b1 of all but sgd. weight_decay: as the optimizer has it, coupled
    for sgd and times the learning rate for the others. mask: what it shrinks; `decay.undecayed` makes one of paths.
    clip: the largest global norm, or None. options: those of the function so named. Raises InputError.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if not 0 <= momentum < 1:
        raise InputError(f"the momentum {momentum} is not in [0, 1)", "give one such as 0.9, or 0 for none")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"the weight decay {weight_decay} is negative or not finite", "give one such as 5e-4")
    known = list(inspect.signature(OPTIMIZERS[name]).parameters)[4:]
    for option in options:
        if option not in known:
            raise unknown(f"option of the optimizer {name!r}:", option, known)
    optimizer = OPTIMIZERS[name](schedule, momentum, weight_decay, mask, **options)
    return optimizer if clip is None else optax.chain(clip_by_global_norm(clip), optimizer)


def clip_by_global_norm(norm: float) -> optax.GradientTransformation:
    """optax's, for a norm > 0 (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063). Raises InputError."""
    if not 0 < norm < math.inf:
        raise InputError(f"the clipping norm {norm} is not positive", "give one such as 1.0, or None")
    return optax.clip_by_global_norm(norm)


def reduce_on_plateau(
    steps_per_epoch: int,
    factor: float = 0.1,
    patience: int = 10,
    *,
    threshold: float = 1e-4,
    cooldown: int = 0,
    smallest: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Shrinks the learning rate where the training loss has stopped falling: `optax.chain(optimizer, this)`.

    Updates are multiplied by a scale that begins at 1. The loss that `update(..., value=loss)` gets is
    averaged over each epoch. After `patience` epochs in a row whose mean is not below (1 - threshold) times
    the best, the scale takes `factor`, down to `smallest`, and `cooldown` epochs go uncounted. A patience of
    p is what torch's ReduceLROnPlateau calls p - 1. The state is part of the optimizer's, so a resumed run
    goes on alike. Raises InputError.
    """
    checks = {
        "steps per epoch": (steps_per_epoch, steps_per_epoch >= 1, "at least 1"),
        "factor": (factor, 0 < factor < 1, "between 0 and 1"),
        "patience": (patience, patience >= 1, "at least 1"),
        "threshold": (threshold, 0 < threshold <= 1, "above 0 and at most 1"),
        "cooldown": (cooldown, cooldown >= 0, "at least 0"),
        "smallest scale": (smallest, 0 <= smallest <= 1, "between 0 and 1"),
    }
    for name, (value, holds, rule) in checks.items():
        if not holds:
            raise InputError(f"the plateau's {name} of {value} is not {rule}", f"give a {name} {rule}")
    plateau = optax.contrib.reduce_on_plateau(
        factor,
        patience,
        rtol=threshold,
        cooldown=cooldown,
        accumulation_size=steps_per_epoch,
        min_scale=smallest,
    )

    def update(updates: PyTree, state: Any, params: Any = None, **extra: Any) -> tuple[PyTree, Any]:
        # The scale from before: optax's own update already uses the new one in the last step of the epoch.
        scaled = jax.tree.map(lambda leaf: state.scale.astype(leaf.dtype) * leaf, updates)
        _, state = plateau.update({}, state, value=extra["value"])
        return scaled, state

    return optax.GradientTransformationExtraArgs(plateau.init, update)


def learning_rate_scale(opt_state: Any) -> Float[Array, ""] | float:
    """What `reduce_on_plateau` multiplies the next update by; 1 for an optimizer without it."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_plateau)
    return functools.reduce(operator.mul, [leaf.scale for leaf in leaves if _is_plateau(leaf)], 1.0)


def _is_plateau(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)
