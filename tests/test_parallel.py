"""Tokens around a ring, layers in stages: the same numbers as on one device, whatever divides and whatever does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import mesh, sharding
from lepton_jax.models import attention, pipeline, stacked, vit
from tests import laws


def heads(tokens: int, batch: int = 4) -> list[jax.Array]:
    random = np.random.default_rng(tokens)
    return [jnp.asarray(random.normal(size=(batch, tokens, 4, 6))) for _ in range(4)]


@pytest.mark.parametrize("axes", ["sequence=4,data=2", "sequence=2,model=4", "sequence=8"])
@pytest.mark.parametrize("tokens", [16, 17, 3])
def test_attention_around_a_ring_is_attention(axes, tokens, float64, unoptimized):
    """Values and gradients; where the tokens do not divide, and where some devices hold nothing but padding."""
    query, key, value, direction = heads(tokens)

    def alone(*inputs):
        return jnp.sum(attention.whole(*inputs, tokens) * direction)

    def around(*inputs):
        laid = [attention.laid(x.reshape(4, tokens, 24)) for x in inputs]
        padded = [x.reshape(4, -1, 4, 6) for x in laid]
        assert padded[0].shape[1] % mesh.make(axes).shape["sequence"] == 0
        return jnp.sum(attention.attended(*padded, tokens)[:, :tokens] * direction)

    expected = jax.jit(jax.value_and_grad(alone, (0, 1, 2)))(query, key, value)
    with jax.set_mesh(mesh.make(axes)):
        compiled = jax.jit(jax.value_and_grad(around, (0, 1, 2))).lower(query, key, value).compile()
        found = compiled(query, key, value)
    assert "collective-permute" in compiled.as_text()
    assert lp.tree.distance(found, expected) < 1e-14


def test_no_one_attends_to_padding(float64, unoptimized):
    query, key, value, _ = heads(9)
    cut = attention.whole(query[:, :7], key[:, :7], value[:, :7], 7)
    far = key.at[:, 7:].set(1e3)
    np.testing.assert_allclose(attention.whole(query, far, value, 7)[:, :7], cut, rtol=1e-12)


def test_a_batch_that_does_not_divide_is_attended_whole():
    query, key, value, _ = heads(8, batch=3)
    with jax.set_mesh(mesh.make("sequence=4,data=2")):
        assert attention.laid(query.reshape(3, 8, 24)).shape == (3, 8, 24)
        found = jax.jit(attention.attended)(query, key, value)
    np.testing.assert_allclose(found, attention.whole(query, key, value, 8), rtol=1e-6, atol=1e-6)


def layer(own, x, keys):
    """A dense layer whose noise is an example's own."""
    y = jnp.tanh(x @ own["kernel"] + own["bias"][None])
    return y + jax.vmap(lambda key: jax.random.normal(key, y.shape[1:], y.dtype))(keys)


def network(depth: int, batch: int = 16):
    random = np.random.default_rng(depth)
    weights = {"kernel": random.normal(size=(depth, 8, 8)), "bias": random.normal(size=(depth, 8))}
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(batch))
    return jax.tree.map(jnp.asarray, weights), jnp.asarray(random.normal(size=(batch, 8))), keys


@pytest.mark.parametrize(
    ("axes", "microbatches"),
    [("pipe=4,data=2", None), ("pipe=4,data=2", 1), ("pipe=2,model=2,fsdp=2", 8), ("pipe=8", 2), ("data=8,pipe=1", 1)],
)
def test_layers_in_stages_are_the_layers(axes, microbatches, float64, unoptimized):
    weights, x, keys = network(8)

    def total(run, weights, x):
        return jnp.sum(jnp.sin(run(layer, weights, x, keys)))

    expected = jax.jit(jax.value_and_grad(lambda *a: total(pipeline.sequential, *a), (0, 1)))(weights, x)

    def staged(*arguments):
        return pipeline.pipelined(*arguments, microbatches)

    with jax.set_mesh(mesh.make(axes)):
        found = jax.jit(jax.value_and_grad(lambda *a: total(staged, *a), (0, 1)))(weights, x)
    assert lp.tree.distance(found, expected) < 1e-14


def test_layers_in_stages_need_no_keys(float64, unoptimized):
    weights, x, _ = network(8)

    def still(own, x, keys):
        assert keys is None
        return jnp.tanh(x @ own["kernel"])

    expected = pipeline.sequential(still, weights, x, None)
    with jax.set_mesh(mesh.make("pipe=2,data=4")):
        found = jax.jit(lambda weights, x: pipeline.pipelined(still, weights, x, None))(weights, x)
    assert lp.tree.distance(found, expected) < 1e-12


def test_what_does_not_divide_into_stages_is_refused():
    weights, x, keys = network(6)
    with jax.set_mesh(mesh.make("pipe=4,data=2")):
        with pytest.raises(lp.InputError, match="6 layers do not divide over the 4 stages"):
            pipeline.pipelined(layer, weights, x, keys)
        with pytest.raises(lp.InputError, match="3 microbatches of the pipeline do not divide a device's 8 examples"):
            pipeline.pipelined(layer, network(8)[0], x, keys, 3)


def transformers():
    options = {"patch": 2, "dropout": 0.0, "stochastic_depth": 0.0}
    size = vit.Size(16, 4, 4)
    return vit.standard(size, 10, **options), stacked.vision_transformer(size, 10, **options)


def awake(params):
    """With a head that is not zero, so that every weight has a gradient."""
    kernel = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return {**params, "head": {**params["head"], "kernel": kernel}}


def test_stacked_blocks_are_the_blocks(float64, unoptimized):
    apart, together = transformers()
    images = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)))
    params = lp.tree.cast(awake(apart.init(jax.random.key(0), images)["params"]), jnp.float64)

    def total(model, params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images, True, None)[0]))

    value, gradient = jax.jit(jax.value_and_grad(lambda p: total(apart, p)))(params)
    other, found = jax.jit(jax.value_and_grad(lambda p: total(together, p)))(stacked.stack(params))
    np.testing.assert_allclose(other, value, rtol=1e-14)
    assert lp.tree.distance(stacked.unstack(found), gradient) < 1e-13
    jax.tree.map(np.testing.assert_array_equal, stacked.unstack(stacked.stack(params)), params)
    fresh = jax.eval_shape(lambda: together.init(jax.random.key(0), images)["params"])
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, stacked.stack(params))


def test_stacked_blocks_start_apart():
    _, together = transformers()
    kernel = together.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]["blocks"]["mlp"]["dense1"]["kernel"]
    assert len(np.unique(np.asarray(kernel))) == kernel.size


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon"])
def test_optimizers_take_each_stacked_block_for_itself(name):
    """What decays and what is orthogonalized is a block's own array."""
    apart, _ = transformers()
    params = awake(apart.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"])
    gradient = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)), params)
    optimizer = lp.optimizers.build(name, 0.1, weight_decay=0.5)

    @jax.jit
    def updated(params, gradient):
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    found = updated(stacked.stack(params), stacked.stack(gradient))
    assert lp.tree.distance(stacked.unstack(found), updated(params, gradient)) < 1e-5  # muon's products round


def test_layouts_without_blocks_are_refused():
    with pytest.raises(lp.InputError, match="no block0, block1"):
        stacked.stack({"head": {}})
    with pytest.raises(lp.InputError, match="no part 'blocks'"):
        stacked.unstack({"head": {}})


@pytest.mark.parametrize("axes", ["sequence=2,model=2,data=2", "pipe=2,model=2,data=2", "pipe=2,sequence=2,fsdp=2"])
def test_axes_combine(axes, float64, unoptimized):
    model = laws.models()["stacked"]()
    alone, run = (laws.train(model, laws.TECHNIQUES["plain"], mesh, 4, jnp.float64) for mesh in ("1x1", axes))
    np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-12)
    assert lp.tree.distance(run.state.params, alone.state.params) < 1e-12


def explained(name: str, axes: str) -> list[str]:
    model, row = laws.models()[name](), laws.TECHNIQUES["plain"]
    batch = lp.data.Stream(laws.digits(), laws.BATCH, 0).batch(0)
    state = laws.beginning(model, row)
    return sharding.explained(laws.update(model, row), state, batch, mesh.make(axes), model.rules)


def test_every_array_is_explained():
    lines = explained("stacked", "pipe=2,fsdp=2,model=2")
    state = laws.beginning(laws.models()["stacked"](), laws.TECHNIQUES["plain"])
    assert set(lp.tree.paths(state)) <= {line.split()[0] for line in lines if line}
    kernel = next(line for line in lines if line.startswith("params/blocks/mlp/dense1/kernel"))
    assert kernel.split()[1] == "4x16x64"
    assert "(pipe, fsdp, model)" in kernel
    assert f" {4 * 16 * 64 * 4 // 8:,} " in kernel
    assert r"blocks/.*dense1/kernel$, fsdp takes the largest dimension" in kernel
    over = mesh.make("pipe=2,fsdp=2,model=2")
    placed = lp.step.place(state, over, laws.models()["stacked"]().rules)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed.params))
    assert f"params     {here:>13,} bytes per device" in lines


@pytest.mark.parametrize(
    ("name", "axes", "word"),
    [
        ("mlp", "pipe=4,data=2", "pipe       4: nothing of this model is split over it"),
        ("mlp", "sequence=4,data=2", "sequence   4: nothing of this model is split over it"),
        ("vit", "sequence=4,data=2", "sequence   4: splits the tokens"),
        ("vit", "pipe=4,data=2", "pipe       4: nothing of this model is split over it"),
        ("stacked", "pipe=4,data=2", "pipe       4: splits the layers"),
    ],
)
def test_what_an_axis_does_not_do_is_said(name, axes, word):
    found = explained(name, axes)
    assert any(word in line for line in found), found


def test_the_flag_writes_nothing(tmp_path, capsys):
    from experiments import vit as recipe

    directory = tmp_path / "run"
    flags = ["--preset", "smoke", "--stacked", "--mesh", "pipe=2,model=4", "--run", str(directory)]
    flags.append("--explain-sharding")
    assert lp.cli.outcome(recipe.main, recipe.Config, recipe.PRESETS, flags) == 0
    told = capsys.readouterr().out
    assert "params/blocks/mlp/dense2/kernel" in told
    assert "head/kernel$, but model 4 does not divide 10" in told
    assert not directory.exists()
