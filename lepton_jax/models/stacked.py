"""Transformers whose blocks' parameters are stacked, `blocks/attention/query/kernel` [depth, in, out] and so on.

The same networks as those with a block after the other, and faster to compile. On a mesh with a "pipe" axis each of
its devices has a stage of the blocks: see `pipeline.pipelined`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import keys as keys_
from lepton_jax.errors import InputError
from lepton_jax.models import layers, pipeline, vit
from lepton_jax.models.adapters import linen
from lepton_jax.models.attention import Tokens
from lepton_jax.models.layers import Part
from lepton_jax.types import Key, Keys, Model, Params, Rule

NAME, BLOCK = "blocks", re.compile(r"block(\d+)")
RULES = (
    *(Rule(rf"{NAME}/.*{rule.pattern}", (pipeline.AXIS, *rule.axes)) for rule in vit.BLOCK_RULES),
    Rule(rf"{NAME}/.*(scale|bias)$", (pipeline.AXIS, None)),
    *layers.head_rules,
)


class StackedVisionTransformer(vit.VisionTransformer):
    """See `vision_transformer`."""

    microbatches: int | None = None

    def blocks(self, x: Tokens, tokens: int, train: bool, keys: Keys | None) -> Tokens:
        """All blocks, by one program for all of them."""
        depth = self.size.depth
        params = self.param(NAME, self._initial, x)
        rates = jnp.asarray(layers.increasing(self.stochastic_depth, depth)) if self.stochastic_depth else None

        def layer(own: Any, x: Array, keys: Keys | None) -> Any:
            params, number, rate = own
            block = vit.Block(self.size.heads, self.dropout, 0.0 if rate is None else rate, tokens)
            return block.apply({"params": params}, x, train, None if keys is None else keys_.folded(keys, number))

        return pipeline.pipelined(layer, (params, jnp.arange(depth), rates), x, keys, self.microbatches)

    def _initial(self, key: Key, x: Tokens) -> Params:
        """The parameters of all blocks, each drawn by itself."""
        block, one = vit.Block(self.size.heads), jnp.zeros((1, *x.shape[1:]), x.dtype)
        return jax.vmap(lambda key: block.init(key, one, False)["params"])(jax.random.split(key, self.size.depth))


def vision_transformer(
    size: str | vit.Size,
    classes: int,
    patch: int = 16,
    pooling: vit.Pooling = vit.class_token,
    positions: Part = vit.Learned,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    microbatches: int | None = None,
) -> Model:
    """`vit.standard` with stacked blocks: the same outputs for `stack(params)` as that for `params`.

    Dropout draws from other keys than there. microbatches: of the pipeline. Optimizers take each block for itself, but
    for LAMB, which scales all of them by one norm. Raises InputError as `vit.standard` and `pipeline.pipelined` do.
    """
    options = (patch, classes, pooling, positions, dropout, stochastic_depth, microbatches)
    return linen(StackedVisionTransformer(vit.sized(size), *options), RULES)


def stack(params: Params) -> dict[str, Any]:
    """The parameters `block0`, `block1` ... at the top of a tree as one part `blocks` with a leading axis of layers.

    Raises InputError where there is no block.
    """
    found = {int(match[1]): part for name, part in params.items() if (match := BLOCK.fullmatch(name))}
    if not found:
        some = ", ".join(list(params)[:4])
        raise InputError("there is no block0, block1 ... in these parameters", f"their parts are named: {some}")
    blocks = [found[number] for number in sorted(found)]
    others = {name: part for name, part in params.items() if not BLOCK.fullmatch(name)}
    return {**others, NAME: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack(params: Params) -> dict[str, Any]:
    """The inverse of `stack`. Raises InputError where there is no part `blocks`."""
    if NAME not in params:
        raise InputError(f"there is no part {NAME!r} in these parameters", f"their parts: {', '.join(params)}")
    stacked = params[NAME]
    depth = len(jax.tree.leaves(stacked)[0])
    blocks = {f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)}
    return {**{name: part for name, part in params.items() if name != NAME}, **blocks}
