"""What meets each weight: statistics of layers' inputs over data, for calibration, saliency and covariance."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.compress.evaluation import Rule, Site, applied, multiplied
from lepton_jax.errors import InputError
from lepton_jax.types import Model, Variables

Statistic = Callable[[Site, Array, Any], Any]
"""(site, inputs, weight) -> a tree of arrays."""


def measured(
    model: Model,
    variables: Variables,
    batches: Iterable[Any],
    statistic: Statistic,
    merge: Callable[[Array, Array], Array] = jnp.add,
    rule: Rule = multiplied,
) -> dict[str, Any]:
    """{weight's name: statistic of its inputs} over batches of model inputs, in evaluation.

    A weight used twice counts both times. merge: how two batches' statistics become one, `jnp.add` or `jnp.maximum`.
    rule: how products are made meanwhile. Raises InputError where there are no batches.
    """

    @jax.jit
    def of(variables: Variables, inputs: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def observe(site: Site, inputs: Array, weight: Any) -> Array:
            seen = statistic(site, inputs, weight)
            found[site.name] = jax.tree.map(merge, found[site.name], seen) if site.name in found else seen
            return rule(site, inputs, weight)

        applied(model, observe).apply(variables, inputs, False, None)
        return found

    total: dict[str, Any] | None = None
    for inputs in batches:
        seen = of(variables, inputs)
        total = seen if total is None else jax.tree.map(merge, total, seen)
    if total is None:
        raise InputError("there are no batches to measure the layers' inputs on", "give at least one")
    return total


def rows(site: Site, inputs: Array, size: tuple[int, int] = (1, 1)) -> Float[Array, "rows inputs"]:
    """A layer's inputs as the rows that its weight, as a matrix [inputs, outputs], multiplies.

    size: height and width of a convolution's kernel; its rows are patches, as `kernel.reshape(-1, outputs)` has them.
    Raises InputError for a convolution in groups, whose weight is no one matrix.
    """
    if not site.is_convolution:
        return inputs.reshape(-1, inputs.shape[-1])
    if site.params["feature_group_count"] != 1:
        raise InputError(f"{site.name} is a convolution in groups", "leave it out by a pattern of names")
    patches = jax.lax.conv_general_dilated_patches(
        inputs,
        size,
        site.params["window_strides"],
        site.params["padding"],
        rhs_dilation=site.params["rhs_dilation"],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # JAX orders a patch by channel first, kernels by place
    channels = inputs.shape[-1]
    return patches.reshape(-1, channels, size[0] * size[1]).swapaxes(1, 2).reshape(-1, size[0] * size[1] * channels)


def second_moment(site: Site, inputs: Array, weight: Any) -> dict[str, Array]:
    """A `Statistic`: the sum of x x^T over rows, [inputs, inputs], and how many rows there were."""
    matrix = rows(site, inputs, tuple(weight.shape[:2]) if site.is_convolution else (1, 1))
    return {"sum": matrix.T @ matrix, "count": jnp.float32(len(matrix))}
