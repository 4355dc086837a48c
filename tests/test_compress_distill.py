"""Distillation against numpy: criteria by their papers' formulas, inner blocks, a teacher that stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name

import lepton_jax as lp
from lepton_jax import models, weights
from lepton_jax.compress import distill, exposure
from lepton_jax.errors import InputError
from lepton_jax.models import vit

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (RANDOM.normal(size=(12, 5)).astype(np.float32) * 3 for _ in range(2))
LABELS = RANDOM.integers(0, 5, 12).astype(np.int32)
SOFT = RANDOM.dirichlet(np.ones(5), 12).astype(np.float32)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


def beside(label, teacher=TEACHER):
    return {"label": jnp.asarray(label), "teacher": jnp.asarray(teacher)}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("label", [LABELS, SOFT], ids=["hard", "soft"])
def test_hinton_by_hand(temperature, weight, label):
    targets = np.eye(5)[label] if label.ndim == 1 else label
    own = -np.sum(targets * np.log(softmax(STUDENT)), axis=1)
    softened = kl(softmax(TEACHER / temperature), softmax(STUDENT / temperature)) * temperature**2
    found = distill.hinton(temperature, weight)(jnp.asarray(STUDENT), beside(label))
    np.testing.assert_allclose(found, (1 - weight) * own + weight * softened, rtol=1e-5, atol=1e-6)


def test_a_hard_teacher_at_temperature_one_is_cross_entropy():
    hard = (np.eye(5, dtype=np.float32)[LABELS] - 0.5) * 2e4
    found = distill.hinton(1.0, 1.0)(jnp.asarray(STUDENT), beside(np.zeros(12, np.int32), hard))
    np.testing.assert_allclose(found, lp.cross_entropy()(jnp.asarray(STUDENT), jnp.asarray(LABELS)), rtol=1e-5)


@pytest.mark.parametrize("label", [LABELS, SOFT], ids=["hard", "soft"])
def test_decoupled_by_hand(label):
    """As in the authors' code: the true class is taken out of the logits by a thousand."""
    temperature, alpha, beta = 2.0, 1.5, 6.0
    classes = label if label.ndim == 1 else label.argmax(axis=1)
    true = np.eye(5)[classes]
    parts, others = [], []
    for logits in (TEACHER, STUDENT):
        p = softmax(logits / temperature)
        parts.append(np.stack([np.sum(p * true, axis=1), np.sum(p * (1 - true), axis=1)], axis=1))
        others.append(np.exp(logits / temperature) * (1 - true))
    others = [x / x.sum(axis=1, keepdims=True) + true for x in others]  # 1 log 1 at the true class
    expected = temperature**2 * (alpha * kl(*parts) + beta * kl(*others))
    own = lp.cross_entropy()(jnp.asarray(STUDENT), jnp.asarray(label))
    found = distill.decoupled(alpha, beta, temperature)(jnp.asarray(STUDENT), beside(label))
    np.testing.assert_allclose(found, own + expected, rtol=1e-4)


def test_the_two_parts_of_decoupled_make_up_the_whole():
    """KL = target part + the teacher's share of the other classes * non-target part (Zhao et al., equation 5)."""
    with_target, with_both = (
        distill.decoupled(1.0, beta, 1.0)(jnp.asarray(STUDENT), beside(LABELS)) for beta in (0.0, 1.0)
    )
    own = lp.cross_entropy()(jnp.asarray(STUDENT), jnp.asarray(LABELS))
    share = 1 - softmax(TEACHER)[np.arange(12), LABELS]
    whole = distill.hinton(1.0, 1.0)(jnp.asarray(STUDENT), beside(LABELS))
    np.testing.assert_allclose(with_target - own + share * (with_both - with_target), whole, rtol=1e-3, atol=1e-4)


@given(st.floats(-300, 300), st.floats(0.5, 10))
@settings(deadline=None, max_examples=15)
def test_criteria_and_their_gradients_are_finite_for_any_logits(size, temperature):
    for criterion in (distill.hinton(temperature), distill.decoupled(temperature=temperature)):
        total = lambda logits, criterion=criterion: criterion(logits, beside(LABELS, TEACHER * size)).sum()  # noqa: E731
        value, gradient = jax.value_and_grad(total)(jnp.asarray(STUDENT * size))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


BLOCKS = [RANDOM.normal(size=shape).astype(np.float32) for shape in [(4, 6, 6, 3), (4, 3, 3, 8)]]
OTHERS = [RANDOM.normal(size=shape).astype(np.float32) for shape in [(4, 6, 6, 5), (4, 3, 3, 8)]]


def shown(output, blocks):
    return {"output": jnp.asarray(output), "blocks": [jnp.asarray(block) for block in blocks]}


def test_hints_by_hand():
    label = {"label": jnp.asarray(LABELS[:4]), "teacher": shown(TEACHER[:4], OTHERS)}
    outputs = shown(STUDENT[:4], BLOCKS)
    inner = distill.hinton()(outputs["output"], beside(LABELS[:4], TEACHER[:4]))
    both = distill.beside(distill.hinton(), distill.fitnet([(1, -1)], 0.5), distill.attention([(0, 0), (1, 1)], 7.0))
    squares = np.mean((BLOCKS[1] - OTHERS[1]).reshape(4, -1) ** 2, axis=1) * 0.5
    maps = [[np.mean(b.astype(np.float64) ** 2, axis=3).reshape(4, -1) for b in each] for each in (BLOCKS, OTHERS)]
    maps = [[m / np.linalg.norm(m, axis=1, keepdims=True) for m in each] for each in maps]
    attended = sum(np.mean((own - other) ** 2, axis=1) for own, other in zip(*maps, strict=True)) * 7
    np.testing.assert_allclose(both(outputs, label), inner + squares + attended, rtol=1e-5)


def test_a_block_of_zeros_has_a_gradient():
    """Dead units are zeros throughout, where a norm has no derivative."""
    found = jax.grad(lambda block: jnp.sum(distill.attention_map(block)))(jnp.zeros((2, 3, 3, 4)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(jnp.linalg.norm(distill.attention_map(jnp.asarray(BLOCKS[0])), axis=1), 1, rtol=1e-6)


def test_what_teaches_nothing_is_said():
    outputs, label = shown(STUDENT[:4], BLOCKS), jnp.asarray(LABELS[:4])
    both = {"label": label, "teacher": shown(TEACHER[:4], OTHERS)}
    criterion = lambda hint: distill.beside(distill.hinton(), hint)  # noqa: E731
    for wrong, match in [
        (lambda: distill.hinton(0.0), "temperature 0.0 is not positive"),
        (lambda: distill.hinton(weight=1.5), "outside"),
        (lambda: distill.decoupled(beta=-1.0), "not both 0 or above"),
        (lambda: distill.fitnet([]), "teach nothing"),
        (lambda: distill.hinton()(jnp.asarray(STUDENT), beside(LABELS, TEACHER[:, :4])), "trained on the same classes"),
        (lambda: distill.decoupled()(jnp.asarray(STUDENT), beside(LABELS, TEACHER[:, :4])), "the same classes"),
        (lambda: criterion(distill.fitnet([(0, 0)]))(outputs, both), "by hinted"),
        (lambda: criterion(distill.attention([(0, 1)]))(outputs, both), "one resolution"),
        (lambda: criterion(distill.fitnet([(2, 0)]))(outputs, both), "no block 2 among 2"),
        (lambda: criterion(distill.fitnet([(0, 0)]))(outputs["output"], both), "student's outputs have no blocks"),
        (
            lambda: criterion(distill.fitnet([(0, 0)]))(outputs, {**both, "teacher": both["teacher"]["output"]}),
            "teacher's outputs have no blocks",
        ),
        (lambda: distill.attention_map(jnp.ones((2, 3))), "no positions"),
    ]:
        with pytest.raises(InputError, match=match):
            wrong()


def test_exposed_blocks_are_those_of_the_modules():
    """Against Flax's own record of what each module gave."""
    module = vit.VisionTransformer(vit.Size(8, 3, 2), 4, 5)
    images = jnp.asarray(RANDOM.random((2, 8, 8, 3)), jnp.float32)
    variables = jax.jit(lambda: module.init(jax.random.key(0), images, False))()
    expected, record = jax.jit(lambda v: module.apply(v, images, False, capture_intermediates=True))(variables)
    model = exposure.exposed(models.adapters.linen(module))
    outputs, _ = jax.jit(lambda v: model.apply(v, images, False, None))(variables)
    np.testing.assert_allclose(outputs["output"], expected, rtol=1e-5, atol=1e-6)
    assert len(outputs["blocks"]) == 3
    for number, block in enumerate(outputs["blocks"]):
        np.testing.assert_allclose(
            block, record["intermediates"][f"block{number}"]["__call__"][0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("train", [False, True])
def test_an_exposed_model_is_the_model(train):
    model = models.normalized(models.build("resnet8", 10), 0.5, 0.25)
    images = jnp.asarray(RANDOM.random((2, 8, 8, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    found = jax.jit(lambda v: exposure.exposed(model).apply(v, images, train, None))(variables)
    expected = jax.jit(lambda v: model.apply(v, images, train, None))(variables)
    jax.tree.map(np.testing.assert_array_equal, (found[0]["output"], found[1]), expected)
    assert [block.shape for block in found[0]["blocks"]] == [(2, 8, 8, 16), (2, 4, 4, 32), (2, 2, 2, 64)]


def tagged(wrap, tag="block"):
    """A model of two weights that tags the inner activation within `wrap`."""

    def apply(variables, inputs, train, keys):
        inner = wrap(lambda x: checkpoint_name(jnp.sin(x * variables["params"]["a"]), tag))(inputs)
        return inner @ variables["params"]["b"], {}

    return lp.Model(lambda key, inputs: {"params": {"a": jnp.float32(2), "b": jnp.ones((3, 2))}}, apply)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.jit(f))])
def test_tags_inside_jit_are_found_and_differentiated(wrap):
    model, inputs = exposure.exposed(tagged(wrap)), jnp.asarray(RANDOM.normal(size=(4, 3)), jnp.float32)
    params = model.init(jax.random.key(0), inputs)["params"]
    np.testing.assert_allclose(
        model.apply({"params": params}, inputs, False, None)[0]["blocks"][0], jnp.sin(2 * inputs)
    )
    total = lambda params: model.apply({"params": params}, inputs, False, None)[0]["blocks"][0].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)(params)["a"], jnp.sum(inputs * jnp.cos(2 * inputs)), rtol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (jax.checkpoint, "checkpoint|remat"),
        (lambda f: lambda x: jax.lax.scan(lambda carry, _: (f(carry), None), x, None, length=2)[0], "scan"),
        (lambda f: lambda x: jax.lax.cond(x[0, 0] > 0, f, lambda x: x, x), "cond"),
        (lambda f: jax.jit(jax.checkpoint(f)), "checkpoint|remat"),
    ],
)
def test_tags_that_have_no_one_value_are_refused(wrap, name):
    variables = {"params": {"a": jnp.float32(2), "b": jnp.ones((3, 2))}}
    with pytest.raises(InputError, match=f"tagged inside ({name})"):
        exposure.exposed(tagged(wrap)).apply(variables, jnp.ones((4, 3)), False, None)


def test_a_model_without_tags_is_refused():
    model = tagged(lambda f: f, "other")
    with pytest.raises(InputError, match="tags no activation 'block'"):
        exposure.exposed(model).apply(model.init(jax.random.key(0), None), jnp.ones((4, 3)), False, None)
    found = exposure.exposed(model, "other").apply(model.init(jax.random.key(0), None), jnp.ones((4, 3)), False, None)
    assert len(found[0]["blocks"]) == 1


def mlp(width, classes=3):
    """Two dense layers of which the first is tagged."""

    def init(key, inputs):
        one, two = jax.random.split(key)
        size = inputs.shape[-1]
        return {
            "params": {
                "one": jax.random.normal(one, (size, width)) / size**0.5,
                "two": jax.random.normal(two, (width, classes)) / width**0.5,
            }
        }

    def apply(variables, inputs, train, keys):
        params = variables["params"]
        return checkpoint_name(jnp.tanh(inputs @ params["one"]), "block") @ params["two"], {}

    return lp.Model(init, apply)


INPUTS = jnp.asarray(RANDOM.normal(size=(32, 6)), jnp.float32)
BATCH = {"input": INPUTS, "label": jnp.arange(32) % 3}


def trained(student, criterion, teacher, params=None, steps=25):
    loss = lp.taught(lp.supervised(student, criterion), teacher)
    optimizer = optax.adam(0.03)
    step = jax.jit(lp.descend(lp.plain(loss), optimizer))
    state, losses = lp.initial(student, optimizer, jax.random.key(5), INPUTS), []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"].value()))
    return state, losses


def test_training_beside_a_teacher_comes_closer_to_it():
    teacher = (mlp(16), mlp(16).init(jax.random.key(9), INPUTS))
    state, losses = trained(mlp(4), distill.hinton(2.0, 1.0), teacher)
    assert losses[-1] < 0.5 * losses[0]
    again, same = trained(mlp(4), distill.hinton(2.0, 1.0), teacher)
    assert same == losses
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_hints_are_learned_through_a_map_that_is_taken_away_again():
    teacher = (exposure.exposed(mlp(16)), mlp(16).init(jax.random.key(9), INPUTS))
    student = distill.hinted(exposure.exposed(mlp(4)), {0: 16})
    criterion = distill.beside(lambda outputs, labels: jnp.zeros(len(outputs)), distill.fitnet([(0, 0)]))
    state, losses = trained(student, criterion, teacher)
    assert losses[-1] < 0.7 * losses[0]
    assert state.params["hint"]["0"].shape == (4, 16)
    variables = distill.unhinted({"params": state.params})
    outputs = student.apply({"params": state.params}, INPUTS, False, None)[0]
    np.testing.assert_allclose(mlp(4).apply(variables, INPUTS, False, None)[0], outputs["output"], rtol=1e-5, atol=1e-6)
    inner = np.tanh(np.asarray(INPUTS) @ np.asarray(variables["params"]["one"]))
    np.testing.assert_allclose(
        outputs["blocks"][0], inner @ np.asarray(state.params["hint"]["0"]), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match="no block 3"):
        distill.hinted(exposure.exposed(mlp(4)), {3: 16}).init(jax.random.key(0), INPUTS)


def test_the_teacher_gets_no_gradient():
    def total(variables):
        loss = lp.taught(lp.supervised(mlp(4), distill.hinton()), (mlp(16), variables))
        params = mlp(4).init(jax.random.key(0), INPUTS)["params"]
        return loss(params, {}, BATCH, jax.random.key(0))[0].total

    gradient = jax.grad(total)(mlp(16).init(jax.random.key(9), INPUTS))
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))


def labels_of(arrow, teacher, batch):
    """What a criterion gets to see as labels, and the model as inputs."""
    seen = {}

    def loss(params, stats, batch, key):
        seen.update(batch)
        return lp.Mean(jnp.float32(0), jnp.float32(1)), lp.Aux(stats, {})

    def run(batch):
        arrow(lp.taught(loss, teacher))({}, {}, batch, jax.random.key(0))
        return dict(seen)

    return jax.jit(run)(batch)


def test_the_teacher_sees_what_the_student_sees_in_evaluation_mode():
    """Augmented and mixed inputs; mixed labels stay beside its outputs."""
    model = models.normalized(models.build("resnet8", 3), 0.5, 0.25)
    images = jnp.asarray(RANDOM.random((4, 8, 8, 3)), jnp.float32)
    teacher = (model, jax.jit(model.init)(jax.random.key(9), images))
    augment = lambda key, image: image + jax.random.uniform(key)  # noqa: E731
    mixing = lp.augment.mixup(3)

    def arrow(loss):
        return lp.augmented(lp.mixed(loss, mixing), augment)

    seen = labels_of(arrow, teacher, {"input": images, "label": jnp.arange(4) % 3})
    assert not np.allclose(seen["input"], images)
    expected = jax.jit(lambda images: model.apply(teacher[1], images, False, None)[0])(seen["input"])
    np.testing.assert_allclose(seen["label"]["teacher"], expected, rtol=1e-4, atol=1e-5)
    assert seen["label"]["label"].shape == (4, 3)
    criterion = distill.hinton()(jnp.zeros((4, 3)), seen["label"])
    assert criterion.shape == (4,)


def test_a_teacher_from_a_file(tmp_path):
    variables = mlp(16).init(jax.random.key(9), INPUTS)
    weights.save(tmp_path / "teacher.safetensors", variables)
    teachers = [(mlp(16), variables), (mlp(16), weights.load(tmp_path / "teacher.safetensors"))]
    one, two = (labels_of(lambda loss: loss, teacher, BATCH)["label"]["teacher"] for teacher in teachers)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("criterion", [distill.hinton(), distill.decoupled()], ids=["hinton", "decoupled"])
def test_padded_rows_count_nothing(criterion):
    teacher = (mlp(16), mlp(16).init(jax.random.key(9), INPUTS))
    grad_fn = jax.jit(lp.plain(lp.taught(lp.supervised(mlp(4), criterion), teacher)))
    params = mlp(4).init(jax.random.key(0), INPUTS)["params"]
    short = {name: value[:20] for name, value in BATCH.items()}
    padded = {**BATCH, "input": INPUTS.at[20:].set(1e6), "weight": jnp.where(jnp.arange(32) < 20, 1.0, 0.0)}
    one, two = (grad_fn(params, {}, batch, jax.random.key(0))[0] for batch in (short, padded))
    assert one.weight == two.weight == 20
    assert lp.tree.distance(two.total, one.total) < 1e-5


def test_microbatches_give_the_same_gradient():
    teacher = (mlp(16), mlp(16).init(jax.random.key(9), INPUTS))
    grad_fn = lp.plain(lp.taught(lp.supervised(mlp(4), distill.hinton()), teacher))
    params = mlp(4).init(jax.random.key(0), INPUTS)["params"]
    one, two = (way(params, {}, BATCH, jax.random.key(0))[0] for way in (grad_fn, lp.accumulate(grad_fn, 4)))
    assert lp.tree.distance(two.total, one.total) < 1e-5
