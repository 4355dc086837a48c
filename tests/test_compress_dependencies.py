"""The dependency graph: what goes together, what is fixed and by which operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax.compress import channels, programs, propagation, rules
from lepton_jax.compress.dependencies import graph
from lepton_jax.compress.ties import Ties
from lepton_jax.compress.widths import shrunk
from lepton_jax.errors import InputError
from lepton_jax.models import resnet
from lepton_jax.models.adapters import functions

INPUTS = jnp.ones((2, 4, 3))


def between(operation):
    """A model of two matrices with an operation on the hidden channels between them."""

    def init(key, inputs):
        return {"first": jnp.ones((3, 6)), "last": jnp.ones((6, 5))}

    model = functions(init, lambda params, x: operation(x @ params["first"]) @ params["last"])
    return model, {"params": init(None, None)}


OPERATIONS = {
    "gather": lambda y: y[..., np.array([1, 0, 3, 2, 5, 4])],
    "sort": lambda y: jnp.sort(y, axis=-1),
    "cumsum": lambda y: jnp.cumsum(y, axis=-1),
    "scan": lambda y: jax.lax.scan(lambda carry, _: (carry * 2, None), y, length=3)[0],
    "while": lambda y: jax.lax.while_loop(lambda y: jnp.sum(y) < 9, lambda y: y + 1, y),
    "reduce_sum": lambda y: y / jnp.sum(y, axis=-1, keepdims=True),
    "reduce_max": lambda y: jax.nn.softmax(y, axis=-1),
    "argmax": lambda y: y * jnp.argmax(y, axis=-1)[..., None],
    "slice": lambda y: jnp.concatenate([y[..., ::2], y[..., 1::2]], axis=-1),
    "dynamic_slice": lambda y: jnp.tile(jax.lax.dynamic_slice_in_dim(y, jnp.int32(1), 3, 2), (1, 1, 2)),
    "reduce_window_max": lambda y: jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 1, 3), (1, 1, 1), "SAME"),
    "add": lambda y: y + jnp.tile(INPUTS, (1, 1, 2)),
    "fft": lambda y: jnp.fft.fft(y, axis=-1).real,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_cannot_be_followed_is_fixed_and_says_why(name):
    model, variables = between(OPERATIONS[name])
    ties = graph(model, variables, INPUTS)
    with pytest.raises(InputError, match=rf"channels of first cannot be removed: {name}\b"):
        ties.of("first")
    with pytest.raises(InputError, match="cannot be removed"):
        channels.choose(ties, np.ones(ties.channels), channels.fewer_channels(ties, 0.2), pattern="first")
    with pytest.raises(InputError, match="no channels of this model can be removed"):
        channels.choose(ties, np.ones(ties.channels), lambda keep: True)
    # and a width that was forced all the same is refused by the evaluation
    keep = np.ones(ties.channels, bool)
    keep[next(group for group in ties.groups if group.producers == ["first"]).channels[0]] = False
    kept = ties.kept(keep)
    with pytest.raises(InputError, match="cannot be removed"):
        shrunk(model, kept).apply(channels.remove(variables, kept), INPUTS, False, None)


PASSING = {
    "flip": lambda y: jnp.flip(y, axis=-1),
    "transposed": lambda y: (y.swapaxes(1, 2) * 2).swapaxes(1, 2),
    "tokens summed": lambda y: y - jnp.cumsum(y, axis=1),
    "padded and cut": lambda y: jnp.pad(y, ((0, 0), (0, 0), (2, 3)))[..., 2:8],
    "constant": lambda y: y * jnp.arange(1.0, 7)[None, None] + np.linspace(0, 1, 6, dtype=np.float32)[None, None],
    "pooled tokens": lambda y: jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 1, 1), "SAME"),
    "halves": lambda y: jnp.concatenate(jnp.split(y, 2, axis=-1)[::-1], axis=-1),
    "window of tokens": lambda y: jax.lax.dynamic_slice_in_dim(y, jnp.int32(1), 2, 1),
    "pairs": lambda y: (y.reshape(2, 4, 3, 2) ** 2).reshape(2, 4, 6),
    "pairs swapped": lambda y: y.reshape(2, 4, 3, 2)[..., ::-1].reshape(2, 4, 6),
    "shuffled": lambda y: y.reshape(2, 4, 2, 3).swapaxes(2, 3).reshape(2, 4, 6),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_can_be_followed_is_zeroing(name):
    model, variables = between(PASSING[name])
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), variables)
    inputs = jnp.asarray(random.normal(size=INPUTS.shape), jnp.float32)
    ties = graph(model, variables, inputs)
    (group, *_) = ties.of("first")
    keep = np.ones(ties.channels, bool)
    keep[group.channels[0]] = False
    kept = ties.kept(keep)
    assert kept["first"][1].sum() < 6
    # the rows of the last matrix at zero: here the hidden channels go in no matter what they hold
    last = variables["params"]["last"] * jnp.asarray(kept["last"][0], jnp.float32)[:, None]
    expected = model.apply({"params": {**variables["params"], "last": last}}, inputs, False, None)[0]
    found = shrunk(model, kept).apply(channels.remove(variables, kept), inputs, False, None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_streams_of_a_residual_network():
    model = lp.models.build("resnet14", 5)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    ties = graph(model, variables, jnp.ones((1, 16, 16, 3)))
    found = {tuple(sorted(group.producers)) for group in ties.free}
    inner = {(f"stage{s}/block{b}/conv1/kernel",) for s in (1, 2, 3) for b in (0, 1)}
    streams = {
        ("stage1/block0/conv2/kernel", "stage1/block1/conv2/kernel", "stem/conv/kernel"),
        *{tuple(f"stage{s}/block{part}/kernel" for part in ("0/conv2", "0/shortcut/conv", "1/conv2")) for s in (2, 3)},
    }
    assert found == inner | streams
    (outputs,) = [group for group in ties.groups if group.fixed]
    assert outputs.producers == ["head/kernel"]
    with pytest.raises(InputError, match=r"head/kernel cannot be removed: they are the model's outputs"):
        ties.of("head")
    with pytest.raises(InputError, match="matches no weight with channels"):
        ties.of("norm")


def test_padded_shortcuts_carry_channels_at_an_offset():
    model, images = resnet.small(8, 5, shortcut=resnet.Padding), jnp.ones((1, 8, 8, 3))
    ties = graph(model, jax.eval_shape(model.init, jax.random.key(0), images), images)
    first, second, third = (
        ties.leaves[name][3]
        for name in ("stem/conv/kernel", "stage2/block0/conv2/kernel", "stage3/block0/conv2/kernel")
    )
    np.testing.assert_array_equal(second[8:24], first)
    np.testing.assert_array_equal(third[16:48], second)
    assert len(np.unique(third)) == 64


def test_a_flattened_channel_is_an_entry_per_pixel():
    model, images = lp.models.build("cnn", 5, widths=(4, 6), hidden=8), jnp.ones((1, 8, 8, 3))
    ties = graph(model, jax.eval_shape(model.init, jax.random.key(0), images), images)
    np.testing.assert_array_equal(ties.leaves["dense/kernel"][0], np.tile(ties.leaves["conv2/kernel"][3], 2 * 2))


def test_heads_and_hidden_units_of_a_vision_transformer_are_free_and_its_width_is_not():
    size = lp.models.vit.Size(24, 1, 3)
    model, images = lp.models.vit.standard(size, 5, patch=4), jnp.ones((1, 8, 8, 3))
    ties = graph(model, jax.eval_shape(model.init, jax.random.key(0), images), images)
    assert {len(group.channels) for group in ties.free} == {3, 96}
    np.testing.assert_array_equal(
        ties.leaves["block0/attention/out/kernel"][0], np.repeat(ties.leaves["block0/attention/key/bias"][0][::8], 8)
    )
    with pytest.raises(InputError, match="reduce_sum"):
        ties.of("patches")


def test_standardized_kernels_fix_what_they_read():
    model, images = lp.models.wide_resnet.with_group_norm(10, 1, 5), jnp.ones((1, 8, 8, 3))
    ties = graph(model, jax.eval_shape(model.init, jax.random.key(0), images), images)
    with pytest.raises(InputError, match="reduce_sum"):
        ties.of("stage1/block0/conv1/kernel")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 4, 4, 8), (2, 128), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 65, 192), (2, 65, 3, 64), [([0], [0]), ([1], [1]), ([2], [2, 3])]),
        ((6,), (1, 1, 6), [([0], [2])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((1, 1), (1,), []),
    ],
)
def test_blocks_of_a_reshape(before, after, expected):
    assert list(rules.blocks(before, after)) == expected


def test_every_rule_covers_a_primitive_once():
    assert len(set(propagation.ELEMENTWISE)) == len(propagation.ELEMENTWISE)
    assert not {"dot_general", "reshape", *propagation.REDUCTIONS} & set(propagation.ELEMENTWISE)


def test_ties_are_transitive():
    ties = Ties()
    a, b, c = (ties.new(3) for _ in range(3))
    assert a is not None and b is not None and c is not None  # noqa: PT018
    ties.same(a, b)
    ties.same(b, c[::-1])
    found = ties.components()
    np.testing.assert_array_equal(found[a], found[c[::-1]])
    assert len(np.unique(found)) == 3
    assert ties.new(1) is None
    assert ties.tie("add", None, a) is a
    assert ties.fixed[-1][1].startswith("add ")


def test_a_program_is_flat_and_keeps_own_derivatives_whole():
    @jax.jit
    def inner(x):
        return jax.nn.relu(x) + 1

    program = programs.flattened(jax.make_jaxpr(lambda x: inner(x) * inner(x))(jnp.ones(3)))
    names = [operation.name for operation in program.operations]
    assert names.count("custom_jvp_call") == 2
    assert not set(names) & set(programs.INLINED)
    assert program.size == len({n for op in program.operations for n in op.results}) + 1 + len(program.constants)
