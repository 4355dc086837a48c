"""Models from elsewhere as a `Model`: Flax Linen, Flax NNX, and plain (init, apply) functions.

A module's signature is read once: `train` or `training` (bool), `deterministic` (not train) and `keys` (one per
example) are passed by name to those that take them. Moved collections keep their dtypes, so that a step's output
fits its input.

Modules that draw random numbers in Flax's own way (`nn.Dropout`, `nnx.Dropout`) get one key for the whole batch,
the first example's: right in distribution, but, unlike `layers.Dropout`, another draw for another microbatch
size.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from lepton_jax import keys as keys_
from lepton_jax.errors import InputError
from lepton_jax.models.inputs import compute_dtype
from lepton_jax.tree import is_floating
from lepton_jax.types import Key, Keys, Model, Params, Rule, Variables


def as_model(model: Any) -> Model:
    """A Model, a Linen module, an NNX module or a pair of functions (init, apply) as a Model.

    Raises InputError for anything else.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, flax.linen.Module):
        return linen(model)
    if isinstance(model, flax.nnx.Module):
        return nnx(model)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return functions(*model)
    remedy = "give a Linen or NNX module (an instance), a pair (init, apply), or a lepton_jax.Model"
    raise InputError(f"{model!r:.60} is not a model", remedy)


def linen(module: flax.linen.Module, rules: Sequence[Rule] = ()) -> Model:
    """A Flax Linen module as a Model; every collection but "params" moves in training."""
    wanted = _wanted(module.__call__)  # pyright: ignore[reportAttributeAccessIssue]

    def init(key: Key, inputs: Any) -> Variables:
        return flax.linen.unbox(module.init(_streams(key), inputs, **_arguments(wanted, False, None)))

    def apply(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        others = {name: value for name, value in variables.items() if name != "params"}
        streams = None if keys is None else _streams(keys[0])
        arguments = _arguments(wanted, train, keys)
        if not train:
            return module.apply(variables, inputs, rngs=streams, **arguments), others
        outputs, moved = module.apply(variables, inputs, rngs=streams, mutable=list(others), **arguments)
        return outputs, _like(moved, others)

    return Model(init, apply, tuple(rules))


def nnx(module: flax.nnx.Module | Callable[[flax.nnx.Rngs], flax.nnx.Module], rules: Sequence[Rule] = ()) -> Model:
    """A Flax NNX module as a Model; its variables are {"params": nnx.Params, "state": all else but random streams}.

    Given a module, its weights as they stand are the initial ones, whatever the key. Given a function of
    `nnx.Rngs`, `lambda rngs: Net(10, rngs=rngs)` say, they are drawn from the key. The module is split once and
    put together again only while tracing; random streams start anew from the keys at every apply. Works in NNX's
    graph and tree modes. Raises InputError in training without keys where the module has random streams.
    """
    ready = isinstance(module, flax.nnx.Module)
    template = module if ready else flax.nnx.eval_shape(lambda: module(flax.nnx.Rngs(0)))
    graph, params, streams, state = _split(template)
    paths = {tuple(map(str, path)): path for path in (*params, *state)}
    wanted = _wanted(module.__call__ if ready else type(template).__call__)

    def init(key: Key, inputs: Any) -> Variables:
        _, params, _, state = _split(module if ready else module(flax.nnx.Rngs(key)))
        # copied: a training step gives its buffers away, and the module's own must stay
        others = {"state": _plain(state)} if state else {}
        return jax.tree.map(jnp.copy, {"params": _plain(params), **others})

    def apply(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        if train and streams and keys is None:
            problem = "an NNX module with random streams got no keys in training"
            raise InputError(problem, "pass keys to apply, one per example")
        params, before = variables["params"], variables.get("state", {})
        leaves = flatten_dict(params) | flatten_dict(_widened(before, params))
        start = _restarted(streams, jax.random.key(0) if keys is None else keys[0])
        copy = flax.nnx.merge(graph, unflatten_dict({paths[name]: leaf for name, leaf in leaves.items()} | start))
        copy.train() if train else copy.eval()
        outputs = copy(inputs, **_arguments(wanted, train, keys))
        if not before:
            return outputs, {}
        moved = {path: leaf for path, leaf in _split(copy)[-1].items() if path in state}  # without sown values
        return outputs, {"state": _like(_plain(moved), before) if train else before}

    return Model(init, apply, tuple(rules))


def functions(init: Callable[[Key, Any], Params], apply: Callable[..., Any], rules: Sequence[Rule] = ()) -> Model:
    """Two plain functions, `init(key, inputs) -> params` and `apply(params, inputs) -> outputs`, as a Model.

    Hand-written models, stax, Haiku without state and Equinox's partitioned modules are of this kind. `apply`
    gets `train`, `training`, `deterministic` and `keys` by name where it takes them. One with moving state is
    written as a `Model(init, apply)` itself.
    """
    wanted = _wanted(apply)

    def outputs(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        return apply(variables["params"], inputs, **_arguments(wanted, train, keys)), {}

    return Model(lambda key, inputs: {"params": init(key, inputs)}, outputs, tuple(rules))


def _wanted(call: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(call).parameters)


def _arguments(wanted: frozenset[str], train: bool, keys: Keys | None) -> dict[str, Any]:
    known = {"train": train, "training": train, "deterministic": not train, "keys": keys}
    return {name: value for name, value in known.items() if name in wanted}


def _streams(key: Key) -> dict[str, Key]:
    """Linen's random streams; one that a module asks for and that is not here is drawn from "params"."""
    return {name: keys_.named(key, name) for name in ("params", "dropout")}


def _like(moved: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """`moved` in the dtypes of `before`: in float64 a batch's mean is float64 and the running one is not."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), dict(moved), dict(before))


def _widened(state: Any, params: Params) -> Any:
    """The state at least as wide as the parameters: NNX's norms write into it in place, as wide as they compute."""
    dtype = compute_dtype(params)
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, dtype)) if is_floating(x) else x, state)


def _split(module: Any) -> tuple[Any, dict, dict, dict]:
    """(graph, params, random streams, all else), each of the last three as {path: variable or array}."""
    graph, *states = flax.nnx.split(module, flax.nnx.Param, flax.nnx.RngState, ...)
    params, streams, state = (dict(flax.nnx.to_flat_state(state)) for state in states)
    return graph, params, streams, state


def _plain(flat: Mapping[tuple[Any, ...], Any]) -> dict[str, Any]:
    """{path: variable} as nested dicts of arrays; numbers in paths as text, as JSON and checkpoints have them."""
    value = {path: leaf[...] if isinstance(leaf, flax.nnx.Variable) else leaf for path, leaf in flat.items()}
    return unflatten_dict({tuple(map(str, path)): leaf for path, leaf in value.items()})


def _restarted(streams: Mapping[tuple[Any, ...], Any], key: Key) -> dict[tuple[Any, ...], Any]:
    """The random streams, each at the start of its own sequence from `key`."""

    def start(path: tuple[Any, ...], stream: Any) -> Any:
        if not isinstance(stream, flax.nnx.RngKey):
            return jnp.zeros(stream.shape, stream.dtype)
        own = keys_.named(key, "/".join(map(str, path)))
        return jax.random.split(own, stream.shape) if stream.shape else own

    return {path: start(path, stream) for path, stream in streams.items()}
