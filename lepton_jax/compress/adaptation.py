"""Low-rank adaptation: a weight stays as it is and a small product beside it is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from lepton_jax import keys, tree
from lepton_jax.compress import base, leaves
from lepton_jax.compress.base import Compression
from lepton_jax.compress.lowrank import placed
from lepton_jax.decay import Mask
from lepton_jax.errors import InputError
from lepton_jax.types import Key, Params

FORMS = ({"base", "down", "up"},)


def lora(key: Key, rank: int, alpha: float | None = None, pattern: str = base.WEIGHTS) -> Compression:
    """Weights W as W + alpha / rank * down @ up, of which `lora_only` trains down and up.

    down [inputs, rank] is drawn by `key` and the weight's name, of variance 1 / inputs, and up [rank, outputs] starts
    at zero, so at first nothing changes; a convolution counts as a matrix [height * width * channels, outputs]. alpha:
    2 * rank where it is not given. `pack` merges: the weight is dense again and costs nothing more. Hu et al. 2021,
    https://arxiv.org/abs/2106.09685. Raises InputError for an alpha or a rank that is not positive, a rank above the
    full one of a weight, and a pattern without weights.
    """
    alpha = 2.0 * rank if alpha is None else alpha
    if rank < 1 or not 0 < alpha < float("inf"):
        raise InputError(f"rank {rank} and alpha {alpha} are not both positive", "give such as rank 8 and alpha 16")

    def init(params: Params) -> tuple[Params, base.State]:
        weights = {name: base.at(params, name) for name in base.chosen(pattern, params)}
        return base.put(params, {name: _adapted(key, name, weight, rank) for name, weight in weights.items()}), ()

    def merged(params: PyTree, state: base.State) -> Any:
        found = placed(params, FORMS, pattern)
        return base.put(params, {name: _merged(parts, alpha / rank) for name, parts in found.items()})

    return Compression(init, merged, base.unchanged, merged, ("low rank",))


def _adapted(key: Key, name: str, weight: Any, rank: int) -> dict[str, Any]:
    inputs, outputs = int(np.prod(weight.shape[:-1])), weight.shape[-1]
    if rank > min(inputs, outputs):
        problem = f"rank {rank} is above the full rank {min(inputs, outputs)} of {name}"
        raise InputError(problem, "give a lower rank, or leave the weight out by the pattern")
    down = jax.random.normal(keys.named(key, name), (inputs, rank), weight.dtype) / inputs**0.5
    return {"base": weight, "down": down, "up": jnp.zeros((rank, outputs), weight.dtype)}


def _merged(parts: dict[str, Any], scale: float) -> Any:
    weight, down, up = (jnp.asarray(leaves.dense(parts[name])) for name in ("base", "down", "up"))
    return weight + ((down @ up) * jnp.asarray(scale, up.dtype)).reshape(weight.shape)


def frozen(*extras: str) -> Mask:
    """A mask for optax, True for what low-rank adaptation leaves as it is: all but down, up, and the extras.

    extras: patterns (re.search) of leaves that are trained as well, as they are: a new head, norms. The mask raises
    InputError for a pattern that matches no leaf, and for parameters without adaptation.
    """

    def mask(params: PyTree) -> PyTree:
        adapted = {f"{name}/{part}" for name in placed(params, FORMS, "") for part in ("down", "up")}
        if not adapted:
            raise InputError("no weight has a low-rank part beside it", "train the params that lora's init gives")
        others = [tree.select(pattern, params) for pattern in extras]
        return tree.map_named(lambda name, _, *trained: name not in adapted and not any(trained), params, *others)

    return mask


def lora_only(optimizer: optax.GradientTransformation, *extras: str) -> optax.GradientTransformationExtraArgs:
    """The same optimizer for down, up and the extras alone, with no state for the rest, which does not move.

    Weight decay and clipping inside it see only these. extras: see `frozen`.
    """
    fixed = frozen(*extras)

    def trained(params: PyTree) -> PyTree:
        return jax.tree.map(lambda is_fixed: not is_fixed, fixed(params))

    return optax.chain(optax.masked(optimizer, trained), optax.masked(optax.set_to_zero(), fixed))
