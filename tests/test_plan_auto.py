"""Plans made for a run: what `auto` leaves open is chosen before the first step, in one process or in several."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import lepton_jax as lp
from experiments import resnet
from lepton_jax import mesh, plan
from lepton_jax.errors import InputError
from lepton_jax.launch.supervisor import free_port
from lepton_jax.plan import auto, choice, making

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--model", "mlp", "--epochs", "1", "--warmup-epochs", "0", "--examples", "256", "--batch-size", "128"]
AUTO = ["--mesh", "auto", "--microbatches", "auto"]


def run(directory, *flags) -> dict:
    """The config.json of a short run."""
    config = lp.cli.parse(resnet.Config, resnet.PRESETS, [*SMALL, *flags, "--run", str(directory)], "p")
    config.check()
    resnet.main(config)
    return json.loads((directory / "config.json").read_text())["config"]


def test_auto_is_resolved_before_the_run_and_kept_when_it_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto, "room", lambda: 0.45e6)
    made = run(tmp_path / "a", *AUTO)
    assert mesh.size(mesh.parse(made["mesh"])) == jax.device_count()
    assert made["microbatches"] >= 1
    assert f"plan       --mesh {made['mesh']} --microbatches {made['microbatches']}" in capsys.readouterr().out
    monkeypatch.setattr(auto, "room", lambda: 1e12)
    assert run(tmp_path / "a", *AUTO) == made


def test_another_process_plans_alike_and_says_alike_what_is_wrong():
    config = lp.cli.parse(resnet.Config, resnet.PRESETS, [*SMALL, "--mesh", "2x1"], "p")
    recipe = resnet.compose(config)
    about = 2, None, 1e9, "v5e"
    assert making.apart(config, *about) == making.here(recipe, config, *about)
    with pytest.raises(InputError) as found:
        making.apart(config, 2, 1, 1e4, "v5e")
    with pytest.raises(InputError) as expected:
        making.here(recipe, config, 2, 1, 1e4, "v5e")
    assert (found.value.problem, found.value.remedy) == (expected.value.problem, expected.value.remedy)


def test_what_another_process_cannot_import_is_not_planned_there(monkeypatch):
    monkeypatch.setattr(resnet.Config, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(InputError, match="cannot import what has no module"):
        making.apart(resnet.Config(), 4, None, 1e9, "v5e")


def test_two_processes_are_told_one_plan(tmp_path):
    command = [sys.executable, "-m", "experiments.resnet", *SMALL, *AUTO, "--run", str(tmp_path / "run")]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "LEPTON_PROCESSES": "2"}
    environment["LEPTON_COORDINATOR"] = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            command, env=environment | {"LEPTON_PROCESS_ID": str(n)}, cwd=ROOT, stdout=-1, stderr=-1, text=True
        )
        for n in range(2)
    ]
    (first, error), (second, _) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], error
    made = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert mesh.size(mesh.parse(made["mesh"])) == 4
    assert f"plan       --mesh {made['mesh']} --microbatches {made['microbatches']}" in first
    assert "plan  " not in second


def test_microbatches_are_as_few_as_fit_a_given_mesh(tmp_path, monkeypatch):
    config = lp.cli.parse(
        resnet.Config,
        resnet.PRESETS,
        ["--mesh", "1x1", "--microbatches", "auto", "--model", "mlp", "--batch-size", "512"],
        "p",
    )
    recipe = resnet.compose(config)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    needs = [plan.Predictor(plan.of_recipe(recipe, config)).predict({"data": 1, "model": 1}, k).memory for k in (1, 2)]
    monkeypatch.setattr(auto, "room", lambda: needs[0] / choice.SAFE)
    assert auto.resolved(recipe, config)[1].microbatches == 1
    monkeypatch.setattr(auto, "room", lambda: needs[1] / choice.SAFE)
    again, found = auto.resolved(recipe, config)
    assert (found.mesh, found.microbatches) == ("1x1", 2)
    assert again.step is not recipe.step
    monkeypatch.setattr(auto, "room", lambda: 1e4)
    with pytest.raises(InputError, match="the smallest plan, --mesh 1x1 --microbatches 128, needs"):
        auto.resolved(recipe, config)


def test_only_what_is_left_open_is_planned():
    assert not auto.asked(resnet.Config(mesh="8x1", microbatches=2))
    assert auto.asked(resnet.Config(mesh="auto"))
    assert auto.asked(resnet.Config(microbatches="auto"))


def test_a_model_that_cannot_take_the_data_is_refused_before_it_is_planned(tmp_path):
    data = tmp_path / "data.npz"
    rows = np.zeros((256, 5), np.float32)
    labels = np.arange(256) % 2
    np.savez(data, train_images=rows, train_labels=labels, test_images=rows, test_labels=labels)
    with pytest.raises(InputError, match="cannot take inputs of float32 of shape"):
        run(tmp_path / "a", "--mesh", "auto", "--data", "npz", "--data-dir", str(data))
    assert not (tmp_path / "a").exists()


def test_a_recipe_with_a_step_of_its_own_is_not_cut_anew():
    config = resnet.Config(model="mlp")
    recipe = dataclasses.replace(resnet.compose(config), stats={"own": 1})
    with pytest.raises(InputError, match="its microbatches cannot be chosen"):
        plan.work.in_microbatches(recipe, config, 2)


def test_memory_that_is_free_is_read():
    assert 2**20 < auto.available() < 2**50
    assert auto.room() == pytest.approx(auto.available() / jax.local_device_count(), rel=0.5)
