"""The algebra of compression, its packed leaves, and models evaluated through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax.compress import base, evaluation, inputs, leaves
from lepton_jax.errors import InputError

RANDOM = np.random.default_rng(0)


def doubled() -> base.Compression:
    """A weight seen twice as large, packed so; it counts its updates and the gradients' sum."""
    return base.Compression(
        init=lambda params: (params, {"count": jnp.int32(0), "sum": jnp.float32(0)}),
        view=lambda params, _: lp.tree.scale(params, 2),
        update=lambda params, state, gradient: {
            "count": state["count"] + 1,
            "sum": state["sum"] + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradient)),
        },
        pack=lambda params, _: lp.tree.scale(params, 2),
    )


def shifted(by: float) -> base.Compression:
    """A weight seen with `by` added: does not commute with `doubled`."""
    return base.Compression(
        init=lambda params: (params, {"sum": jnp.float32(0)}),
        view=lambda params, _: jax.tree.map(lambda x: x + by, params),
        update=lambda params, state, gradient: {"sum": state["sum"] + sum(map(jnp.sum, jax.tree.leaves(gradient)))},
        pack=lambda params, _: jax.tree.map(lambda x: x + by, params),
    )


def flat(state):
    return jax.tree.leaves(state)


PARAMS = {"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}


def test_a_chain_is_associative_and_identity_is_its_unit():
    parts = [doubled(), shifted(1.0), shifted(-3.0)]
    ways = [
        base.chain(*parts),
        base.chain(base.chain(parts[0], parts[1]), parts[2]),
        base.chain(parts[0], base.chain(parts[1], parts[2])),
        base.chain(base.identity(), *parts, base.identity()),
    ]
    seen = []
    for way in ways:
        params, state = way.init(PARAMS)
        state = way.update(params, state, jax.tree.map(jnp.ones_like, PARAMS))
        seen.append((flat(way.view(params, state)), flat(way.pack(params, state)), flat(state)))
    for other in seen[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, seen[0])
    np.testing.assert_array_equal(seen[0][0][1], 2 * (PARAMS["layer"]["kernel"] + 1 - 3))


def test_each_part_of_a_chain_gets_the_gradient_of_what_it_shows():
    chain = base.chain(doubled(), shifted(1.0))
    params, state = chain.init(PARAMS)
    first, second = chain.update(params, state, jax.tree.map(jnp.ones_like, PARAMS))
    assert (first["count"], first["sum"], second["sum"]) == (1, 9, 18)


@pytest.mark.parametrize("stages", [("masks", "low rank"), ("quantization", "masks"), ("quantization", "low rank")])
def test_a_chain_in_an_order_that_cannot_work_is_refused(stages):
    parts = [base.identity()._replace(stages=(stage,)) for stage in stages]
    with pytest.raises(InputError, match="cannot work"):
        base.chain(*parts)
    with pytest.raises(InputError, match="cannot work"):
        base.chain(base.chain(parts[0]), base.chain(base.identity(), parts[1]))
    assert base.chain(*parts[::-1]).stages == stages[::-1]


def test_compressed_is_the_gradient_through_the_view():
    def loss(params, stats, batch, key):
        total = jnp.sum(batch["input"] @ params["layer"]["kernel"]) + jnp.sum(params["layer"]["bias"])
        return lp.Mean(total, jnp.float32(len(batch["input"]))), lp.Aux(stats, {})

    compression = doubled()
    params, state = compression.init(PARAMS)
    batch = {"input": jnp.asarray(RANDOM.random((4, 2)), jnp.float32)}
    mean, aux = base.compressed(lp.plain(loss), compression)(params, {"compress": state, "x": 1}, batch, None)
    expected, _ = lp.plain(lp.through(loss, lambda params: lp.tree.scale(params, 2)))(params, {}, batch, None)
    jax.tree.map(np.testing.assert_allclose, mean, expected)
    assert aux.stats["compress"]["count"] == 1
    assert aux.stats["x"] == 1
    nothing = lambda *arguments: (lp.Mean(PARAMS, jnp.float32(0)), lp.Aux(arguments[1], {}))  # noqa: E731
    _, aux = base.compressed(nothing, compression)(params, {"compress": state}, batch, None)
    assert aux.stats["compress"]["count"] == 0


def test_names():
    tree = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": jnp.ones((3, 3))}
    assert base.chosen(base.WEIGHTS, tree) == ["a/kernel"]
    with pytest.raises(InputError, match="two or more dimensions"):
        base.chosen("bias", tree)
    with pytest.raises(InputError, match="matches no leaf"):
        base.chosen("c", tree)
    new = base.put(tree, {"a/kernel": {"down": 1}, "b": 2})
    assert base.at(new, "a/kernel/down") == 1
    assert new["b"] == 2
    assert new["a"]["bias"] is tree["a"]["bias"]
    assert tree["b"].shape == (3, 3)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=40))
@settings(deadline=None, max_examples=30)
def test_four_bits_are_two_in_a_byte(numbers):
    integers = np.array(numbers, np.int8)
    leaf = leaves.Quantized(leaves.nibbles(integers), jnp.ones(1), None, None, integers.shape, 4)
    assert leaf.values.size == -(-len(numbers) // 2)
    np.testing.assert_array_equal(leaf.integers(), integers)


@given(st.data())
@settings(deadline=None, max_examples=20)
def test_quantized_is_value_minus_zero_times_scale_by_groups(data):
    shape = data.draw(st.sampled_from([(4, 6), (3, 3, 4, 8)]))
    blocks = tuple(data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in shape)
    integers = RANDOM.integers(-128, 128, shape).astype(np.int8)
    scale, zero = RANDOM.random(blocks, np.float32), RANDOM.integers(-5, 5, blocks).astype(np.float32)
    expected = integers.astype(np.float64)
    spread = [np.kron(b, np.ones([n // m for n, m in zip(shape, blocks, strict=True)])) for b in (scale, zero)]
    found = leaves.Quantized(integers, scale, zero, None, shape, 8).dense()
    np.testing.assert_allclose(found, (expected - spread[1]) * spread[0], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_sparse_keeps_what_the_mask_keeps(bits):
    mask = RANDOM.random((5, 7)) < 0.3
    if bits == 32:
        inner = np.asarray(RANDOM.normal(size=(5, 7)), np.float32)
    else:
        integers = RANDOM.integers(-8, 8, (5, 7)).astype(np.int8)
        values = leaves.nibbles(integers) if bits == 4 else integers
        inner = leaves.Quantized(values, RANDOM.random((1, 7), np.float32), None, None, (5, 7), bits)
    found = jax.jit(leaves.dense)(leaves.sparse(inner, mask))
    np.testing.assert_array_equal(found, np.where(mask, leaves.dense(inner), 0))
    np.testing.assert_array_equal(leaves.sparse(inner, np.zeros((5, 7))).dense(), np.zeros((5, 7)))


def test_the_products_of_factors():
    down, up = RANDOM.random((4, 2)), RANDOM.random((3, 5))
    core = RANDOM.random((3, 3, 2, 3))
    whole = leaves.Factored({"down": down, "core": core, "up": up}, (3, 3, 4, 5)).dense()
    np.testing.assert_allclose(whole, np.einsum("ir,hwrs,so->hwio", down, core, up), rtol=1e-5)
    plain = leaves.Factored({"down": down, "up": up[:2]}, (4, 5)).dense()
    np.testing.assert_allclose(plain, down @ up[:2], rtol=1e-5)


MODELS = {"resnet8": (16, 16, 3), "mlp": (8, 8, 1), "cnn": (28, 28, 1)}


@pytest.fixture(scope="module", params=sorted(MODELS))
def case(request):
    model = lp.models.normalized(lp.models.build(request.param, 10), 0.5, 0.25)
    images = jax.random.uniform(jax.random.key(1), (2, *MODELS[request.param]))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


@pytest.mark.parametrize("train", [False, True])
def test_an_applied_model_is_the_model_and_every_kernel_meets_the_rule(case, train):
    model, variables, images = case
    seen = []

    def rule(site, inputs, weight):
        seen.append(site.name)
        return evaluation.multiplied(site, inputs, weight)

    other = evaluation.applied(model, rule)
    keys = jax.random.split(jax.random.key(2), 2)
    found = jax.jit(lambda v: other.apply(v, images, train, keys))(variables)
    jax.tree.map(
        np.testing.assert_array_equal, found, jax.jit(lambda v: model.apply(v, images, train, keys))(variables)
    )
    assert sorted(seen) == [name for name in sorted(lp.tree.paths(variables["params"])) if name.endswith("kernel")]


def test_a_factored_weight_is_multiplied_factor_by_factor(case):
    model, variables, images = case
    params, new = variables["params"], {}
    for name in base.chosen(base.WEIGHTS, params):
        shape = base.at(params, name).shape
        if len(shape) == 2:
            factors = {"down": RANDOM.normal(size=(shape[0], 3)), "up": RANDOM.normal(size=(3, shape[1]))}
        else:
            sizes = {"down": (shape[2], 2), "core": (*shape[:2], 2, 3), "up": (3, shape[3])}
            factors = {part: RANDOM.normal(size=size) for part, size in sizes.items()}
        factors = {part: np.asarray(factor * 0.3, np.float32) for part, factor in factors.items()}
        new[name] = leaves.Factored(factors, shape)
    packed = base.put(params, new)
    whole = {**variables, "params": leaves.unpacked(packed)}
    found = evaluation.applied(model).apply({**variables, "params": packed}, images, False, None)[0]
    np.testing.assert_allclose(found, model.apply(whole, images, False, None)[0], rtol=2e-4, atol=2e-4)


def test_inputs_are_measured_over_batches(case):
    model, variables, images = case
    found = inputs.measured(model, variables, [images, images], inputs.second_moment)
    assert sorted(found) == sorted(base.chosen(base.WEIGHTS, variables["params"]))

    # the outputs of a layer, summed and squared, follow from its inputs' second moment
    def outputs(site, x, weight):
        return jnp.sum(jnp.square(site.multiply(x, weight)))

    energies = inputs.measured(model, variables, [images, images], outputs)
    for name, energy in energies.items():
        weight = base.at(variables["params"], name)
        matrix = weight.reshape(-1, weight.shape[-1])
        np.testing.assert_allclose(jnp.sum(matrix * (found[name]["sum"] @ matrix)), energy, rtol=1e-3)
    with pytest.raises(InputError, match="no batches"):
        inputs.measured(model, variables, [], outputs)
