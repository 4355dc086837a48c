"""Pruning as training sees it: laws of masked compressions, schedules, RigL, Wanda and lottery tickets."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax.compress import base, densities, leaves, lottery, masks, norms, pruning, ranking, regrowth
from lepton_jax.errors import InputError
from tests import laws

RANDOM = np.random.default_rng(0)
KEY = jax.random.key(3)
HALF = ranking.within(densities.uniform(0.5))
MODEL = lp.models.normalized(lp.models.mlp((16,), laws.CLASSES), 0.3, 0.4)
CNN = lp.models.normalized(lp.models.cnn(laws.CLASSES, widths=(4, 8), hidden=8), 0.3, 0.4)
STREAM = lp.data.Stream(laws.digits(), laws.BATCH, 3)


def params_of(model, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))["params"]


PARAMS = params_of(MODEL)
NAMES = base.chosen(base.WEIGHTS, PARAMS)


def like(params, seed=1):
    """A gradient of nothing in particular."""
    keyed = lambda name, leaf: jax.random.normal(lp.keys.named(jax.random.key(seed), name), leaf.shape)  # noqa: E731
    return lp.tree.map_named(keyed, params)


TECHNIQUES = {
    "magnitude": lambda s: pruning.prune(pruning.magnitude, ranking.within(densities.uniform(s))),
    "global": lambda s: pruning.prune(pruning.magnitude, ranking.across(s), pruning.gradual(0, 6, 2)),
    "saliency": lambda s: pruning.prune(
        pruning.saliency, ranking.within(densities.erdos_renyi(s)), pruning.gradual(0, 6, 3)
    ),
    "random": lambda s: pruning.prune(pruning.random(KEY), ranking.per_output(s)),
    "blocks": lambda s: pruning.prune(pruning.magnitude, ranking.blocks((2, 2), ranking.across(s))),
    "rigl": lambda s: regrowth.rigl(densities.erdos_renyi_kernel(s), KEY, until=7, every=2),
}


def run(compression, steps, axes="1x1", model=MODEL, around=lambda step: step, by="sgd", shards=8, dtype=jnp.float32):
    """The state after a short run with momentum and weight decay, and how often the model was traced."""
    count = 0

    def apply(*args):
        nonlocal count
        count += 1
        return model.apply(*args)

    over, optimizer = lp.mesh.make(axes), lp.optimizers.build(by, lambda _: 0.05, weight_decay=1e-2)
    params, stats = compression.init(lp.tree.cast(params_of(model), dtype))
    loss = lp.supervised(model._replace(apply=apply), lp.cross_entropy())
    gradient = lp.sharded(lp.plain(loss), shards) if shards else lp.plain(loss)
    step = around(lp.descend(base.compressed(gradient, compression), optimizer))
    state = lp.TrainState(jnp.int32(0), params, {"model": {}, "compress": stats}, optimizer.init(params), KEY)
    state = lp.step.place(jax.tree.map(jnp.copy, state), over, model.rules)
    compiled = lp.step.compile(step, state, STREAM.batch(0), over, model.rules)
    first = count
    for number in range(steps):
        state, _ = compiled(state, lp.mesh.place(STREAM.batch(number), over))
    assert count == first
    return state


def packed_is_the_view(compression, params, state):
    shown = compression.view(params, state)
    jax.tree.map(np.testing.assert_array_equal, leaves.unpacked(compression.pack(params, state)), shown)
    return shown


@pytest.mark.parametrize("name", list(TECHNIQUES))
def test_nothing_hidden_is_the_original(name):
    compression = TECHNIQUES[name](0.0)
    params, state = compression.init(PARAMS)
    for _ in range(2):
        state = compression.update(params, state, like(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, packed_is_the_view(compression, params, state), PARAMS)


@pytest.mark.parametrize("name", list(TECHNIQUES))
def test_masks_are_the_same_bits_on_one_two_and_eight_devices(name):
    compression = TECHNIQUES[name](0.8)
    states = [run(compression, 8, axes) for axes in ("1x1", "2x1", "8x1")]
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, state.stats["compress"], states[0].stats["compress"])
    keep = states[0].stats["compress"]["masks"]
    assert abs(masks.sparsity(keep) - 0.8) < 0.01
    assert list(keep) == NAMES
    shown = packed_is_the_view(compression, states[0].params, states[0].stats["compress"])
    for weight in NAMES:
        np.testing.assert_array_equal(base.at(shown, weight) != 0, keep[weight])
    packed = compression.pack(states[0].params, states[0].stats["compress"])
    assert all(isinstance(base.at(packed, weight), leaves.Sparse) for weight in NAMES)


@pytest.mark.parametrize("name", ["saliency", "rigl"])
def test_a_masked_run_is_the_same_on_a_mesh_of_three_axes(name, float64):
    # without `mesh.as_computed` in the view, the layout of masks under fsdp makes convolutions wrong (jax 0.10.2)
    compression = TECHNIQUES[name](0.5)
    ends = [run(compression, 5, axes, CNN, shards=0, dtype=jnp.float64) for axes in ("1x1", "data=2,fsdp=2,model=2")]
    jax.tree.map(np.testing.assert_array_equal, ends[1].stats["compress"], ends[0].stats["compress"])
    assert lp.tree.distance(jax.device_get(ends[1].params), jax.device_get(ends[0].params)) < 1e-9


@pytest.mark.parametrize("held", [False, True])
def test_zeros_survive_a_hundred_steps_of_tuning_with_momentum_and_decay(held):
    keep = pruning.pruned(PARAMS, pruning.magnitude, HALF)
    compression = masks.fixed(keep)
    state = run(compression, 100, around=masks.held if held else lambda step: step)
    shown = packed_is_the_view(compression, state.params, state.stats["compress"])
    for name in NAMES:
        np.testing.assert_array_equal(base.at(shown, name) != 0, keep[name])
        assert not np.allclose(base.at(shown, name), np.where(keep[name], base.at(PARAMS, name), 0), atol=1e-3)
        # what is trained under the mask is zero only where it is held
        assert (np.asarray(base.at(state.params, name))[~np.asarray(keep[name])] == 0).all() == held


def test_saliency_and_masks_follow_numpy_step_by_step():
    compression = pruning.prune(pruning.saliency, HALF, pruning.gradual(1, 5, 2))
    params, state = compression.init(PARAMS)
    update = jax.jit(compression.update)
    for step in range(8):
        before, gradient = state, like(PARAMS, step)
        state = update(params, state, gradient)
        assert state["step"] == step + 1
        for name in NAMES:
            mask, size = np.asarray(state["masks"][name]), state["masks"][name].size
            if step not in (1, 3, 5):
                np.testing.assert_array_equal(mask, before["masks"][name])
                continue
            score = np.abs(np.asarray(base.at(params, name)) * np.asarray(base.at(gradient, name))).reshape(-1)
            wanted = 0.5 - 0.5 * (1 - (step - 1) / 4) ** 3
            kept = np.argsort(-score, kind="stable")[: round((1 - wanted) * size)]
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(kept))


@pytest.mark.parametrize("first", [0.0, 0.25])
def test_the_cubic_schedule_is_the_formula(first):
    schedule, final = pruning.gradual(20, 100, 20, first), 0.9
    is_due = jax.jit(schedule.is_due)
    for step in range(140):
        due = step in (20, 40, 60, 80, 100)
        assert schedule.is_due(step) == due
        assert bool(is_due(step)) == due
        if due:
            wanted = final + (first * final - final) * (1 - (step - 20) / 80) ** 3
            assert schedule.counting(step)(final, 12_345) == round((1 - wanted) * 12_345)
    # exact where float32 no longer is
    assert schedule.counting(100)(0.5, 2**30 + 2) == 2**29 + 1


def test_once_is_once():
    compression = pruning.prune(pruning.magnitude, HALF, pruning.once(2))
    params, state = compression.init(PARAMS)
    hidden = []
    for step in range(5):
        hidden.append(masks.sparsity(state["masks"]))
        state = compression.update(lp.tree.add(params, like(PARAMS, step)), state, params)
    assert hidden == [0, 0, 0, 0.5, 0.5]
    expected = pruning.pruned(lp.tree.add(params, like(PARAMS, 2)), pruning.magnitude, HALF)
    jax.tree.map(np.testing.assert_array_equal, state["masks"], expected)


def test_random_scores_depend_on_the_key_and_the_name():
    draw, weight = pruning.random(KEY), jnp.ones((4, 4))
    np.testing.assert_array_equal(draw("a", weight, None), draw("a", 2 * weight, None))
    assert (draw("a", weight, None) != draw("b", weight, None)).any()
    assert (draw("a", weight, None) != pruning.random(jax.random.key(4))("a", weight, None)).any()


def quantized():
    """A quantization of eight bits by one scale, without its gradient: enough to lie behind masks."""

    def pack(leaf):
        scale = jnp.max(jnp.abs(leaf)) / 127
        values = jnp.round(leaf / scale).astype(jnp.int8)
        return leaves.Quantized(values, scale.reshape((1,) * leaf.ndim), None, None, leaf.shape, 8)

    def each(function):
        return lambda params, _: base.put(params, {name: function(base.at(params, name)) for name in names(params)})

    names = lambda params: base.chosen(base.WEIGHTS, params)  # noqa: E731
    return base.Compression(
        lambda params: (params, ()), each(lambda w: pack(w).dense()), base.unchanged, each(pack), ("quantization",)
    )


def test_a_quantization_behind_masks_is_packed_inside_them():
    chain = base.chain(pruning.prune(pruning.magnitude, HALF), quantized())
    params, state = chain.init(PARAMS)
    state = chain.update(params, state, like(PARAMS))
    packed_is_the_view(chain, params, state)
    leaf = base.at(chain.pack(params, state), NAMES[0])
    assert isinstance(leaf, leaves.Sparse)
    assert isinstance(leaf.inner, leaves.Quantized)


def halves():
    """A low rank before masks: kernels as two factors."""

    def init(params):
        new = {name: {"down": base.at(params, name), "up": jnp.eye(base.at(params, name).shape[1])} for name in NAMES}
        return base.put(params, new), ()

    def view(params, _):
        return base.put(params, {name: leaves.product(base.at(params, name)) for name in NAMES})

    return base.Compression(init, view, base.unchanged, view, ("low rank",))


def test_factors_are_masked_by_their_own_names():
    compression = base.chain(halves(), pruning.prune(pruning.magnitude, ranking.across(0.5)))
    params, state = compression.init(PARAMS)
    state = compression.update(params, state, like(PARAMS))
    assert sorted(masks.found(state)) == sorted(f"{name}/{part}" for name in NAMES for part in ("down", "up"))


# RigL


def test_rigl_keeps_the_count_and_grows_exactly_the_largest_gradients():
    compression = regrowth.rigl(densities.uniform(0.8), KEY, until=40, every=10, fraction=0.4)
    params, state = compression.init(PARAMS)
    update, moved = jax.jit(compression.update), 0
    for step in range(50):
        weights, gradient = lp.tree.add(params, like(PARAMS, step)), like(PARAMS, 100 + step)
        before, state = state["masks"], update(weights, state, gradient)
        for name in NAMES:
            old, new = np.asarray(before[name]).reshape(-1), np.asarray(state["masks"][name]).reshape(-1)
            count = round(0.2 * old.size)
            assert old.sum() == new.sum() == count
            if step not in (10, 20, 30):
                np.testing.assert_array_equal(old, new)
                continue
            w, g = (np.abs(np.asarray(base.at(tree, name))).reshape(-1) for tree in (weights, gradient))
            part = int(0.2 * (1 + math.cos(math.pi * step / 40)) * count)
            active = np.flatnonzero(old)
            stays = set(active[np.argsort(w[active])[part:]].tolist())
            free = np.array([place for place in range(old.size) if place not in stays])
            grown = set(free[np.argsort(-g[free])[:part]].tolist())
            assert part > 0
            assert set(np.flatnonzero(new).tolist()) == stays | grown
            moved += part
    assert moved > 0


@pytest.mark.parametrize("by", ["sgd", "adamw", "muon"])
def test_grown_weights_start_at_zero_and_at_rest_under_held(by):
    compression = regrowth.rigl(densities.uniform(0.7), KEY, until=100, every=3, fraction=0.5)
    before, after = (run(compression, steps, around=masks.held, by=by, shards=0) for steps in (6, 7))
    old, new = before.stats["compress"]["masks"], after.stats["compress"]["masks"]
    for name in NAMES:
        grown = np.asarray(new[name] & ~old[name])
        assert grown.any()
        assert (np.asarray(base.at(after.params, name))[grown] == 0).all()
        shown = np.asarray(base.at(compression.view(after.params, after.stats["compress"]), name))
        np.testing.assert_array_equal(shown, base.at(after.params, name))
        moments = [
            np.asarray(leaf)
            for path, leaf in zip(lp.tree.paths(after.opt_state), jax.tree.leaves(after.opt_state), strict=True)
            if path.endswith(name)
        ]
        assert moments
        assert all((moment[~np.asarray(new[name]) | grown] == 0).all() for moment in moments)
        assert all((moment[~grown & np.asarray(new[name])] != 0).any() for moment in moments)


def test_held_moves_nothing_that_is_shown():
    compression = masks.fixed(pruning.pruned(PARAMS, pruning.magnitude, HALF))
    plain, held = (run(compression, 5, around=around) for around in (lambda step: step, masks.held))
    views = [compression.view(state.params, state.stats["compress"]) for state in (plain, held)]
    jax.tree.map(np.testing.assert_array_equal, *views)


def test_held_without_masks_is_refused():
    with pytest.raises(InputError, match="no masks"):
        run(base.identity(), 1, around=masks.held)


def test_a_name_within_a_name_is_not_taken_for_it():
    kept = {"a/kernel": jnp.array([[True, False]]), "b/a/kernel": jnp.array([[False, True]])}
    state = {"mu": {"a": {"kernel": jnp.ones((1, 2))}, "b": {"a": {"kernel": jnp.ones((1, 2))}}, "count": jnp.ones(3)}}
    found = masks.cleared(state, kept)["mu"]
    np.testing.assert_array_equal(found["a"]["kernel"], [[1, 0]])
    np.testing.assert_array_equal(found["b"]["a"]["kernel"], [[0, 1]])
    np.testing.assert_array_equal(found["count"], np.ones(3))


@pytest.mark.parametrize("wrong", [{"fraction": 1.5}, {"fraction": -0.1}, {"every": 0}, {"until": 0}])
def test_rigl_refuses(wrong):
    with pytest.raises(InputError, match=r"not in \[0, 1\]|not possible"):
        regrowth.rigl(densities.uniform(0.5), KEY, **{"until": 10, **wrong})


# Wanda


def test_wanda_of_dense_layers_is_numpy():
    images = RANDOM.random((12, 8, 8, 1)).astype(np.float32)
    variables = {"params": PARAMS}
    keep = norms.wanda(MODEL, variables, [images[:4], images[4:]], ranking.per_output(0.75))
    x = ((images - 0.3) / 0.4).reshape(12, -1).astype(np.float64)
    for name in NAMES:
        weight = np.asarray(base.at(PARAMS, name), np.float64)
        score = np.abs(weight) * np.linalg.norm(x, axis=0)[:, None]
        for column, mask in zip(score.T, np.asarray(keep[name]).T, strict=True):
            kept = np.sort(np.argsort(-column, kind="stable")[: round(0.25 * len(column))])
            np.testing.assert_array_equal(np.flatnonzero(mask), kept)
        x = np.maximum(x @ weight + np.asarray(base.at(PARAMS, name.replace("kernel", "bias")), np.float64), 0)
    assert abs(masks.sparsity(keep) - 0.75) < 0.01


def test_wanda_of_a_convolution_weighs_patches():
    params = params_of(CNN)
    images = RANDOM.random((3, 8, 8, 1)).astype(np.float32)
    first = next(name for name in base.chosen(base.WEIGHTS, params) if base.at(params, name).shape[2] == 1)
    weight = np.asarray(base.at(params, first))
    found = norms.scores(CNN, {"params": params}, [images], first)
    assert list(found) == [first]
    margin = weight.shape[0] // 2
    padded = np.pad((images - 0.3) / 0.4, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    expected = np.zeros(weight.shape[:3])
    for row, column in np.ndindex(*weight.shape[:2]):
        expected[row, column] = np.linalg.norm(padded[:, row : row + 8, column : column + 8, :].reshape(-1))
    np.testing.assert_allclose(found[first], np.abs(weight) * expected[..., None], rtol=1e-5)
    two = norms.wanda(CNN, {"params": params}, [images], ranking.n_of_m(2, 4), pattern="conv2/kernel|dense|head")
    assert all(mask.mean() == 0.5 for mask in two.values())


def test_wanda_keeps_outputs_better_than_magnitude_where_inputs_differ():
    images = RANDOM.random((16, 8, 8, 1)).astype(np.float32) * np.linspace(0.3, 3, 64).reshape(1, 8, 8, 1)
    images = np.asarray(images, np.float32)
    outputs = MODEL.apply({"params": PARAMS}, images, False, None)[0]
    errors = []
    for keep in (
        norms.wanda(MODEL, {"params": PARAMS}, [images]),
        pruning.pruned(PARAMS, pruning.magnitude, ranking.per_output(0.5)),
    ):
        compression = masks.fixed(keep)
        shown = compression.view(*compression.init(PARAMS))
        errors.append(float(jnp.sum(jnp.square(MODEL.apply({"params": shown}, images, False, None)[0] - outputs))))
    assert errors[0] < errors[1]


# Lottery tickets


def test_tickets_go_back_to_the_start_and_prune_what_is_left():
    calls = []

    def train(params, keep):
        calls.append((params, keep))
        return lp.tree.add(params, like(PARAMS, len(calls)))

    sparsities = lottery.rounds(0.2, 3)
    np.testing.assert_allclose(sparsities, [0.2, 0.36, 0.488])
    found = list(lottery.tickets(train, PARAMS, ranking.across, sparsities))
    assert len(found) == len(calls) == 4
    for number, ticket in enumerate(found):
        jax.tree.map(np.testing.assert_array_equal, calls[number][0], PARAMS)
        jax.tree.map(np.testing.assert_array_equal, calls[number][1], ticket.masks)
        size = sum(mask.size for mask in ticket.masks.values())
        assert sum(int(mask.sum()) for mask in ticket.masks.values()) == round((1 - [0, *sparsities][number]) * size)
    for last, ticket in itertools.pairwise(found):
        flat = [np.concatenate([np.ravel(t.masks[name]) for name in NAMES]) for t in (last, ticket)]
        weights = np.concatenate([np.ravel(np.abs(base.at(last.trained, name))) for name in NAMES])
        assert not (flat[1] & ~flat[0]).any()
        assert weights[flat[1]].min() >= weights[flat[0] & ~flat[1]].max()


def test_tickets_are_trained_when_asked_for_and_sparsities_must_rise():
    calls = []
    iterator = lottery.tickets(lambda params, keep: calls.append(1) or params, PARAMS, ranking.across, [0.5, 0.75])
    next(iterator)
    assert len(calls) == 1
    with pytest.raises(InputError, match="do not rise"):
        lottery.tickets(lambda params, keep: params, PARAMS, ranking.across, [0.5, 0.5])
    with pytest.raises(InputError, match="matches no leaf"):
        lottery.tickets(lambda params, keep: params, PARAMS, ranking.across, [0.5], pattern="stem")
    with pytest.raises(InputError, match="is nothing"):
        lottery.rounds(0.0, 3)
