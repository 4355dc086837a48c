"""Loss -> GradFn: the sum of the examples' gradients, each clipped before it is added."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lepton_jax import convolutions, keys, tree
from lepton_jax import mesh as meshes
from lepton_jax.errors import InputError
from lepton_jax.noting import note
from lepton_jax.privacy.engine import Engine, vmapped
from lepton_jax.privacy.rules import NAME, Rule, as_rule
from lepton_jax.types import Aux, Batch, GradFn, Loss, Mean, Stats


def clipped(loss: Loss, clip: Rule | float, engine: Engine = vmapped) -> GradFn:
    """The sum of the examples' gradients, each scaled by the rule `clip`, with the sum of their weights (Abadi et al.
    2016, https://arxiv.org/abs/1607.00133).

    A number is flat clipping to that norm. What is clipped is the gradient of the loss of a batch of this one example,
    its weight included, so a weight cannot lift an example above the norm. Weight 0 contributes nothing, whatever the
    row holds, and so does a gradient that is not finite. Each example draws from its own key, by its index. Metrics are
    the loss's own and "clipped", the share of examples above the norm: like the loss they are of the examples
    themselves, and nothing makes them private. Stats stay as they are.

    On a mesh each device has its own rows, inside of `jax.shard_map` (of convolutions under automatic sharding the
    per-example gradients are zero without a word: jax 0.10.2); devices on other axes than data and fsdp do the same
    work again. Raises InputError where the loss moves stats, as batch norm does: they would leave unprotected.
    """
    rule = as_rule(clip)
    convolutions.in_order_on_cpus()

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        note(rule)

        def summed(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Any, Mean, dict[str, Mean], Any]:
            def example(params: Any, row: Batch) -> tuple[Any, Any]:
                mean, aux = loss(params, stats, row, key)
                require_still(stats, aux.stats)
                return mean.total, (mean.weight, aux.metrics)

            counts = _counting(batch)
            rows = jax.tree.map(lambda x: x[:, None], _filled(batch, counts))
            bound = rule.current(stats)

            def factors(squares: Any) -> Any:
                scales = rule.factors(params, squares, bound)[0]
                masked = {id(scale): jnp.where(counts, scale, 0) for scale in scales}
                return [masked[id(scale)] for scale in scales]  # one object for leaves of one factor

            total, squares, losses, seen = engine(example, params, rows, factors)
            above = rule.factors(params, squares, bound)[1] & counts
            losses, (weights, metrics) = jax.tree.map(lambda x: _summed(x, counts), (losses, seen))
            of = jnp.sum(counts).astype(jnp.float32)
            shown = {"loss": Mean(losses, weights), **metrics, "clipped": Mean(jnp.sum(above).astype(of.dtype), of)}
            return total, Mean(losses, weights), shown, jnp.sum(counts & ~above) - jnp.sum(above)

        given = {**batch, "index": keys.index(batch)}
        total, mean, metrics, balance = _over_devices(summed)(params, stats, given, key)
        if rule.adaptation is not None:
            own = stats[NAME]
            stats = {**stats, NAME: {**own, "balance": own["balance"] + balance.astype(jnp.int32)}}
        return Mean(total, mean.weight), Aux(stats, metrics)

    return gradient


def _over_devices(summed: Any) -> Any:
    """The function of rows, whose results are sums over them, on each device's own rows, and the sums of all."""
    mesh = meshes.automatic()
    if mesh is None or mesh.size == 1:
        return summed
    axes = meshes.batch_axes(mesh)

    def on_a_device(params: Any, stats: Any, batch: Batch, key: Any) -> Any:
        sums = summed(params, stats, batch, key)
        return jax.lax.psum(sums, axes) if axes else sums

    def checked(params: Any, stats: Any, batch: Batch, key: Any) -> Any:
        size, shards = keys.size(batch), meshes.batch_shards(mesh)
        if size % shards:
            problem = f"a batch of {size} rows does not divide over {shards} devices"
            raise InputError(problem, f"use a multiple of {shards}")
        laid = (P(), P(), P(axes or None), P())
        # unchecked, a gradient with respect to what all devices hold is that of a device's own rows; checked, it
        # would have been summed over devices already, before any clipping
        return jax.shard_map(on_a_device, in_specs=laid, out_specs=P(), check_vma=False)(params, stats, batch, key)

    return checked


def _counting(batch: Batch) -> Any:
    """Which rows are examples and not padding."""
    return batch["weight"] != 0 if "weight" in batch else jnp.ones(keys.size(batch), bool)


def _filled(batch: Batch, counts: Any) -> Batch:
    """The batch with zeros in place of the floats of rows that do not count, so that no NaN there spreads."""

    def fill(rows: Any) -> Any:
        wide = counts.reshape(-1, *[1] * (rows.ndim - 1))
        return jnp.where(wide, rows, 0) if tree.is_floating(rows) else rows

    return jax.tree.map(fill, dict(batch))


def _summed(rows: Any, counts: Any) -> Any:
    return jnp.sum(jnp.where(counts.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0), axis=0)


def require_still(before: Stats, after: Stats) -> None:
    """Raise InputError where a loss has moved its stats."""
    held = dict(zip(tree.paths(before), jax.tree.leaves(before), strict=True))
    moved = zip(tree.paths(after), jax.tree.leaves(after), strict=True)
    name = next((name for name, leaf in moved if held.get(name) is not leaf), None)
    if name is None:
        return
    if "batch_stats" in name:
        problem = f"batch norm ({name}) sees the whole batch, and its averages would leave without noise"
        remedy = "use group norm or standardized weights: wrn16-4-group is built of both, cnn and mlp have no norm"
        raise InputError(problem, remedy)
    raise InputError(
        f"the loss moves the stats {name!r}, which would leave without noise", "use a loss that moves none"
    )
