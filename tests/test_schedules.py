"""Schedules against closed forms in Python's own numbers, and against torch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import schedules
from lepton_jax.errors import InputError

PEAK, STEPS, EPOCH = 0.4, 120, 8

CLOSED_FORMS = {
    "constant": ({}, lambda i: PEAK),
    "plateau": ({}, lambda i: PEAK),
    "step": ({"step_size": 3, "gamma": 0.5}, lambda i: PEAK * 0.5 ** (i // (3 * EPOCH))),
    "exponential": ({"gamma": 0.9}, lambda i: PEAK * 0.9 ** (i // EPOCH)),
    "cosine": ({"final": 0.1}, lambda i: PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * i / STEPS)) / 2)),
    "linear": ({}, lambda i: PEAK * (1 - i / STEPS)),
    "polynomial": ({"power": 3.0, "final": 0.2}, lambda i: PEAK * (0.2 + 0.8 * (1 - i / STEPS) ** 3)),
    "wsd": ({"decay": 0.25}, lambda i: PEAK * min(1, (STEPS - i) / 30)),
    "cyclic": ({"cycle": 5.0, "low": 0.25}, lambda i: PEAK * np.interp(i % 40, [0, 20, 40], [0.25, 1, 0.25])),
}


def values(schedule, steps=STEPS):
    """A schedule's rates at 0..steps, traced and vectorized."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps + 1)) * np.ones(steps + 1))


def test_every_name_has_a_closed_form():
    assert set(CLOSED_FORMS) == set(schedules.BY_EPOCH) | set(schedules.BY_STEP)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    options, expected = CLOSED_FORMS[name]
    schedule = schedules.build(name, PEAK, STEPS, EPOCH, **options)
    expected = np.array([expected(i) for i in range(STEPS + 1)])
    np.testing.assert_allclose(values(schedule), expected, rtol=1e-6, atol=1e-7)
    of_ints = [float(schedule(i)) for i in range(0, STEPS + 1, 7)]
    np.testing.assert_allclose(of_ints, expected[::7], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_warm_up_is_a_line_from_zero_into_the_schedule(name):
    options, _ = CLOSED_FORMS[name]
    schedule = schedules.build(name, PEAK, STEPS, EPOCH, warmup_steps=20, **options)
    rates = values(schedule)
    np.testing.assert_allclose(rates[:21], rates[20] * np.arange(21) / 20, rtol=1e-6)
    if name in schedules.BY_EPOCH:  # the epochs are the run's, warm-up included
        np.testing.assert_allclose(rates[20:], values(schedules.build(name, PEAK, STEPS, EPOCH, **options))[20:])
    else:  # the shape spreads over what is left
        rest = schedules.build(name, PEAK, STEPS - 20, EPOCH, **options)
        np.testing.assert_allclose(rates[20:], values(rest, STEPS - 20))
    assert float(schedule(0)) == 0


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_warm_up_may_fill_the_run(name):
    schedule = schedules.build(name, PEAK, 10, 5, warmup_steps=10, **CLOSED_FORMS[name][0])
    rates = values(schedule, 10)
    assert rates[0] == 0
    assert np.all(np.diff(rates) > 0)


@settings(max_examples=50, deadline=None)
@given(epoch=st.integers(1, 2**26), epochs=st.integers(1, 40))
def test_epochs_are_exact_for_long_runs(epoch, epochs):
    if epoch * epochs >= 2**31:
        return
    schedule = schedules.build("exponential", 1.0, 2**31 - 1, epoch, gamma=0.5)
    steps = jnp.array([epoch * epochs - 1, epoch * epochs], jnp.int32)
    np.testing.assert_array_equal(schedule(steps), [0.5 ** (epochs - 1), 0.5**epochs])


def test_torch():
    torch = pytest.importorskip("torch")
    lr_scheduler = torch.optim.lr_scheduler

    def rates(make, epochs=15):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
        scheduler, seen = make(optimizer), []
        for _ in range(epochs):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return seen

    pairs = {
        "step": ({"step_size": 4, "gamma": 0.3}, lambda o: lr_scheduler.StepLR(o, 4, 0.3)),
        "exponential": ({"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        "cosine": ({"final": 0.5}, lambda o: lr_scheduler.CosineAnnealingLR(o, 15, PEAK / 2)),
        "linear": ({}, lambda o: lr_scheduler.LinearLR(o, 1, 0, 15)),
        "polynomial": ({"power": 2.0}, lambda o: lr_scheduler.PolynomialLR(o, 15, 2)),
        "cyclic": ({"cycle": 6.0, "low": 0.25}, lambda o: lr_scheduler.CyclicLR(o, PEAK / 4, PEAK, 3)),
    }
    for name, (options, make) in pairs.items():
        ours = values(schedules.build(name, PEAK, 15, 1, **options), 14)
        np.testing.assert_allclose(ours, rates(make), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("peak", [-1e-3, math.nan, math.inf])
def test_learning_rate_must_be_finite(peak):
    with pytest.raises(InputError, match="learning rate"):
        schedules.build("constant", peak, STEPS, EPOCH)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"steps": 0}, "a run of 0 steps"),
        ({"steps_per_epoch": 0}, "an epoch of 0 steps"),
        ({"warmup_steps": 121}, "warm-up of 121 steps does not fit into a run of 120"),
        ({"warmup_steps": -1}, "warm-up of -1"),
        ({"finl": 0.1}, "did you mean 'final'"),
        ({"final": 1.5}, "final = 1.5"),
        ({"name": "step", "gamma": 0.0}, "gamma = 0.0"),
        ({"name": "step", "step_size": 0}, "step size of 0"),
        ({"name": "exponential", "gamma": math.nan}, "gamma = nan"),
        ({"name": "cyclic", "cycle": 0.1}, "cycle of 0.1 epochs"),
        ({"name": "cyclic", "cycle": math.nan}, "cycle of nan epochs"),
        ({"name": "polynomial", "power": 0.0}, "power 0.0"),
        ({"name": "wsd", "decay": 2.0}, "decay = 2.0"),
    ],
)
def test_refusals(arguments, message):
    call = {"name": "cosine", "peak": PEAK, "steps": STEPS, "steps_per_epoch": EPOCH, **arguments}
    with pytest.raises(InputError, match=message):
        schedules.build(**call)
