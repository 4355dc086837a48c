"""The update: GradFn x optax -> Step, and Step -> Step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from lepton_jax import keys, tree
from lepton_jax import mesh as meshes
from lepton_jax.errors import InputError
from lepton_jax.types import Batch, GradFn, Key, Mean, Metrics, Model, Params, Rule, Step, TrainState


def initial(model: Model, optimizer: optax.GradientTransformation, key: Key, inputs: Any, **stats: Any) -> TrainState:
    """The TrainState before the first step.

    inputs: one batch of model inputs, arrays or ShapeDtypeStructs. stats: what techniques that own state start
    from, as arrays or as a function of the parameters: `loss_scale=loss_scale()`, `ema=ema`. Parameters are
    drawn on one device, so they are the same bits on every mesh.
    """

    def build(key: Key) -> TrainState:
        example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
        variables = dict(model.init(keys.named(key, "init"), example))
        params = variables.pop("params")
        owned = {name: start(params) if callable(start) else start for name, start in stats.items()}
        state = {"model": variables, **owned} if variables else owned
        return TrainState(jnp.int32(0), params, state, optimizer.init(params), keys.named(key, "run"))

    return jax.jit(build)(key)


def descend(grad_fn: GradFn, optimizer: optax.GradientTransformation) -> Step:
    """One update of the parameters along the mean gradient.

    The key of the step is fold_in(state.key, state.step). The optimizer may look at the mean loss as `value`
    (optax's name). A gradient of weight 0, from no examples, leaves parameters and optimizer as they were.
    """
    transform = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        mean, aux = grad_fn(state.params, state.stats, batch, key)
        # a gradient is computed where its parameter is: else fsdp's layout of what goes out reaches back into
        # convolutions whose kernels are computed from parameters, and these come out wrong (jax 0.10.2, 0.12.0)
        # and from there on each device needs but its part: what follows is done on it alone, so that the sum over
        # devices may be a reduce-scatter
        total = meshes.as_kept(meshes.as_computed(mean.total))
        gradient = Mean(total, mean.weight).value()
        extra = {"value": aux.metrics["loss"].value()} if "loss" in aux.metrics else {}
        updates, opt_state = transform.update(gradient, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = tree.where(mean.weight == 0, (state.params, state.opt_state), (params, opt_state))
        metrics = {**aux.metrics, "gradient_norm": Mean(tree.norm(total), mean.weight)}
        return TrainState(state.step + 1, params, aux.stats, opt_state, state.key), metrics

    return step


def observed(step: Step, **watched: Callable[[TrainState], Any]) -> Step:
    """The same step, with scalars of the state before it among its metrics: `learning_rate=...`."""

    def observed_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch)
        seen = {name: jnp.asarray(look(state), jnp.float32) for name, look in watched.items()}
        return after, {**metrics, **{name: Mean(value, jnp.ones_like(value)) for name, value in seen.items()}}

    return observed_step


def ema(params: Params) -> Params:
    """What `averaged` starts from: the parameters themselves."""
    return params


def averaged(step: Step, decay: float) -> Step:
    """The same step, with an exponential moving average of the parameters in `stats["ema"]`.

    Start the stats with `ema=ema`. Polyak and Juditsky 1992, https://doi.org/10.1137/0330046.
    """

    def averaged_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch)
        # early steps average over what there is, so a short run is not stuck at its random start
        rate = jnp.maximum(1 - decay, 1 / (after.step + 1))
        ema = jax.tree.map(lambda mean, x: mean + rate.astype(x.dtype) * (x - mean), state.stats["ema"], after.params)
        return after._replace(stats={**after.stats, "ema": ema}), metrics

    return averaged_step


def place(state: TrainState, mesh: Mesh, rules: Sequence[Rule] = ()) -> TrainState:
    """The state over the mesh: see `mesh.shardings`. Of several processes each comes with the same state."""
    lie = meshes.shardings(state, mesh, rules)
    if jax.process_count() == 1:
        return jax.device_put(state, lie)
    # device_put takes numbers from every process to all, and not random keys (jax 0.10.2)
    numbers = jax.device_put(state._replace(key=jax.random.key_data(state.key)), lie)
    return numbers._replace(key=jax.random.wrap_key_data(numbers.key, impl=jax.random.key_impl(state.key)))


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raise InputError for a batch that the mesh's batch axes times the microbatches do not divide."""
    parts = meshes.batch_shards(mesh) * microbatches
    if batch_size % parts == 0:
        return
    below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
    axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in meshes.batch_axes(mesh))
    raise InputError(
        f"a batch of {batch_size} does not divide over the mesh ({axes}) and {microbatches} microbatch(es)",
        f"use a multiple of {parts}: {f'{below} or ' if below else ''}{above}",
    )


def compile(
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
    state: TrainState,
    batch: Mapping[str, Any],
    mesh: Mesh,
    rules: Sequence[Rule] = (),
) -> Any:
    """The step compiled ahead of time for states and batches like these (arrays or shapes); donates the state.

    Metrics come back whole on every device. Calling it with other shapes raises, so nothing recompiles unseen.
    """
    return trace(step, state, batch, mesh, rules).lower().compile()


def trace(
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
    state: TrainState,
    batch: Mapping[str, Any],
    mesh: Mesh,
    rules: Sequence[Rule] = (),
) -> Any:
    """The step traced for states and batches like these, to be laid over the mesh: `.jaxpr`, and `.lower()`."""
    lie = meshes.shardings(state, mesh, rules)
    rows = jax.tree.map(lambda _: meshes.batch_sharding(mesh), dict(batch))
    used = meshes.shardings(state, mesh, rules, fsdp=False).params

    def gathered(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        # fsdp says where parameters rest, not how a layer computes: left to itself the partitioner splits
        # images along such axes, slowly, and wrongly in a scan on three axes (jax 0.10.2; tests/test_laws.py)
        with meshes.computing(used, lie.params):
            return step(state._replace(params=jax.lax.with_sharding_constraint(state.params, used)), batch)

    jitted = jax.jit(gathered, in_shardings=(lie, rows), out_shardings=(lie, meshes.replicated(mesh)), donate_argnums=0)
    with jax.set_mesh(mesh):
        return jitted.trace(shapes(state), shapes(dict(batch)))


def shapes(arrays: PyTree) -> PyTree:
    """Arrays as shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
