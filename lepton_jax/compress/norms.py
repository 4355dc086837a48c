"""Wanda: pruning a trained model by its weights and by what its layers are given, without a gradient."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax.compress import base, inputs
from lepton_jax.compress.evaluation import Site
from lepton_jax.compress.masks import Masks, Weights, named
from lepton_jax.compress.ranking import Ranking, per_output, whole
from lepton_jax.errors import InputError
from lepton_jax.types import Model, Variables


def wanda(
    model: Model,
    variables: Variables,
    batches: Iterable[Any],
    ranking: Ranking | None = None,
    pattern: str = base.WEIGHTS,
) -> Masks:
    """Masks by |w| times the norm of its input over batches of model inputs, for `masks.fixed`.

    Sun et al. 2023, https://arxiv.org/abs/2306.11695. ranking: of the paper `per_output` (default, of one half) or
    `n_of_m`. All inputs are those of the dense model, not those of layers already pruned.
    Raises InputError for a convolution in groups, for a weight that meets no input as a product, where there are no
    batches, and where the pattern matches no weight.
    """
    return (ranking or per_output(0.5))(scores(model, variables, batches, pattern), whole)


def scores(model: Model, variables: Variables, batches: Iterable[Any], pattern: str = base.WEIGHTS) -> Weights:
    """{weight's name: |w| times the norm of its input}; see `wanda`."""
    names = base.chosen(pattern, variables["params"])

    def energy(site: Site, given: Array, weight: Any) -> dict[str, Array]:
        if site.name not in names:
            return {}
        size = tuple(weight.shape[:2]) if site.is_convolution else (1, 1)
        return {"energy": jnp.sum(jnp.square(inputs.rows(site, given, size)), 0)}

    energies = inputs.measured(model, variables, batches, energy)
    if missing := set(names) - set(energies):
        raise InputError(f"{min(missing)} is no second operand of a product", "leave it out by a pattern of names")
    return {
        name: _weighted(weight, jnp.sqrt(energies[name]["energy"]))
        for name, weight in named(variables["params"], names).items()
    }


def _weighted(weight: Array, norms: Array) -> Array:
    matrix = jnp.abs(weight).reshape(-1, weight.shape[-1])
    return (matrix * norms[:, None]).reshape(weight.shape)
