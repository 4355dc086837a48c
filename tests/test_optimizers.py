"""Optimizers against their papers' formulas and torch's; the plateau against torch's ReduceLROnPlateau."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import optimizers, schedules
from lepton_jax.errors import InputError

generator = np.random.default_rng(0)
PARAMS = {"kernel": generator.normal(size=(4, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}
GRADS = [
    {name: generator.normal(size=leaf.shape).astype(np.float32) for name, leaf in PARAMS.items()} for _ in range(10)
]
RATE = schedules.build("cosine", 0.1, 10, 1)
DECAY = 0.05


def train(optimizer: Any, params: Any = PARAMS, grads: Any = GRADS, **extra: Any) -> dict[str, Any]:
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    update = jax.jit(optax.with_extra_args_support(optimizer).update)
    for grad in grads:
        updates, state = update(grad, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(ours, theirs, tolerance=1e-6):
    for name in PARAMS:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


def torch_train(make):
    """torch's own optimizer over the same gradients and rates; kernels decay, biases do not."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in PARAMS.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": DECAY},
        {"params": [tensors["bias"]], "weight_decay": 0.0},
    ]
    optimizer = make(torch.optim, groups)
    for step, grads in enumerate(GRADS):
        for group in optimizer.param_groups:
            group["lr"] = float(RATE(step))
        for name, grad in grads.items():
            tensors[name].grad = torch.tensor(grad)
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def test_sgd_is_torch_nesterov_with_coupled_decay():
    theirs = torch_train(lambda optim, groups: optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True))
    assert_close(train(optimizers.build("sgd", RATE, momentum=0.9, weight_decay=DECAY)), theirs)


def test_sgd_heavy_ball_and_none():
    theirs = torch_train(lambda optim, groups: optim.SGD(groups, lr=0.1, momentum=0.5))
    ours = optimizers.build("sgd", RATE, momentum=0.5, weight_decay=DECAY, nesterov=False)
    assert_close(train(ours), theirs)
    theirs = torch_train(lambda optim, groups: optim.SGD(groups, lr=0.1))
    assert_close(train(optimizers.build("sgd", RATE, momentum=0.0, weight_decay=DECAY)), theirs)


def test_adamw_is_torch():
    theirs = torch_train(lambda optim, groups: optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-6))
    ours = optimizers.build("adamw", RATE, momentum=0.8, b2=0.95, eps=1e-6, weight_decay=DECAY)
    assert_close(train(ours), theirs)


def reference(name, b1=0.9, b2=0.99, eps=1e-6):
    """The papers' algorithms in numpy, in double precision."""
    result = {}
    for leaf, value in PARAMS.items():
        x, decay = value.astype(np.float64), DECAY if value.ndim > 1 else 0.0
        m, v = np.zeros_like(x), np.zeros_like(x)
        for step, grads in enumerate(GRADS):
            g, rate = grads[leaf].astype(np.float64), float(RATE(step))
            if name == "sgd":
                g = g + decay * x
                m = b1 * m + g
                x = x - rate * (g + b1 * m)
            elif name == "muon" and value.ndim > 1:
                m = b1 * m + (1 - b1) * g
                ahead = b1 * m / (1 - b1 ** (step + 2)) + (1 - b1) * g / (1 - b1 ** (step + 1))
                x = x - rate * (0.2 * math.sqrt(max(x.shape)) * newton_schulz(ahead) + decay * x)
            elif name == "lion":
                x = x - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * x)
                m = b2 * m + (1 - b2) * g
            else:
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                r = m / (1 - b1 ** (step + 1)) / (np.sqrt(v / (1 - b2 ** (step + 1))) + eps) + decay * x
                trust = np.linalg.norm(x) / np.linalg.norm(r) if name == "lamb" else 1.0
                x = x - rate * trust * r
        result[leaf] = x
    return result


def newton_schulz(g: np.ndarray) -> np.ndarray:
    """Jordan's five steps, on the singular values, where they are a polynomial of one number."""
    u, s, v = np.linalg.svd(g, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


def test_a_convolution_is_a_matrix_of_its_patches_to_muon():
    kernel = generator.normal(size=(3, 3, 2, 5))
    params = {"conv": {"kernel": kernel}, "depthwise": {"kernel": kernel[:, :, :1]}, "head": {"kernel": kernel[0, 0]}}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimizer = optimizers.build("muon", 1.0)
    updates, _ = jax.jit(optimizer.update)(tree, optimizer.init(tree), tree)
    expected = 0.2 * math.sqrt(18) * newton_schulz(kernel.reshape(18, 5))
    np.testing.assert_allclose(updates["conv"]["kernel"].reshape(18, 5), -expected, rtol=1e-4, atol=1e-5)
    rms = np.sqrt(np.mean(np.square(updates["conv"]["kernel"])))
    assert 0.1 < rms < 0.3  # of the size of Adam's
    for left in ("depthwise", "head"):  # Adam's first step is the sign
        np.testing.assert_allclose(updates[left]["kernel"], -np.sign(tree[left]["kernel"]), rtol=1e-4)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_papers(name):
    options = {"sgd": {}, "lion": {"b2": 0.99}}.get(name, {"b2": 0.99, "eps": 1e-6})
    ours = optimizers.build(name, RATE, weight_decay=DECAY, **options)
    assert_close(train(ours), reference(name), 5e-6)


def test_every_name_is_built_and_takes_part_in_a_chain():
    for name in optimizers.OPTIMIZERS:
        params = train(optimizers.build(name, 0.1, clip=1.0, weight_decay=0.1), value=jnp.float32(1.0))
        assert all(np.all(np.isfinite(leaf)) for leaf in params.values())


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_decay_leaves_scales_and_biases(name):
    zero = [jax.tree.map(np.zeros_like, PARAMS)] * 3
    params = train(optimizers.build(name, 0.1, weight_decay=DECAY), grads=zero)
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])
    assert np.linalg.norm(params["kernel"]) < np.linalg.norm(PARAMS["kernel"])


def test_decay_mask():
    tree = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "temperature": jnp.ones(())}
    assert optimizers.decay_mask(tree) == {"kernel": True, "scale": False, "temperature": False}


def test_clipping_comes_first_and_is_global():
    clipped = optimizers.build("sgd", 1.0, momentum=0.0, clip=0.5, weight_decay=DECAY)
    norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in GRADS[0].values()))
    assert norm > 0.5
    params = train(clipped, grads=GRADS[:1])
    for name, decay in {"kernel": DECAY, "bias": 0.0}.items():
        expected = PARAMS[name] - (0.5 / norm * GRADS[0][name] + decay * PARAMS[name])
        np.testing.assert_allclose(params[name], expected, rtol=1e-6, atol=1e-6)


def test_plateau_by_hand():
    """Epochs of two steps: after two without a new best the rate halves, and the next one goes uncounted."""
    plateau = optimizers.reduce_on_plateau(2, 0.5, 2, cooldown=1)
    state, scales = plateau.init(PARAMS), []
    for mean in [5, 4, 4, 6, 4, 4, 4, 4]:
        for loss in (mean - 1, mean + 1):
            scales.append(float(optimizers.learning_rate_scale(state)))
            _, state = plateau.update(PARAMS, state, value=jnp.float32(loss))
    assert scales == [1.0] * 8 + [0.5] * 6 + [0.25] * 2


LOSSES = [5, 4, 3.9, 3.95, 3.9, 3.91, 3.9, 4, 3.8, 3.8, 3.8, 3.8, 3.8, 3.8, 2, 2, 2, 2, 2, 2.0]


@pytest.mark.parametrize(("patience", "cooldown", "threshold"), [(1, 0, 1e-4), (2, 0, 1e-4), (3, 2, 0.02), (2, 1, 0.3)])
def test_plateau_is_torch(patience, cooldown, threshold):
    torch = pytest.importorskip("torch")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        sgd, factor=0.5, patience=patience - 1, threshold=threshold, cooldown=cooldown, min_lr=0.01
    )
    ours = optimizers.reduce_on_plateau(2, 0.5, patience, threshold=threshold, cooldown=cooldown, smallest=0.01)
    state, updates = ours.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    update = jax.jit(ours.update)
    for loss in LOSSES:
        for value in (loss - 0.5, loss + 0.5):  # an epoch of two steps whose mean is the loss
            rate = sgd.param_groups[0]["lr"]
            assert float(optimizers.learning_rate_scale(state)) == pytest.approx(rate)
            scaled, state = update(updates, state, value=jnp.float32(value))
            np.testing.assert_allclose(scaled["kernel"], rate, rtol=1e-6)  # the whole epoch at its rate
        theirs.step(loss)
    assert float(optimizers.learning_rate_scale(state)) == pytest.approx(sgd.param_groups[0]["lr"])
    assert sgd.param_groups[0]["lr"] < 1


def test_plateau_in_a_chain_compiles_once_and_keeps_its_state_in_the_optimizer():
    optimizer = optax.chain(optimizers.build("sgd", 0.1, momentum=0.0), optimizers.reduce_on_plateau(1, 0.5, 1))
    params = jax.tree.map(jnp.asarray, PARAMS)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(params, state, params, value=jnp.float32(3.0))
        return optax.apply_updates(params, updates), state, optimizers.learning_rate_scale(state)

    state, scales = optimizer.init(params), []
    for _ in range(4):
        params, state, scale = step(params, state)
        scales.append(float(scale))
    assert scales == [1.0, 0.5, 0.25, 0.125]
    assert len(traces) == 1
    expected = PARAMS["bias"] * 0.9 * 0.9 * 0.95 * 0.975
    np.testing.assert_allclose(params["bias"], expected, rtol=1e-6)


def test_scale_without_a_plateau_is_one():
    assert optimizers.learning_rate_scale(optimizers.build("adamw", 0.1).init(PARAMS)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamW"}, "did you mean 'adamw'"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"momentum": math.nan}, "momentum nan"),
        ({"weight_decay": -0.1}, "weight decay -0.1"),
        ({"weight_decay": math.inf}, "weight decay inf"),
        ({"clip": 0.0}, "clipping norm 0.0"),
        ({"clip": math.nan}, "clipping norm nan"),
        ({"b2": 0.9}, "option of the optimizer 'sgd': 'b2'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        optimizers.build(**{"name": "sgd", "schedule": 0.1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps_per_epoch": 0}, "steps per epoch"),
        ({"factor": 1.0}, "factor"),
        ({"patience": 0}, "patience"),
        ({"threshold": 0.0}, "threshold"),
        ({"cooldown": -1}, "cooldown"),
        ({"smallest": 2.0}, "smallest"),
    ],
)
def test_plateau_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        optimizers.reduce_on_plateau(**{"steps_per_epoch": 1, **arguments})
