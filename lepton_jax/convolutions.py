"""Convolutions that XLA for CPUs computes fast wherever they stand.

Its fast kernels take one order of dimensions: images [batch, ..., features], kernels [..., in, out]. XLA brings others
into it only in the entry of a program (`ConvCanonicalization`; jax 0.10.2 and 0.12.0). In a loop it leaves the gradient
of a kernel, whose dimensions are in another order, to a loop over single numbers, ten to eighty times slower: there go
microbatches, virtual shards, replicas and federated clients. So the order is changed before XLA sees it.

It is JAX's own rule for the whole process that is replaced, so that is not done by an import, but where the first
gradient is made of a loss (`gradients.plain`, `privacy.clipped`).
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import mlir
from jax.lax import ConvDimensionNumbers


@cache
def in_order_on_cpus() -> None:
    """Have JAX lower convolutions of real numbers for CPUs in that order, from now on and in all of the process.

    Where this JAX has not the rule that ours goes on to, all stays as it is: slower, and right.
    """
    from jax._src.lax import convolution  # JAX has no public name for its own rule

    if not hasattr(convolution, "_conv_general_dilated_lower"):
        return
    mlir.register_lowering(conv_general_dilated_p, _lowered, platform="cpu")


def in_order(lhs: Any, rhs: Any, *, dimension_numbers: ConvDimensionNumbers, **options: Any) -> Any:
    """The same convolution with its dimensions in the order that CPUs like, and its result in the order asked for."""
    left, right, out = (_features_last(spec) for spec in dimension_numbers)
    # of a kernel the first two are (out, in)
    right = (*right[1:-1], right[-1], right[0])
    given = (jnp.transpose(lhs, left), jnp.transpose(rhs, right))
    result = conv_general_dilated_p.bind(*given, dimension_numbers=_ordered(lhs.ndim), **options)
    return jnp.transpose(result, tuple(out.index(axis) for axis in range(lhs.ndim)))


def _lowered(context: Any, lhs: Any, rhs: Any, *, dimension_numbers: ConvDimensionNumbers, **options: Any) -> Any:
    # JAX has no public name for its own rule
    from jax._src.lax.convolution import _conv_general_dilated_lower

    image, laid = context.avals_in[0], options.get("out_sharding")
    fits = dimension_numbers == _ordered(image.ndim) or not 3 <= image.ndim <= 5
    # over automatic axes JAX gives derivatives a layout too, which says nothing
    if fits or not jnp.issubdtype(image.dtype, jnp.floating) or any(getattr(laid, "spec", ())):
        rule = partial(_conv_general_dilated_lower, expand_complex_convolutions=True)
    else:
        rule = mlir.lower_fun(in_order, multiple_results=False)
        options["out_sharding"] = None
    return rule(context, lhs, rhs, dimension_numbers=dimension_numbers, **options)


def _features_last(spec: Sequence[int]) -> tuple[int, ...]:
    return (spec[0], *spec[2:], spec[1])


def _ordered(rank: int) -> ConvDimensionNumbers:
    images, kernels = (0, rank - 1, *range(1, rank - 1)), (rank - 1, rank - 2, *range(rank - 2))
    return jax.lax.ConvDimensionNumbers(images, kernels, images)
