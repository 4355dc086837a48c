"""AutoAugment: one sub-policy of a found table, its operations each with a probability and a level."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.augment.base import Shape, Transform
from lepton_jax.augment.image import Fill
from lepton_jax.augment.policies.chain import Chain, chained, happens
from lepton_jax.augment.policies.operations import IDENTITY
from lepton_jax.augment.policies.spaces import AUTOAUGMENT, check_level, check_operations, table
from lepton_jax.augment.policies.tables import POLICIES
from lepton_jax.augment.warp import Interpolation
from lepton_jax.errors import InputError, unknown
from lepton_jax.types import Key

SubPolicy = Sequence[tuple[str, float, int]]  # (operation, probability, level from 0 to 9), in order of action
BINS = 10


def autoaugment(
    policy: str | Sequence[SubPolicy] = "imagenet", interpolation: Interpolation = "nearest", fill: Fill = 0
) -> Transform:
    """A sub-policy drawn uniformly, whose operations act with their probabilities. Parameters: a Chain.

    policy: "imagenet", "cifar10" or "svhn", or sub-policies of one's own. Signs, interpolation and fill are as
    for `randaugment`. Images of 1 or 3 channels. Raises InputError.
    Cubuk et al. 2019, https://arxiv.org/abs/1805.09501
    """
    subpolicies = parsed(policy) if isinstance(policy, str) else [list(subpolicy) for subpolicy in policy]
    _check(subpolicies)
    # in rows of one length: what a short sub-policy lacks is an identity
    length = max(map(len, subpolicies))
    rows = [subpolicy + [(IDENTITY, 0.0, 0)] * (length - len(subpolicy)) for subpolicy in subpolicies]
    names = tuple(sorted({name for row in rows for name, _, _ in row} | {IDENTITY}))
    places = np.array([[names.index(name) for name, _, _ in row] for row in rows], np.int32)
    probabilities = np.array([[p for _, p, _ in row] for row in rows], np.float32)
    levels = np.array([[level for _, _, level in row] for row in rows], np.int32)

    def sample(key: Key, shape: Shape) -> Chain:
        choice, chance, sign = jax.random.split(key, 3)
        drawn = jax.random.randint(choice, (), 0, len(rows), jnp.int32)
        due = happens(chance, jnp.asarray(probabilities)[drawn], (length,))
        operation = jnp.where(due, jnp.asarray(places)[drawn], names.index(IDENTITY))
        negative = happens(sign, 0.5, (length,)).astype(jnp.int32)
        amounts = jnp.asarray(table(AUTOAUGMENT, names, BINS, (shape[0], shape[1])))
        return Chain(operation, amounts[operation, negative, jnp.asarray(levels)[drawn]])

    return chained(sample, names, interpolation, fill)


def parsed(name: str) -> list[list[tuple[str, float, int]]]:
    """The sub-policies of a policy by name. Raises InputError for an unknown one."""
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    lines = POLICIES[name].strip().splitlines()
    words = [[part.split() for part in line.split(",")] for line in lines]
    return [[(operation, float(p), int(level)) for operation, p, level in line] for line in words]


def _check(subpolicies: Sequence[SubPolicy]) -> None:
    if not subpolicies:
        raise InputError("a policy of no sub-policies is empty", f"give some, or one of: {', '.join(POLICIES)}")
    for subpolicy in subpolicies:
        check_operations([name for name, _, _ in subpolicy], (IDENTITY, *AUTOAUGMENT))
        for name, p, level in subpolicy:
            check_level(level, BINS)
            if not 0 <= p <= 1:
                raise InputError(f"{name} with probability {p} is outside [0, 1]", "give each operation a p in it")
