"""Which places are kept: rankings, layer densities and block shapes against numpy; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.compress import densities, masks, pruning, ranking
from lepton_jax.errors import InputError

RANDOM = np.random.default_rng(0)
SHAPES = {"conv1/kernel": (3, 3, 4, 8), "conv2/kernel": (3, 3, 8, 64), "head/kernel": (64, 12)}


TOP = jax.jit(ranking.top)


def weights(shapes=SHAPES):
    return {name: jnp.asarray(RANDOM.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def best(scores, count):
    """Where the greatest of a flat numpy array are, the first of equal ones."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, np.nan, np.inf, -np.inf]), min_size=12, max_size=12), st.data()
)
@settings(deadline=None, max_examples=40)
def test_top_keeps_exactly_so_many_and_of_equal_ones_the_first(numbers, data):
    count = data.draw(st.integers(0, len(numbers)))
    scores = np.array(numbers, np.float32)
    found = ranking.top(scores, count)
    # no number counts as the least one, and then the first place wins
    np.testing.assert_array_equal(found, best(np.where(np.isnan(scores), -np.inf, scores), count))
    np.testing.assert_array_equal(TOP(scores, count), found)


@given(st.floats(0, 0.999), st.sampled_from([1, 50]))
@settings(deadline=None, max_examples=20)
def test_a_sparsity_is_reached_exactly(sparsity, size):
    scores = {"a": jnp.asarray(RANDOM.integers(0, 3, (size, 2)), jnp.float32), "b": jnp.ones((7, 3))}
    for name, mask in ranking.within(densities.uniform(sparsity))(scores, ranking.whole).items():
        assert mask.sum() == round((1 - sparsity) * mask.size)
        np.testing.assert_array_equal(mask, best(np.asarray(scores[name]), round((1 - sparsity) * mask.size)))
    keep = ranking.across(sparsity)(scores, ranking.whole)
    assert keep["a"].sum() + keep["b"].sum() == round((1 - sparsity) * (2 * size + 21))


def test_one_ranking_over_all_layers_is_that_of_all_scores_in_a_row():
    scores = {name: abs(w) * scale for (name, w), scale in zip(weights().items(), (1, 1.2, 0.8), strict=True)}
    keep = ranking.across(0.7)(scores, ranking.whole)
    flat = np.concatenate([np.ravel(scores[name]) for name in SHAPES])
    expected = best(flat, round(0.3 * flat.size))
    np.testing.assert_array_equal(np.concatenate([np.ravel(keep[name]) for name in SHAPES]), expected)
    assert abs(masks.sparsity(keep) - 0.7) < 1 / flat.size
    assert len({round(float(mask.mean()), 2) for mask in keep.values()}) == 3


def test_per_output_keeps_as_many_inputs_of_each():
    scores = weights()
    for name, mask in ranking.per_output(0.6)(scores, ranking.whole).items():
        matrix = np.asarray(scores[name]).reshape(-1, scores[name].shape[-1])
        expected = [best(column, round(0.4 * len(matrix))) for column in matrix.T]
        np.testing.assert_array_equal(np.stack(expected, 1).reshape(mask.shape), mask)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 4)])
def test_n_of_any_m_inputs_in_a_row(n, m):
    scores = weights()
    for name, mask in ranking.n_of_m(n, m)(scores, ranking.whole).items():
        groups = np.moveaxis(np.asarray(mask), -2, -1).reshape(-1, m)
        np.testing.assert_array_equal(groups.sum(1), n)
        values = np.moveaxis(np.asarray(scores[name]), -2, -1).reshape(-1, m)
        np.testing.assert_array_equal(groups, np.stack([best(group, n) for group in values]))


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4), (3, 3, 1, 1), (1, 8), (3, 1, 2, 4)])
def test_blocks_fall_whole_and_the_greatest_sums_stay(shape):
    scores = weights({"conv/kernel": (3, 3, 4, 8)})
    keep = ranking.blocks(shape, ranking.within(densities.uniform(0.5)))(scores, ranking.whole)["conv/kernel"]
    block = (1,) * (4 - len(shape)) + shape
    values, kept = np.asarray(scores["conv/kernel"], np.float64), np.asarray(keep)
    corners = np.ndindex(*[size // length for size, length in zip(values.shape, block, strict=True)])
    places = [tuple(slice(c * n, (c + 1) * n) for c, n in zip(corner, block, strict=True)) for corner in corners]
    sums = np.array([values[place].sum() for place in places])
    expected = best(sums, round(0.5 * len(places)))
    for place, whole in zip(places, expected, strict=True):
        assert (kept[place] == whole).all()


def test_blocks_and_one_ranking_over_all_layers_compose():
    scores = weights()
    keep = ranking.blocks((4, 4), ranking.across(0.8))(scores, ranking.whole)
    assert sum(int(mask.sum()) for mask in keep.values()) == 16 * round(
        0.2 * sum(s.size // 16 for s in scores.values())
    )


def erdos_renyi(sparsity, raw):
    """Densities of RigL's own program, in its own words: solve for epsilon, make the full ones dense, again."""
    dense = set()
    while True:
        divisor, right = 0.0, 0.0
        for name, shape in SHAPES.items():
            if name in dense:
                right -= sparsity * np.prod(shape)
            else:
                right += (1 - sparsity) * np.prod(shape)
                divisor += raw(shape) * np.prod(shape)
        epsilon = right / divisor
        most = max((raw(shape), name) for name, shape in SHAPES.items() if name not in dense)
        if most[0] * epsilon <= 1:
            return {name: 1.0 if name in dense else raw(shape) * epsilon for name, shape in SHAPES.items()}
        dense.add(most[1])


RAW = {
    densities.erdos_renyi: lambda shape: (shape[-1] + shape[-2]) / (shape[-1] * shape[-2]),
    densities.erdos_renyi_kernel: lambda shape: np.sum(shape) / np.prod(shape),
}


@pytest.mark.parametrize("of", list(RAW))
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.98])
def test_erdos_renyi_densities(of, sparsity):
    found = of(sparsity)(SHAPES)
    if sparsity:
        expected = erdos_renyi(sparsity, RAW[of])
        np.testing.assert_allclose([1 - found[n] for n in SHAPES], [expected[n] for n in SHAPES], rtol=1e-12)
    assert all(0 <= s < 1 for s in found.values())
    sizes = {name: np.prod(shape) for name, shape in SHAPES.items()}
    hidden = sum(found[name] * sizes[name] for name in SHAPES)
    np.testing.assert_allclose(hidden, sparsity * sum(sizes.values()), atol=1e-9)


def test_the_two_erdos_renyi_differ_and_some_layers_are_dense():
    dense = [name for name, sparsity in densities.erdos_renyi_kernel(0.5)(SHAPES).items() if sparsity == 0]
    assert dense == ["conv1/kernel", "head/kernel"]
    assert densities.erdos_renyi(0.9)(SHAPES) != densities.erdos_renyi_kernel(0.9)(SHAPES)


def test_sparsities_by_name():
    layers = densities.each({"conv2": 0.9, "conv": 0.5})
    assert layers(SHAPES) == {"conv1/kernel": 0.5, "conv2/kernel": 0.9, "head/kernel": 0.0}
    keep = ranking.within(layers)(weights(), ranking.whole)
    assert keep["head/kernel"].all()
    with pytest.raises(InputError, match="'stem' matches no masked weight"):
        densities.each({"stem": 0.5})(SHAPES)


WITH_SPARSITY = [
    densities.uniform,
    densities.erdos_renyi,
    densities.erdos_renyi_kernel,
    ranking.across,
    ranking.per_output,
    lambda s: densities.each({"a": s}),
]


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("takes", WITH_SPARSITY)
def test_a_sparsity_outside_0_to_1_is_refused(takes, sparsity):
    with pytest.raises(InputError, match=r"is not in \[0, 1\)"):
        takes(sparsity)


PARAMS = {"layer": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}}
REFUSED = {
    "has 6 inputs": lambda: pruning.prune(pruning.magnitude, ranking.n_of_m(2, 4)).init(PARAMS),
    "5 of 4": lambda: ranking.n_of_m(5, 4),
    "do not divide layer/kernel": lambda: pruning.pruned(
        PARAMS, pruning.magnitude, ranking.blocks((4, 4), ranking.across(0.5))
    ),
    r"blocks of \(1, 2, 2\)": lambda: pruning.prune(
        pruning.magnitude, ranking.blocks((1, 2, 2), ranking.across(0.5))
    ).init(PARAMS),
    "has no places": lambda: ranking.blocks((0, 4), ranking.across(0.5)),
    "'stem' matches no leaf": lambda: pruning.prune(pruning.magnitude, ranking.across(0.5), pattern="stem").init(
        PARAMS
    ),
    "saliency needs a gradient": lambda: pruning.pruned(PARAMS, pruning.saliency, ranking.across(0.5)),
    "fits no weight": lambda: masks.fixed({"layer/kernel": jnp.ones((6, 5), bool)}).init(PARAMS),
    "'other' of shape": lambda: masks.fixed({"other": jnp.ones((6, 4), bool)}).init(PARAMS),
    "from step 10 to 25": lambda: pruning.gradual(10, 25, 10),
    "from step 10 to 10": lambda: pruning.gradual(10, 10, 10),
    "first = 2": lambda: pruning.gradual(0, 10, 10, first=2.0),
    "step -1": lambda: pruning.once(-1),
}


@pytest.mark.parametrize("says", list(REFUSED))
def test_what_cannot_work_is_refused(says):
    with pytest.raises(InputError, match=says):
        REFUSED[says]()


def test_a_negative_zero_and_a_zero_are_equal():
    np.testing.assert_array_equal(
        ranking.top(np.array([-0.0, 0.0, -0.0, 0.0], np.float32), 2), [True, True, False, False]
    )
