"""The laws of the house, each over every technique and the models that it concerns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import data
from tests import laws

MESHES = ("8x1", "4x2", "2x4", "1x8", "fsdp=8", "data=2,fsdp=2,model=2", "pipe=4,data=2", "sequence=4,data=2")
NAMES = ("mlp", "resnet", "dropout")
# what of each model goes through law 3 on which meshes in the short form; transformers draw at random inside
LAW_3 = {
    "mlp": ("all", MESHES),
    "stacked": ("accumulate", ("4x2", *MESHES[5:])),
    "vit": ("accumulate", ("4x2", "sequence=4,data=2")),
    "resnet": ("all", ("4x2", *MESHES[4:6])),
    "dropout": ("all", ("4x2", "data=2,fsdp=2,model=2")),
}


@pytest.fixture(scope="module")
def models():
    return {name: build() for name, build in laws.models().items()}


def batch(size: int) -> dict[str, np.ndarray]:
    return data.Stream(laws.digits(), size, 1).batch(0)


@pytest.mark.parametrize(("name", "microbatches"), [("mlp", 2), ("mlp", 8), ("dropout", 4)])
@pytest.mark.parametrize(
    "technique", sorted(n for n, row in laws.TECHNIQUES.items() if n not in ("accumulate", "all") and not row.across)
)
def test_law_1_accumulated_is_plain(models, name, technique, microbatches, unoptimized):
    """Also where the batch is ragged and the examples are weighted."""
    ragged = laws.padded(batch(13), 16)
    ragged["weight"][:5] = [0.5, 2, 1, 3, 0.25]
    row = laws.TECHNIQUES[technique]
    parts = row._replace(gradient=lambda loss: lp.accumulate(row.gradient(loss), microbatches))
    whole, loss = laws.gradient_of(models[name], row, ragged)
    summed, summed_loss = laws.gradient_of(models[name], parts, ragged)
    assert lp.tree.distance(summed, whole) < 1e-6
    assert lp.tree.distance(summed_loss, loss) < 1e-6


@pytest.mark.parametrize("name", ["mlp", "dropout"])
@pytest.mark.parametrize("technique", sorted(laws.TECHNIQUES))
def test_padding_counts_nothing(models, name, technique, unoptimized):
    row = laws.TECHNIQUES[technique]
    whole, loss = laws.gradient_of(models[name], row, batch(12))
    with_padding, padded_loss = laws.gradient_of(models[name], row, laws.padded(batch(12), 16))
    assert lp.tree.distance(with_padding, whole) < 1e-6
    assert lp.tree.distance(padded_loss, loss) < 1e-6


@pytest.mark.parametrize("technique", sorted(n for n, row in laws.TECHNIQUES.items() if row.deterministic))
def test_what_changes_the_computation_keeps_the_gradient(models, technique, unoptimized):
    whole, _ = laws.gradient_of(models["mlp"], laws.TECHNIQUES["plain"], batch(16))
    other, _ = laws.gradient_of(models["mlp"], laws.TECHNIQUES[technique], batch(16))
    assert lp.tree.distance(other, whole) < 1e-6


CASES = [
    pytest.param(name, axes, marks=() if axes in short else pytest.mark.long)
    for name, (_, short) in LAW_3.items()
    for axes in MESHES
]


@pytest.mark.parametrize(("name", "axes"), CASES)
def test_law_3_the_same_run_on_every_mesh(models, name, axes, float64, request):
    """In float64, free of rounding's chaos: samples identical, losses and parameters to 1e-9 over 50 steps."""
    if name in ("mlp", "vit", "stacked"):
        request.getfixturevalue("unoptimized")
    alone = reference(name)
    run = laws.train(models[name], laws.TECHNIQUES[LAW_3[name][0]], axes, 50, jnp.float64)
    np.testing.assert_array_equal(run.samples, alone.samples)
    np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-9)
    assert lp.tree.distance(run.state.params, alone.state.params) < 1e-9
    if alone.state.stats:
        assert lp.tree.distance(run.state.stats, alone.state.stats) < 1e-9


@pytest.mark.parametrize("technique", sorted(set(laws.TECHNIQUES) - {"all"}))
def test_law_3_for_every_technique(models, technique, float64, unoptimized):
    row = laws.TECHNIQUES[technique]
    alone, run = (laws.train(models["mlp"], row, axes, 10, jnp.float64) for axes in ("1x1", row.axes))
    np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-9)
    assert lp.tree.distance(run.state.params, alone.state.params) < 1e-9


@pytest.mark.parametrize("optimizer", sorted(set(lp.optimizers.OPTIMIZERS) - {"sgd"}))
def test_law_3_for_every_optimizer(models, optimizer, float64, unoptimized):
    row = laws.TECHNIQUES["plain"]
    alone, run = (
        laws.train(models["mlp"], row, axes, 10, jnp.float64, optimizer) for axes in ("1x1", "data=2,fsdp=2,model=2")
    )
    np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-9)
    assert lp.tree.distance(run.state.params, alone.state.params) < 1e-9


_references: dict[str, laws.Run] = {}


def reference(name: str) -> laws.Run:
    if name not in _references:
        model = laws.models()[name]()
        _references[name] = laws.train(model, laws.TECHNIQUES[LAW_3[name][0]], "1x1", 50, jnp.float64)
    return _references[name]


@pytest.mark.parametrize(("name", "tolerance"), [("mlp", 1e-6), ("dropout", 1e-6), ("smooth", 1e-6)])
def test_law_3_in_float32_to_the_published_tolerance(models, name, tolerance):
    row = laws.TECHNIQUES["all"]
    alone, run = (laws.train(models[name], row, axes, 50) for axes in ("1x1", "4x2"))
    np.testing.assert_allclose(run.losses, alone.losses, rtol=tolerance, atol=tolerance)
    assert lp.tree.distance(run.state.params, alone.state.params) < tolerance


def test_law_3_in_float32_behind_kinks_holds_step_by_step(models):
    """Batch norm centers what ReLUs get, so now and then rounding takes one to the other side, and runs part there."""
    found = laws.partings(models["resnet"], laws.TECHNIQUES["all"], "4x2", 50)
    assert np.sort(found)[-5] < 1e-6, found
    assert max(found) < 1e-3, found


def test_law_3_bit_for_bit_of_attention(models):
    row = laws.TECHNIQUES["plain"]._replace(around=lambda gradient: lp.sharded(gradient, 8))
    alone, *others = (laws.train(models["vit"], row, axes, 50) for axes in ("1x1", "2x1", "8x1"))
    for run in others:
        jax.tree.map(np.testing.assert_array_equal, run, alone)


@pytest.mark.parametrize(
    "name", ["mlp", "resnet", "dropout", *(pytest.param(x, marks=pytest.mark.long) for x in ("smooth", "vit"))]
)
def test_law_3_bit_for_bit_in_virtual_shards(models, name):
    """Losses, parameters, optimizer, statistics and average, in float32, behind kinks too."""
    row = laws.TECHNIQUES["all"]
    row = row._replace(gradient=lambda loss: lp.sharded(lp.accumulate(lp.plain(loss), 2), 8))
    row = row._replace(stats=lambda: {"ema": lp.step.ema})  # a loss scale has no mean over shards
    alone, *others = (laws.train(models[name], row, axes, 50) for axes in ("1x1", "2x1", "4x1", "8x1"))
    for run in others:
        jax.tree.map(np.testing.assert_array_equal, run, alone)


@pytest.mark.parametrize("technique", sorted(set(laws.TECHNIQUES) - {"all", "apart", "scaled", "sharded"}))
def test_law_3_bit_for_bit_for_every_technique(models, technique):
    row = laws.TECHNIQUES[technique]
    fixed = row._replace(around=lambda gradient: row.around(lp.sharded(gradient, 8)))
    alone, run = (laws.train(models["mlp"], fixed, axes, 10) for axes in ("1x1", "8x1"))
    jax.tree.map(np.testing.assert_array_equal, run, alone)


@pytest.mark.parametrize("optimizer", sorted(set(lp.optimizers.OPTIMIZERS) - {"sgd"}))
def test_law_3_bit_for_bit_for_every_optimizer(models, optimizer):
    row = laws.TECHNIQUES["sharded"]
    alone, run = (laws.train(models["mlp"], row, axes, 10, by=optimizer) for axes in ("1x1", "2x1"))
    jax.tree.map(np.testing.assert_array_equal, run, alone)


@pytest.mark.parametrize("axes", MESHES)
def test_law_3_initial_parameters_and_draws_are_the_same_bits(models, axes):
    state = laws.beginning(models["resnet"], laws.TECHNIQUES["plain"])
    over = lp.mesh.make(axes)
    placed = lp.step.place(state, over, models["resnet"].rules)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(placed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    augment = lp.augment.compose(lp.augment.random_crop(8, padding=2), lp.augment.color_jitter(0.4, 0.4))
    draw = jax.jit(lambda batch: jax.vmap(augment)(lp.keys.per_example(state.key, batch, "a"), batch["input"]))
    mask = jax.jit(
        lambda b: jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (64,)))(lp.keys.per_example(state.key, b, "m"))
    )
    rows = batch(16)
    for function in (draw, mask):
        np.testing.assert_array_equal(function(lp.mesh.place(rows, over)), function(rows))


@pytest.mark.parametrize("name", NAMES)
def test_law_6_a_step_compiles_once(models, name):
    few, many = (laws.traces(models[name], laws.TECHNIQUES["plain"], steps) for steps in (1, 100))
    assert few == many
