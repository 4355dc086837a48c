"""RandAugment and TrivialAugment: operations drawn uniformly, with nothing to search for."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lepton_jax.augment.base import Shape, Transform
from lepton_jax.augment.image import Fill
from lepton_jax.augment.policies.chain import Chain, chained, happens
from lepton_jax.augment.policies.spaces import RANDAUGMENT, TRIVIALAUGMENT, check_level, check_operations, table
from lepton_jax.augment.warp import Interpolation
from lepton_jax.errors import InputError
from lepton_jax.types import Key


def randaugment(
    layers: int = 2,
    magnitude: int = 9,
    bins: int = 31,
    operations: Sequence[str] = tuple(RANDAUGMENT),
    interpolation: Interpolation = "nearest",
    fill: Fill = 0,
) -> Transform:
    """`layers` operations in turn, each drawn uniformly, all of one strength, as torchvision's. Parameters: a Chain.

    magnitude: the strength, one of `bins` levels from 0. operations: which to draw from. Those with a sign are
    turned around with probability 1/2. interpolation, fill: as for `functional.affine`. Images of 1 or 3 channels.
    Raises InputError. Cubuk et al. 2020, https://arxiv.org/abs/1909.13719
    """
    names = tuple(operations)
    check_layers(layers)
    check_operations(names, tuple(RANDAUGMENT))
    check_level(magnitude, bins)

    def sample(key: Key, shape: Shape) -> Chain:
        choice, sign = jax.random.split(key)
        operation = jax.random.randint(choice, (layers,), 0, len(names), jnp.int32)
        negative = happens(sign, 0.5, (layers,)).astype(jnp.int32)
        amounts = jnp.asarray(table(RANDAUGMENT, names, bins, (shape[0], shape[1])))
        return Chain(operation, amounts[operation, negative, magnitude])

    return chained(sample, names, interpolation, fill)


def trivialaugment(
    bins: int = 31,
    operations: Sequence[str] = tuple(TRIVIALAUGMENT),
    interpolation: Interpolation = "nearest",
    fill: Fill = 0,
) -> Transform:
    """One operation of one strength, both drawn uniformly, from torchvision's wide space. Parameters: a Chain.

    bins, operations, interpolation, fill: as for `randaugment`. Raises InputError.
    TrivialAugment Wide, Mueller and Hutter 2021, https://arxiv.org/abs/2103.10158
    """
    names = tuple(operations)
    check_operations(names, tuple(TRIVIALAUGMENT))
    check_level(0, bins)

    def sample(key: Key, shape: Shape) -> Chain:
        choice, strength, sign = jax.random.split(key, 3)
        operation = jax.random.randint(choice, (1,), 0, len(names), jnp.int32)
        level = jax.random.randint(strength, (1,), 0, bins, jnp.int32)
        negative = happens(sign, 0.5, (1,)).astype(jnp.int32)
        amounts = jnp.asarray(table(TRIVIALAUGMENT, names, bins, (shape[0], shape[1])))
        return Chain(operation, amounts[operation, negative, level])

    return chained(sample, names, interpolation, fill)


def check_layers(layers: int) -> None:
    """Raise InputError for a policy that does nothing."""
    if layers < 1:
        raise InputError(f"a policy of {layers} layers is empty", "give at least 1 layer, or leave the policy out")
