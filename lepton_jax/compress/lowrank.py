"""Weights as products of smaller ones: truncated SVD, Tucker-2, plain or in the norm of the layer's inputs."""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lepton_jax.compress import base, leaves
from lepton_jax.compress.base import Compression
from lepton_jax.compress.decompositions import Matrix, Method, Root, svd
from lepton_jax.compress.ranks import Candidate, Rule
from lepton_jax.errors import InputError
from lepton_jax.types import Params

Norm = Callable[[str, int], Root]
"""(weight's name, its inputs) -> R, where the error of a weight [inputs, outputs] is |R error|; None: plain."""

FORMS = ({"down", "up"}, {"core", "up"}, {"down", "core", "up"})


def plain(name: str, inputs: int) -> Root:
    """The `Norm` of the weight itself."""
    return None


def output_error(moments: Mapping[str, Any], damping: float = 1e-4) -> Norm:
    """The `Norm` of the layer's outputs over data: |X error| for its inputs X.

    moments: {name: {"sum": X^T X}}, of `inputs.measured(model, variables, batches, inputs.second_moment)`. damping:
    the plain norm's share, relative to the mean square of the inputs; it decides where the data say nothing, and
    with any of it the outputs over the data are never worse than those of the plain SVD. As in SVD-LLM
    (Wang et al. 2024, https://arxiv.org/abs/2403.07378). The norm raises InputError for a weight without a moment that
    fits.
    """
    if damping < 0:
        raise InputError(f"the damping {damping} is negative", "give one such as 1e-4")

    def norm(name: str, inputs: int) -> Root:
        if name not in moments:
            raise InputError(f"the inputs of {name} were not measured", "measure them, or leave it out by the pattern")
        moment = np.asarray(moments[name]["sum"], np.float64)
        if moment.shape != (inputs, inputs):
            problem = f"the inputs of {name} are {inputs}, and {list(moment.shape)} were measured"
            raise InputError(problem, "measure this very model")
        return _root(moment + damping * np.trace(moment) / inputs * np.eye(inputs))

    return norm


def factorized(ranks: Rule, pattern: str = base.WEIGHTS, convolution: Method = svd, norm: Norm = plain) -> Compression:
    """The weights that match `pattern` as products, of ranks by a rule of `compress.ranks`; factors are trained.

    Dense layers by `decompositions.svd`, convolutions by it too or by `decompositions.tucker`. A weight whose factors
    would not be smaller is left whole. init reads values, so it does not run under `jit`. Raises InputError for a
    pattern without weights, for weights that are not of 2 or 4 dimensions or not finite, and what the rule and the norm
    raise.
    """

    def init(params: Params) -> tuple[Params, base.State]:
        weights = {name: np.asarray(base.at(params, name), np.float64) for name in base.chosen(pattern, params)}
        methods = {name: _method(name, weight, convolution) for name, weight in weights.items()}
        roots = {name: norm(name, weight.size // weight.shape[-1]) for name, weight in weights.items()}
        candidates = {
            name: Candidate(way.energies(weights[name], roots[name]), partial(way.size, weights[name].shape), whole)
            for (name, way), whole in zip(methods.items(), (weight.size for weight in weights.values()), strict=True)
        }
        kept = {name: rank for name, rank in ranks(candidates).items() if candidates[name].is_smaller(rank)}
        new = {name: methods[name].factors(weights[name], rank, roots[name]) for name, rank in kept.items()}
        return base.put(params, {name: _like(base.at(params, name), factors) for name, factors in new.items()}), ()

    def view(params: Params, state: base.State) -> Params:
        found = placed(params, FORMS, pattern)
        return base.put(params, {name: leaves.product(factors) for name, factors in found.items()})

    def pack(params: PyTree, state: base.State) -> Any:
        return base.put(params, {name: _factored(each) for name, each in placed(params, FORMS, pattern).items()})

    return Compression(init, view, base.unchanged, pack, ("low rank",))


def by_factors(compression: Compression) -> Compression:
    """The same compression, which shows a model its factors as `leaves.Factored` and not as their product.

    For `evaluation.applied(model)`, which multiplies inputs factor by factor: training then costs what the small model
    costs. For `factorized`; in a chain, `chain(by_factors(factorized(...)), ...)`.
    """
    return compression._replace(view=compression.pack)


def placed(params: Any, forms: Collection[set[str]], pattern: str, above: str = "") -> dict[str, dict[str, Any]]:
    """{name: tree} of what `init` has put in the place of weights: dicts of these keys, under names that match."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in params.items() if isinstance(params, Mapping) else ():
        name = f"{above}{key}"
        if not isinstance(value, Mapping):
            continue
        is_arrays = not any(isinstance(part, Mapping) for part in value.values())
        if set(value) in forms and is_arrays and re.search(pattern, name):
            found[name] = dict(value)
        else:
            found |= placed(value, forms, pattern, f"{name}/")
    return found


def _root(moment: Matrix) -> Matrix:
    """A matrix R of which R^T R is the moment."""
    try:
        return np.linalg.cholesky(moment).T
    except np.linalg.LinAlgError:
        # many times slower; float32 sums leave eigenvalues slightly below zero
        values, vectors = np.linalg.eigh(moment)
        return np.sqrt(np.clip(values, 0, None)).reshape(-1, 1) * vectors.T


def _method(name: str, weight: np.ndarray, convolution: Method) -> Method:
    if weight.ndim not in (2, 4):
        problem = f"{name} has {weight.ndim} dimensions, and low rank takes dense layers (2) and convolutions (4)"
        raise InputError(problem, "leave it out by the pattern")
    if not np.isfinite(weight).all():
        raise InputError(f"{name} has values that are not finite", "train it anew, or leave it out by the pattern")
    return svd if weight.ndim == 2 else convolution


def _like(weight: Any, factors: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(factor, weight.dtype) for name, factor in factors.items()}


def _factored(factors: dict[str, Any]) -> leaves.Factored:
    """Factors, arrays or packed ones, with the shape of their product."""
    inputs = factors["down" if "down" in factors else "core"].shape[-2]
    window = factors["core"].shape[:2] if "core" in factors else ()
    return leaves.Factored(factors, (*window, inputs, factors["up"].shape[-1]))
