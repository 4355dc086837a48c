"""An engine in one pass: from what layers take in and what comes back, without the large per-example gradients.

Where a Linen layer is dense, a convolution or an embedding, its inputs and the cotangents of its outputs are kept. From
these come its norms and, once the factors are known, its part of the sum (Bu et al. 2022, book-keeping,
https://arxiv.org/abs/2210.00038). All other parameters (norms, recurrent cells, whatever is used twice or seen through
a view) have their gradients per example, as in `vmapped`, so the result is exact for any loss.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers
from jaxtyping import Array, Float

from lepton_jax.privacy.engine import Example, Factors, Rows, Seen, scaled_sum, squared
from lepton_jax.privacy.layers import Gradient, Taken, taken
from lepton_jax.types import Params


class Tap(NamedTuple):
    """A call of a layer. leaves: the places of its parameters in the tree, by name. output: shape and dtype of what
    comes out for one example."""

    layer: Any
    take: Taken
    leaves: dict[str, int]
    output: jax.ShapeDtypeStruct


def ghost(
    example: Example, params: Params, rows: Rows, factors: Factors
) -> tuple[Params, Sequence[Float[Array, " examples"]], Float[Array, " examples"], Seen]:
    """One pass, and the memory of activations and their cotangents; see the module."""
    gradients, losses, seen = taken_apart(example, params, rows)
    squares = [gradient.squares for gradient in gradients]
    sums = [gradient.summed(factor) for gradient, factor in zip(gradients, factors(squares), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), sums), squares, losses, seen


def taken_apart(example: Example, params: Params, rows: Rows) -> tuple[list[Gradient], Float[Array, " examples"], Seen]:
    """(each leaf's gradient over examples, the losses, what was seen), from one forward and one backward pass."""
    leaves, structure = jax.tree.flatten(params)
    taps = found(example, params, jax.tree.map(lambda x: x[0], rows))
    held = {place for tap in taps.values() for place in tap.leaves.values()}
    rest = {place: leaf for place, leaf in enumerate(leaves) if place not in held}

    def tapped(rest: dict[int, Array], added: dict[int, Array], row: Rows) -> tuple[Array, tuple[Seen, Any]]:
        whole = structure.unflatten([rest.get(place, leaf) for place, leaf in enumerate(leaves)])
        inputs: dict[int, Any] = {}
        with nn.intercept_methods(_adding(added, inputs)):
            loss, seen = example(whole, row)
        return loss, (seen, inputs)

    nothing = {number: jnp.zeros(tap.output.shape, tap.output.dtype) for number, tap in taps.items()}
    both = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
    (losses, (seen, inputs)), (direct, back) = jax.vmap(both, (None, None, 0))(rest, nothing, rows)

    gradients: dict[int, Gradient] = {}
    for number, tap in taps.items():
        own = {name: leaves[place] for name, place in tap.leaves.items()}
        parts = tap.take(tap.layer, inputs[number], back[number], own)
        gradients |= {place: parts[name] for name, place in tap.leaves.items()}
    for place, leaf in direct.items():
        gradients[place] = Gradient(squared(leaf), lambda factor, leaf=leaf: scaled_sum(leaf, factor))
    return [gradients[place] for place in range(len(leaves))], losses, seen


def found(example: Example, params: Params, row: Rows) -> dict[int, Tap]:
    """The calls of layers that can be taken, by their number among all calls of Linen modules.

    Such a layer is called once, outside of any scan, remat or other transform, on its parameters as they lie in the
    tree, and nothing else uses these.
    """
    taps: dict[int, Tap] = {}

    def probed(leaves: list[Array], row: Rows) -> Array:
        places = {id(leaf): place for place, leaf in enumerate(leaves)}
        with nn.intercept_methods(_recording(taps, places)):
            return example(jax.tree.unflatten(structure, leaves), row)[0]

    leaves, structure = jax.tree.flatten(params)
    program = jax.make_jaxpr(probed)(leaves, row).jaxpr
    uses = [variable for equation in program.eqns for variable in equation.invars] + list(program.outvars)
    times = [sum(use is variable for use in uses) for variable in program.invars[: len(leaves)]]
    return {number: tap for number, tap in taps.items() if all(times[place] == 1 for place in tap.leaves.values())}


def _recording(taps: dict[int, Tap], places: dict[int, int]) -> Any:
    """An interceptor that notes the calls of layers whose parameters are at these places."""
    level, calls = tracers.current_trace(), iter(range(2**31))

    def interceptor(following: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        number = next(calls) if context.method_name == "__call__" else None
        output = following(*arguments, **options)
        if number is None or options or len(arguments) != 1 or tracers.current_trace() != level:
            return output
        take = taken(context.module, arguments[0])
        if take is not None:
            own = context.module.variables["params"]
            leaves = {name: places.get(id(leaf)) for name, leaf in own.items()}
            known = {name: place for name, place in leaves.items() if place is not None}
            if len(known) == len(leaves):
                shape = jax.ShapeDtypeStruct(output.shape, output.dtype)
                # the layer outlives its trace as settings only
                taps[number] = Tap(context.module.clone(parent=None), take, known, shape)
        return output

    return interceptor


def _adding(added: dict[int, Array], inputs: dict[int, Any]) -> Any:
    """An interceptor that keeps what these calls take in, and adds to what they give out."""
    calls = iter(range(2**31))

    def interceptor(following: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        number = next(calls) if context.method_name == "__call__" else None
        output = following(*arguments, **options)
        if number not in added:
            return output
        inputs[number] = arguments[0]
        return output + added[number]

    return interceptor
