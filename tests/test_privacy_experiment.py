"""experiments.private, from flags to result.json: its claim, the baseline beside it, and what it refuses."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import lepton_jax as lp
from experiments import private
from lepton_jax import cli

SMOKE = ("--preset", "smoke", "--epochs", "1", "--mesh", "2x1")


def outcome(*arguments):
    return cli.outcome(private.main, private.Config, private.PRESETS, [*arguments])


def test_every_preset_can_work():
    for preset in private.PRESETS.values():
        preset.check()


def test_a_private_run_tells_its_claim_and_shows_it_again(tmp_path, capsys):
    flags = (*SMOKE, "--microbatches", "2", "--clipping", "adaptive", "--ema", "0.9", "--run", str(tmp_path / "run"))
    assert outcome(*flags) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    claim = record["privacy"]
    assert 2.9 < claim["epsilon"] <= 3.0
    assert claim["delta"] == record["metrics"]["delta"] == 1e-5
    assert claim["steps"] == record["steps"] == 6
    assert claim["accountant"] == "PLD"
    assert np.isfinite(record["metrics"]["baseline/test/accuracy"])
    said = capsys.readouterr().out
    assert "at epsilon 2.9" in said or "at epsilon 3 " in said
    assert "without privacy" in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("train/clipped" in row for row in rows)
    assert outcome(*flags) == 0  # goes on, where there is nothing left to do
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again["privacy"] == claim
    assert again["metrics"] == record["metrics"]


def test_features_that_are_there_already_train_the_same_model(monkeypatch):
    config = private.PRESETS["smoke"]
    config = replace(config, features="scattering", examples=300, batch_size=100, mesh="1x1")
    ahead = private.compose(config)
    monkeypatch.setattr(lp.data, "mapped", lambda source, function: None)
    anew = private.compose(config)
    assert ahead.stream.batch(0)["input"].ndim == 2
    assert anew.stream.batch(0)["input"].ndim == 4
    ends = []
    for recipe in (ahead, anew):
        state = lp.preparation.prepared(recipe, config, lp.mesh.make("1x1"))
        for number in range(2):
            state, _ = jax.jit(recipe.step)(state, recipe.stream.batch(number))
        ends.append(state.params)
    assert lp.tree.distance(*ends) < 1e-5


@pytest.mark.parametrize("engine", ["two-pass", "vmapped"])
def test_every_kind_of_noise_runs_on_every_engine(engine, tmp_path):
    more = {"two-pass": ("--noise", "banded", "--batch-size", "64"), "vmapped": ("--noise", "step", "--copies", "2")}
    flags = (*SMOKE, "--engine", engine, "--no-baseline", *more[engine], "--run", str(tmp_path / "run"))
    assert outcome(*flags) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["privacy"]["epsilon"] <= 3.0


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--epsilon", "0"), "epsilon 0.0"),
        (("--delta", "2"), "delta 2.0"),
        (("--clipping", "flatt"), "unknown clipping 'flatt'"),
        (("--engine", "fast"), "unknown engine 'fast'"),
        (("--noise", "pink"), "unknown noise 'pink'"),
        (("--model", "resnet8"), "batch norm"),
        (("--rollbacks", "3"), "--rollbacks 3"),
        (("--sharpness", "0.1"), "--sharpness 0.1"),
        (("--microbatches", "auto"), "--microbatches auto"),
        (("--batch-size", "2000"), "2000"),
        (("--clipping", "per-layer", "--engine", "two-pass"), "two passes"),
    ],
)
def test_what_would_not_be_private_is_refused(flags, problem, tmp_path, capsys):
    more = () if "--model" in flags or "per-layer" in flags else ("--no-baseline",)
    model = ("--model", "mlp") if "per-layer" in flags else ()
    assert outcome(*SMOKE, *flags, *model, *more, "--run", str(tmp_path / "run")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert problem in lines[0]
    assert not (tmp_path / "run").exists()
