"""Server optimizers, as optax knows optimizers: what becomes of a round's pseudo-gradient.

`averaging` is FedAvg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629), `momentum` FedAvgM (Hsu et al. 2019,
https://arxiv.org/abs/1909.06335), and `adagrad`, `adam` and `yogi` are FedAdagrad, FedAdam and FedYogi (Reddi et al.
2021, https://arxiv.org/abs/2003.00295). Any other optax transformation serves as well. Those of 2021 differ from
optax's of the same name, which the paper does not use: their moments are not corrected for their start, the second
one starts from tau**2, and tau stands outside of the root.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.types import Params

Accumulate = Callable[[Array, Array], Array]
"""(second moment, squared gradient) -> the next second moment."""


class Moments(NamedTuple):
    """The moving mean of gradients, and the second moment as each method has it."""

    mean: Params
    second: Params


Rate = float | Callable[[Any], Any]  # a number, or an optax schedule over rounds


def averaging(learning_rate: Rate = 1.0) -> optax.GradientTransformation:
    """The mean of the clients' parameters, at the rate 1. Raises InputError for a rate that is not positive."""
    return optax.sgd(_rate(learning_rate))


def momentum(learning_rate: Rate = 1.0, decay: float = 0.9) -> optax.GradientTransformation:
    """Rounds go on in the direction of those before. Raises InputError for numbers that cannot be."""
    return optax.sgd(_rate(learning_rate), momentum=_share("momentum", decay))


def adagrad(learning_rate: Rate = 0.1, b1: float = 0.0, tau: float = 1e-3) -> optax.GradientTransformation:
    """Steps over the root of the sum of squares. Raises InputError for numbers that cannot be."""
    return _adaptive(learning_rate, b1, tau, jnp.add)


def adam(
    learning_rate: Rate = 0.1, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Steps over the root of the moving mean of squares. Raises InputError for numbers that cannot be."""
    b2 = _share("decay b2", b2)
    return _adaptive(learning_rate, b1, tau, lambda second, square: b2 * second + (1 - b2) * square)


def yogi(
    learning_rate: Rate = 0.1, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Steps over a root that grows and shrinks by the squares themselves. Raises InputError for what cannot be."""
    b2 = _share("decay b2", b2)
    return _adaptive(
        learning_rate, b1, tau, lambda second, square: second - (1 - b2) * square * jnp.sign(second - square)
    )


def _adaptive(learning_rate: Rate, b1: float, tau: float, accumulate: Accumulate) -> optax.GradientTransformation:
    b1 = _share("decay b1", b1)
    learning_rate, tau = _rate(learning_rate), _positive("adaptivity tau", tau)

    def init(params: Params) -> Moments:
        return Moments(tree.zeros(params), jax.tree.map(lambda x: jnp.full_like(x, tau**2), params))

    def update(gradient: Params, state: Moments, params: Any = None) -> tuple[Params, Moments]:
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, gradient)
        second = jax.tree.map(lambda v, g: accumulate(v, jnp.square(g)), state.second, gradient)
        way = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), mean, second)
        return way, Moments(mean, second)

    transform = optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
    return optax.chain(transform, optax.scale_by_learning_rate(learning_rate))


def _rate(value: Rate) -> Rate:
    return value if callable(value) else _positive("learning rate", value)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"the server's {name} {value} is not positive and finite", "give a number above 0")
    return value


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise InputError(f"the server's {name} {value} is outside [0, 1)", "0 switches it off")
    return value
