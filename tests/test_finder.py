"""The learning-rate finder: against a loss whose answer is known, and as a command."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lepton_jax as lp
from experiments import resnet
from lepton_jax import cli, data, finder, mesh, schedules, step
from lepton_jax.errors import InputError
from tests import laws


def test_the_rates_are_a_geometric_series():
    schedule = schedules.sweep(1e-5, 10.0, 61)
    found = [float(jax.jit(schedule)(jnp.int32(n))) for n in range(61)]
    np.testing.assert_allclose(found, np.geomspace(1e-5, 10, 61), rtol=1e-5)


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 5), (1.0, 1.0, 5), (1.0, math.inf, 5), (0.1, 1.0, 1)])
def test_a_sweep_that_is_none(arguments):
    with pytest.raises(InputError, match="a sweep"):
        schedules.sweep(*arguments)


@pytest.mark.parametrize("center", [1e-4, 1e-2, 1.0])
def test_the_steepest_rate_of_a_known_curve(center):
    """A logistic fall in the logarithm is steepest at its center; noise of a hundredth does not move it far."""
    rates = np.geomspace(1e-6, 10, 100)
    losses = 2.3 - 2 / (1 + np.exp(-2 * np.log(rates / center))) + 0.01 * np.random.default_rng(0).normal(size=100)
    found = finder.found(rates.tolist(), losses.tolist(), None)
    assert center / 2 < found.steepest < 2 * center
    assert found.suggestion == found.steepest
    assert finder.found(rates.tolist(), losses.tolist(), center).suggestion == pytest.approx(center / 10)


def test_smoothing_keeps_lines_inside_and_constants_everywhere():
    np.testing.assert_allclose(finder.smooth([2.0] * 30), 2.0)
    np.testing.assert_allclose(finder.smooth(np.arange(60.0).tolist())[25:35], np.arange(25, 35), atol=1e-6)


def test_divergence():
    assert not finder.has_diverged([2.0, 1.0, 2.0, 1.5])
    assert finder.has_diverged([2.0, math.nan])
    assert finder.has_diverged([1.0] * 20 + [40.0])


@pytest.mark.parametrize(
    ("losses", "problem"),
    [([1.0, 1.0], "diverges within 3 steps"), ([1.0] * 30, "falls nowhere"), (list(range(1, 30)), "falls nowhere")],
)
def test_curves_without_an_answer(losses, problem):
    rates = np.geomspace(1e-6, 1, len(losses)).tolist()
    with pytest.raises(InputError, match=problem):
        finder.found(rates, [float(loss) for loss in losses], 1.0)


def swept(axes):
    model, schedule = laws.models()["mlp"](), schedules.sweep(1e-4, 100.0, 60)
    optimizer = lp.optimizers.build("sgd", schedule)
    update = lp.descend(lp.plain(lp.supervised(model, lp.cross_entropy())), optimizer)
    stream = data.Stream(laws.digits(), laws.BATCH, 0)
    state = step.initial(model, optimizer, jax.random.key(0), step.shapes(stream.batch(0)["input"]))
    state = step.place(state, mesh.make(axes), model.rules)
    before = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    found = finder.sweep(update, state, stream, mesh.make(axes), schedule, 60, model.rules)
    after = jax.device_get(state._replace(key=jax.random.key_data(state.key)))  # raises were its buffers given away
    jax.tree.map(np.testing.assert_array_equal, before, after)
    return found


def test_a_sweep_leaves_the_state_alone_and_is_the_same_on_a_mesh():
    one, other = swept("1x1"), swept("4x2")
    assert one.diverged is not None
    assert 1e-3 < one.suggestion <= one.diverged / 10
    early = [n for n, rate in enumerate(one.rates) if rate < 0.1]  # later on rounding grows
    np.testing.assert_allclose([one.losses[n] for n in early], [other.losses[n] for n in early], rtol=1e-3)
    assert one.suggestion == pytest.approx(other.suggestion, rel=0.5)


QUICK = ("--preset", "smoke", "--model", "mlp", "--mesh", "1x1", "--find-learning-rate")


def outcome(*arguments):
    return cli.outcome(resnet.main, resnet.Config, resnet.PRESETS, [*QUICK, *arguments])


def test_the_command_writes_a_table_and_a_picture_and_trains_nothing(tmp_path, capsys):
    assert outcome("--run", str(tmp_path / "run")) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "learning-rate.json").read_text())
    assert f"suggested  --learning-rate {record['suggestion']:.2g}" in shown
    assert 1e-3 < record["suggestion"] < 1
    with Image.open(tmp_path / "run" / "learning-rate.png") as picture:
        assert picture.size == (840, 504)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lease", "config.json", "learning-rate.json", "learning-rate.png"}


def test_without_matplotlib_nothing_is_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert outcome("--run", str(tmp_path / "run")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "needs matplotlib" in lines[0]
    assert 'pip install "lepton-jax[plot]"' in lines[1]
    assert not any(tmp_path.iterdir())
