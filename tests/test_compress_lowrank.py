"""Low rank against numpy: errors are the tails of singular values, ranks keep their budgets, factors multiply alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax import compress
from lepton_jax.compress import base, decompositions, evaluation, inputs, leaves, lowrank, quantize, ranks
from lepton_jax.errors import InputError

METHODS = {"svd": decompositions.svd, "tucker": decompositions.tucker}


def drawn(shape, seed=0, falling=0.7):
    """A weight whose singular values fall, as a matrix [inputs, outputs]."""
    random = np.random.default_rng(seed)
    rows = int(np.prod(shape[:-1]))
    left, right = (np.linalg.qr(random.normal(size=(n, n)))[0] for n in (rows, shape[-1]))
    count = min(rows, shape[-1])
    return ((left[:, :count] * falling ** np.arange(count)[None]) @ right[:count]).reshape(shape)


def moment_of(name, examples):
    return {name: {"sum": jnp.asarray(examples.T @ examples, jnp.float32), "count": jnp.float32(len(examples))}}


def as_array(factors):
    return np.asarray(leaves.product({name: jnp.asarray(factor, jnp.float32) for name, factor in factors.items()}))


@given(st.sampled_from([(6, 9), (9, 6), (3, 3, 4, 5), (3, 1, 2, 8)]), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=20)
def test_full_rank_gives_the_weight_back(shape, seed, is_plain):
    weight = np.random.default_rng(seed).normal(size=shape)
    rows = weight.size // shape[-1]
    examples = np.random.default_rng(seed + 1).normal(size=(3 * rows, rows))
    root = None if is_plain else lowrank.output_error(moment_of("w", examples))("w", rows)
    for method in METHODS.values() if len(shape) == 4 else [decompositions.svd]:
        full = tuple(map(len, method.energies(weight, root)))
        found = as_array(method.factors(weight, full, root))
        assert np.linalg.norm(found - weight) < 1e-5 * np.linalg.norm(weight)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (3, 3, 4, 10)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_error_of_a_truncated_svd_is_the_tail_of_singular_values(shape, rank):
    weight = drawn(shape)
    values = np.linalg.svd(weight.reshape(-1, shape[-1]), compute_uv=False)
    found = as_array(decompositions.svd.factors(weight, (rank,), None))
    np.testing.assert_allclose(np.linalg.norm(found - weight), np.sqrt(np.sum(values[rank:] ** 2)), rtol=1e-4)
    down, up = decompositions.svd.factors(weight, (rank,), None).values()
    np.testing.assert_allclose(np.linalg.norm(down.reshape(-1, rank), axis=0), np.linalg.norm(up, axis=1), rtol=1e-6)


def test_tucker_errs_no_more_than_the_tails_of_both_modes_and_no_less_than_either():
    weight = np.random.default_rng(0).normal(size=(3, 3, 8, 10))
    by_input, by_output = (np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1) for axis in (2, 3))
    for pair in [(1, 1), (4, 3), (7, 9)]:
        factors = decompositions.tucker.factors(weight, pair, None)
        assert {name: factor.shape for name, factor in factors.items()} == {
            "down": (8, pair[0]),
            "core": (3, 3, *pair),
            "up": (pair[1], 10),
        }
        tails = [
            np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2)
            for matrix, rank in zip((by_input, by_output), pair, strict=True)
        ]
        error = np.sum((as_array(factors) - weight) ** 2)
        assert max(tails) * (1 - 1e-6) <= error <= sum(tails) * (1 + 1e-6)


@given(
    st.integers(0, 99), st.sampled_from([(8, 6), (3, 3, 3, 7)]), st.integers(1, 4), st.sampled_from([1e-4, 0.1, 3.0])
)
@settings(deadline=None, max_examples=30)
def test_data_aware_factors_err_no_more_in_the_outputs_than_plain_ones(seed, shape, rank, damping):
    random = np.random.default_rng(seed)
    weight, rows = random.normal(size=shape), int(np.prod(shape[:-1]))
    # fewer examples than inputs at times: the moment is singular
    examples = random.normal(size=(int(random.integers(4, 60)), rows)) * 10.0 ** random.uniform(-2, 1, (1, rows))
    root = lowrank.output_error(moment_of("w", examples), damping)("w", rows)
    for method in METHODS.values() if len(shape) == 4 else [decompositions.svd]:
        taken = (min(rank, 3), rank) if method is decompositions.tucker else (rank,)
        plain, aware = (
            np.linalg.norm(examples @ (as_array(method.factors(weight, taken, norm)) - weight).reshape(rows, -1))
            for norm in (None, root)
        )
        assert aware <= plain * (1 + 1e-4) + 1e-4 * np.linalg.norm(examples @ weight.reshape(rows, -1))


def test_the_data_aware_svd_is_the_best_of_its_rank():
    """Its error in the outputs is the tail of the outputs' own singular values (Eckart and Young)."""
    random = np.random.default_rng(1)
    examples = random.normal(size=(50, 9)) * np.geomspace(0.1, 10, 9)[None]
    weight = random.normal(size=(9, 7))
    root = lowrank.output_error(moment_of("w", examples), 0.0)("w", 9)
    found = as_array(decompositions.svd.factors(weight, (3,), root))
    tail = np.linalg.svd(examples @ weight, compute_uv=False)[3:]
    np.testing.assert_allclose(np.linalg.norm(examples @ (found - weight)), np.linalg.norm(tail), rtol=1e-4)


def candidate(shape, method=decompositions.svd, seed=0, falling=0.7):
    weight = drawn(shape, seed, falling)
    return ranks.Candidate(method.energies(weight, None), partial(method.size, shape), weight.size)


@given(st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=30)
def test_ranks_by_energy_are_the_smallest_that_keep_the_share(share):
    weights = {"a": candidate((20, 30)), "b": candidate((3, 3, 8, 16), decompositions.tucker)}
    for name, found in ranks.by_energy(share)(weights).items():
        for energy, rank in zip(weights[name].energies, found, strict=True):
            total = np.sum(energy)
            assert np.sum(energy[:rank]) >= share * total * (1 - 1e-9)
            assert rank == 1 or np.sum(energy[: rank - 1]) < share * total


@given(st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=30)
def test_ranks_by_ratio_are_the_most_that_fit(ratio):
    weights = {"a": candidate((20, 30)), "b": candidate((3, 3, 8, 16)), "c": candidate((1, 5))}
    found = ranks.by_ratio(ratio)(weights)
    assert "c" not in found
    for name, (inputs_, outputs) in {"a": (20, 30), "b": (72, 16)}.items():
        expected = max(1, int(ratio * (inputs_ * outputs)) // (inputs_ + outputs))
        assert found[name] == (expected,)
    both = candidate((3, 3, 8, 16), decompositions.tucker)
    assert both.size(ranks.by_ratio(ratio)({"d": both})["d"]) <= max(ratio * both.whole, both.size((1, 1)))


@given(st.integers(140, 5000))
@settings(deadline=None, max_examples=30)
def test_a_budget_over_all_weights_is_kept_and_spent_where_it_saves_most(parameters):
    weights = {
        "flat": candidate((20, 20), falling=0.99),
        "steep": candidate((20, 20), falling=0.3),
        "thin": candidate((1, 5)),
    }
    found = ranks.by_budget(parameters)(weights)
    sizes = {name: weight.size(found[name]) if name in found else weight.whole for name, weight in weights.items()}
    assert sum(sizes.values()) <= parameters
    # no single further step that saves more than a thousandth fits
    for name, rank in found.items():
        energy = weights[name].energies[0]
        if energy[rank[0]] / np.sum(energy) > 1e-3:
            assert sum(sizes.values()) + 40 > parameters
    if len(found) == 2 and found["flat"][0] > 1:
        energies = {name: weights[name].energies[0] / np.sum(weights[name].energies[0]) for name in found}
        assert energies["steep"][found["steep"][0]] <= energies["flat"][found["flat"][0] - 1] + 1e-12


def test_a_budget_for_everything_leaves_everything_whole():
    weights = {"a": candidate((20, 20)), "b": candidate((3, 3, 8, 16), decompositions.tucker)}
    assert ranks.by_budget(sum(weight.whole for weight in weights.values()))(weights) == {}
    with pytest.raises(InputError, match="do not fit into 50 parameters: the least ranks take 73"):
        ranks.by_budget(50)(weights)
    assert ranks.by_share(0.5)(weights) == ranks.by_budget((400 + 1152) // 2)(weights)
    assert ranks.by_share(0.5)(weights) != {}


@given(st.integers(1, 40), st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=30)
def test_ranks_in_multiples(multiple, share):
    weights = {
        "a": candidate((40, 36)),
        "b": candidate((3, 3, 24, 16), decompositions.tucker),
        "narrow": candidate((3, 3, 4, 8), decompositions.tucker),
    }
    for rule in (ranks.by_share(share), ranks.by_ratio(share), ranks.by_energy(share)):
        try:
            found = ranks.in_multiples(rule, multiple)(weights)
        except InputError:
            continue
        for name, given_ranks in found.items():
            full = [len(energy) for energy in weights[name].energies]
            assert all(rank % multiple == 0 or rank == most for rank, most in zip(given_ranks, full, strict=True))
    kept = ranks.in_multiples(ranks.by_energy(share), multiple)(weights)
    alone = ranks.by_energy(share)(weights)
    assert all(np.subtract(kept[name], alone[name]).min() >= 0 for name in weights)
    assert all(np.subtract(kept[name], alone[name]).max() < multiple for name in weights)
    assert ranks.in_multiples(ranks.by_share(0.8), 1)(weights) == ranks.by_share(0.8)(weights)
    with pytest.raises(InputError, match="the multiple 0 is below 1"):
        ranks.in_multiples(rule, 0)


def test_explicit_ranks():
    weights = {"a/kernel": candidate((20, 30)), "b/kernel": candidate((3, 3, 8, 16), decompositions.tucker)}
    assert ranks.explicit({"a": 5, "kernel": (2, 3)})(weights) == {"a/kernel": (5,), "b/kernel": (2, 3)}
    assert ranks.explicit({"b": 8})(weights) == {"b/kernel": (8, 8)}
    for wrong, match in [
        ({"a": 21}, "rank 21 of a/kernel is not from 1 to its full rank 20"),
        ({"a": 0}, "rank 0"),
        ({"a": (1, 2)}, r"takes 1 rank\(s\), not 2"),
        ({"b": 9}, "full rank 8"),
        ({"x": 1}, "matches none"),
    ]:
        with pytest.raises(InputError, match=match):
            ranks.explicit(wrong)(weights)
    out_of_range = [lambda: ranks.by_energy(0.0), lambda: ranks.by_ratio(1.0), lambda: ranks.by_share(1.0)]
    for wrong in (*out_of_range, lambda: lowrank.output_error({}, -1.0)):
        with pytest.raises(InputError):
            wrong()


@pytest.fixture(scope="module")
def case():
    model = lp.models.normalized(lp.models.build("resnet8", 10), 0.5, 0.25)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_plain", [True, False])
def test_view_pack_and_the_way_by_factors_agree(case, method, is_plain):
    model, variables, images = case
    norm = lowrank.plain
    if not is_plain:
        norm = lowrank.output_error(inputs.measured(model, variables, [images], inputs.second_moment))
    compression = lowrank.factorized(ranks.by_ratio(0.4), convolution=METHODS[method], norm=norm)
    params, state = compression.init(variables["params"])
    assert lp.tree.count(params) < 0.5 * lp.tree.count(variables["params"])
    viewed, packed = compression.view(params, state), compression.pack(params, state)
    assert jax.tree.map(jnp.shape, viewed) == jax.tree.map(jnp.shape, variables["params"])
    is_factored = lambda leaf: isinstance(leaf, leaves.Factored)  # noqa: E731
    assert any(map(is_factored, jax.tree.leaves(packed, is_leaf=is_factored)))
    assert lp.tree.distance(leaves.unpacked(packed), viewed) < 1e-5
    outputs = model.apply({**variables, "params": viewed}, images, False, None)[0]
    by_factors = evaluation.applied(model).apply({**variables, "params": packed}, images, False, None)[0]
    np.testing.assert_allclose(by_factors, outputs, rtol=1e-3, atol=1e-4)


def test_gradients_by_factors_are_those_of_the_product():
    model, images = lp.models.build("cnn", 10), jax.random.uniform(jax.random.key(1), (4, 12, 12, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    batch = {"input": images, "label": jnp.arange(4)}
    stats = {"model": {name: value for name, value in variables.items() if name != "params"}}
    compression = lowrank.factorized(ranks.by_ratio(0.4), convolution=decompositions.tucker)
    params, state = compression.init(variables["params"])
    found = []
    for net, way in [(model, compression), (evaluation.applied(model), lowrank.by_factors(compression))]:
        grad_fn = base.compressed(lp.plain(lp.supervised(net, lp.cross_entropy())), base.chain(way, base.identity()))
        step = jax.jit(
            lambda params, grad_fn=grad_fn: grad_fn(
                params, {**stats, "compress": (state, ())}, batch, jax.random.key(0)
            )
        )
        found.append(step(params)[0].value())
    assert jax.tree.structure(found[0]) == jax.tree.structure(params)
    assert lp.tree.distance(found[1], found[0]) < 1e-3


def test_factors_are_smaller_in_the_program_too(case):
    """The model by factors makes fewer multiplications than the whole one."""
    model, variables, images = case
    compression = lowrank.by_factors(lowrank.factorized(ranks.by_ratio(0.25), convolution=decompositions.tucker))
    params, state = compression.init(variables["params"])

    def flops(model, params):
        run = jax.jit(lambda params: model.apply({**variables, "params": params}, images, False, None)[0])
        return run.lower(params).compile().cost_analysis()["flops"]

    small = flops(evaluation.applied(model), compression.view(params, state))
    assert small < 0.6 * flops(model, variables["params"])


def test_weights_whose_factors_are_not_smaller_stay_whole():
    params = {"a": {"kernel": jnp.asarray(drawn((6, 6)), jnp.float32)}, "b": {"kernel": jnp.zeros((8, 8))}}
    compression = lowrank.factorized(ranks.explicit({"a": 3, "b": 1}))
    new, state = compression.init(params)
    assert new["a"]["kernel"] is params["a"]["kernel"]
    assert new["b"]["kernel"]["down"].shape == (8, 1)
    np.testing.assert_array_equal(compression.view(new, state)["b"]["kernel"], np.zeros((8, 8)))
    # a weight of zeros can still learn
    assert np.any(np.asarray(new["b"]["kernel"]["up"]))


def test_quantized_factors_are_packed_as_they_are():
    def rounded(leaf):
        scale = np.max(np.abs(leaf), keepdims=True) / 127
        return leaves.Quantized(np.round(leaf / scale).astype(np.int8), scale, None, None, leaf.shape, 8)

    quantization = base.identity()._replace(
        pack=lambda params, _: jax.tree.map(lambda leaf: rounded(np.asarray(leaf)), params), stages=("quantization",)
    )
    params = {"a": {"kernel": jnp.asarray(drawn((12, 12)), jnp.float32)}}
    chain = base.chain(lowrank.factorized(ranks.by_ratio(0.5)), quantization)
    packed = chain.pack(*chain.init(params))["a"]["kernel"]
    assert isinstance(packed.factors["down"], leaves.Quantized)
    assert packed.shape == (12, 12)
    np.testing.assert_allclose(packed.dense(), chain.view(*chain.init(params))["a"]["kernel"], atol=0.02)


def test_masked_and_quantized_factors_are_packed_as_they_are_seen():
    """Law 7 through a chain of all three stages."""
    shapes = {"a": (12, 16), "b": (3, 3, 8, 8)}
    params = {name: {"kernel": jnp.asarray(drawn(shape), jnp.float32)} for name, shape in shapes.items()}
    chain = base.chain(
        lowrank.factorized(ranks.by_ratio(0.5), convolution=decompositions.tucker),
        compress.prune(compress.magnitude, compress.across(0.5)),
        quantize.quantized(8),
    )
    new, state = chain.init(params)
    state = chain.update(new, state, jax.tree.map(jnp.ones_like, params))
    packed, viewed = chain.pack(new, state), chain.view(new, state)
    for name, shape in shapes.items():
        leaf = packed[name]["kernel"]
        assert leaf.shape == shape
        assert all(isinstance(factor, leaves.Sparse) for factor in leaf.factors.values())
        assert lp.tree.distance(leaf.dense(), viewed[name]["kernel"]) < 1e-5


def test_what_cannot_be_factored_is_said():
    with pytest.raises(InputError, match="a/kernel has 3 dimensions"):
        lowrank.factorized(ranks.by_ratio(0.5)).init({"a": {"kernel": jnp.ones((2, 3, 4))}})
    with pytest.raises(InputError, match="not finite"):
        lowrank.factorized(ranks.by_ratio(0.5)).init({"a": {"kernel": jnp.full((3, 4), jnp.nan)}})
    norm = lowrank.output_error(moment_of("a/kernel", np.ones((2, 3))))
    with pytest.raises(InputError, match="inputs of a/kernel are 5"):
        lowrank.factorized(ranks.by_ratio(0.5), norm=norm).init({"a": {"kernel": jnp.ones((5, 4))}})
    with pytest.raises(InputError, match="inputs of b/kernel were not measured"):
        lowrank.factorized(ranks.by_ratio(0.5), norm=norm).init({"b": {"kernel": jnp.ones((3, 4))}})
    with pytest.raises(InputError, match="matches no weight"):
        lowrank.factorized(ranks.by_ratio(0.5), "bias").init({"a": {"bias": jnp.ones(4)}})
