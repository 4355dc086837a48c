"""How sparse each layer is to be: functions from the weights' shapes to a sparsity for each weight.

A sparsity is the share of places that are hidden, in [0, 1); else InputError.
"""

import math
import re
from collections.abc import Callable, Mapping

from lepton_jax.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

Layers = Callable[[Shapes], dict[str, float]]
"""({weight's name: shape}) -> {weight's name: sparsity}."""


def uniform(sparsity: float) -> Layers:
    """The same for each layer. To leave the first one dense, choose weights by a pattern, or sparsities by `each`."""
    check(sparsity)
    return lambda shapes: dict.fromkeys(shapes, sparsity)


def each(sparsities: Mapping[str, float]) -> Layers:
    """By regular expressions of names (re.search), the first that matches; layers that match none stay dense.

    Raises InputError for a pattern that matches no weight.
    """
    for sparsity in sparsities.values():
        check(sparsity)

    def layers(shapes: Shapes) -> dict[str, float]:
        for pattern in sparsities:
            if not any(re.search(pattern, name) for name in shapes):
                some = ", ".join(list(shapes)[:4])
                raise InputError(f"the pattern {pattern!r} matches no masked weight", f"they are named like: {some}")
        return {name: next((s for p, s in sparsities.items() if re.search(p, name)), 0.0) for name in shapes}

    return layers


def erdos_renyi(sparsity: float) -> Layers:
    """Densities in proportion to (in + out) / (in * out), so that all layers together are of this sparsity.

    SET, Mocanu et al. 2018, https://arxiv.org/abs/1707.04780. Small layers, which would have more places than there
    are, are dense.
    """
    return _spread(sparsity, lambda shape: sum(shape[-2:]) / math.prod(shape[-2:]))


def erdos_renyi_kernel(sparsity: float) -> Layers:
    """`erdos_renyi` that counts a kernel's height and width too: (in + out + h + w) / (in * out * h * w).

    RigL, Evci et al. 2020, https://arxiv.org/abs/1911.11134.
    """
    return _spread(sparsity, lambda shape: sum(shape) / math.prod(shape))


def _spread(sparsity: float, weighting: Callable[[tuple[int, ...]], float]) -> Layers:
    check(sparsity)

    def layers(shapes: Shapes) -> dict[str, float]:
        total = (1 - sparsity) * sum(map(math.prod, shapes.values()))
        dense: set[str] = set()
        while rest := [name for name in shapes if name not in dense]:
            left = total - sum(math.prod(shapes[name]) for name in dense)
            factor = left / sum(weighting(shapes[name]) * math.prod(shapes[name]) for name in rest)
            full = {name for name in rest if factor * weighting(shapes[name]) >= 1}
            if not full:
                return {name: 0.0 if name in dense else 1 - factor * weighting(shapes[name]) for name in shapes}
            dense |= full
        return dict.fromkeys(shapes, 0.0)

    return layers


def check(sparsity: float) -> None:
    """Raises InputError for a sparsity outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise InputError(f"the sparsity {sparsity} is not in [0, 1)", "give the share of hidden places, such as 0.9")
