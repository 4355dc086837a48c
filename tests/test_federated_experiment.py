"""The recipe: on every mesh, killed and resumed, side by side; what it refuses."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import lepton_jax as lp
from experiments import federated
from lepton_jax import cli, noting

ROOT = pathlib.Path(__file__).parent.parent
TIMED = ("train/examples_per_second", "train/input_idle")


def outcome(*flags: str) -> int:
    return cli.outcome(federated.main, federated.Config, federated.PRESETS, ["--preset", "smoke", *flags])


def rows(directory: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what a clock has measured."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMED} for row in lines]


@pytest.mark.parametrize("preset", sorted(federated.PRESETS))
def test_every_preset_can_work(preset):
    federated.PRESETS[preset].check()
    lp.clients.require(federated.PRESETS[preset])


def test_the_same_run_on_every_mesh_to_the_last_bit(tmp_path):
    flags = ("--bitwise", "8", "--batch-size", "16", "--epochs", "1.5", "--dropout", "0.2", "--algorithm", "fedadam")
    found = []
    for axes in ("1x1", "8x1"):
        assert outcome(*flags, "--mesh", axes, "--run", str(tmp_path / axes)) == 0
        found.append((rows(tmp_path / axes), json.loads((tmp_path / axes / "result.json").read_text())["metrics"]))
    assert found[0][1]["test/accuracy"] > 0.2
    assert found[0] == found[1]


def test_fednova_in_virtual_shards_is_fednova():
    """Its mean direction and mean length are those of the whole cohort, however the sum was made."""
    ends = []
    for shards in (None, 2):
        config = dataclasses.replace(federated.PRESETS["smoke"], batch_size=16, algorithm="fednova", bitwise=shards)
        recipe = federated.compose(config)
        batch = recipe.stream.batch(0)
        key, inputs = lp.keys.seeded(0), batch["input"][0, 0]
        state = lp.initial(recipe.model, recipe.optimizer, key, inputs, **recipe.stats)
        ends.append(jax.jit(recipe.step)(state, batch)[0].params)
    assert lp.tree.distance(*ends) < 1e-6


def test_a_run_with_all_that_clients_keep_leaves_a_run(tmp_path, capsys):
    flags = ("--algorithm", "scaffold", "--update", "int8", "--partition", "shards:2", "--personalize", "--ema", "0.5")
    assert outcome(*flags, "--mesh", "4x1", "--run", str(tmp_path / "run")) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "run" / "clients.png").stat().st_size > 1000
    personal = json.loads((tmp_path / "run" / "personal.json").read_text())
    assert len(personal["before"]) == len(personal["after"]) == 20
    assert np.mean(personal["after"]) > np.mean(personal["before"])
    assert "personal   " in said
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["steps"] == 3
    assert np.isfinite(record["metrics"]["test/loss"])


def written(directory: pathlib.Path) -> tuple[federated.Config, np.ndarray]:
    """(flags for examples in files, each by a writer; the writers)."""
    rng = np.random.default_rng(0)
    writers = rng.choice(["nina", "max", "otto", "eva", "ida"], 200)
    inputs = rng.normal(size=(200, 3))
    rows = [f"{x[0]},{w},{x[1]},{x[2]},{int(x[0] > 0)}" for x, w in zip(inputs, writers, strict=True)]
    (directory / "train.csv").write_text("\n".join(["a,writer,b,c,label", *rows]))
    (directory / "test.csv").write_text("\n".join(["a,writer,b,c,label", *rows[:50]]))
    options = {"data": "csv", "data_dir": str(directory), "cohort": 4, "partition": "natural:writer"}
    return dataclasses.replace(federated.PRESETS["smoke"], **options), writers


def test_natural_clients_are_whom_a_field_names(tmp_path):
    """A client for each writer, in order, however many --clients says; and no writer is a feature."""
    config, writers = written(tmp_path)
    flags = ("--data", "csv", "--data-dir", str(tmp_path), "--cohort", "4", "--mesh", "1x1")
    assert outcome(*flags, "--partition", "natural:writer", "--run", str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2  # ceil(5 / 4)
    recipe = federated.compose(config)
    assert recipe.dataset.input_shape == (3,)
    for held, name in zip(recipe.stream.partition, sorted(set(writers)), strict=True):
        np.testing.assert_array_equal(held, np.flatnonzero(writers == name))


def test_beside_natural_clients_stand_as_many_even_ones(tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(lp.several, "variants", lambda run, runs, *given: found.update(runs))
    federated.compared(written(tmp_path)[0])
    recipes = {name: federated.compose(config) for name, config in found.items()}
    assert {recipe.dataset.input_shape for recipe in recipes.values()} == {(3,)}
    assert [len(part) for part in recipes["iid"].stream.partition] == [40] * 5
    assert len({len(part) for part in recipes["clients"].stream.partition}) > 1


PRIVATE = ("--client-clip", "0.5", "--rollbacks", "0")


def test_privacy_for_whole_clients_tells_its_claim(tmp_path, capsys):
    flags = (*PRIVATE, "--epsilon", "6", "--epochs", "2", "--dropout", "0.1", "--mesh", "2x1")
    for _ in range(2):  # the second time it only shows what there is
        assert outcome(*flags, "--run", str(tmp_path / "run")) == 0
        assert "delta 1e-05 for whole clients (PLD, add or remove one client)" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    claim = record["privacy"]
    assert claim["sampling"]["examples"] == 20
    assert claim["sampling"]["batch"] == 8
    assert (claim["steps"], claim["clip"]) == (record["steps"], 0.5)
    assert 5.8 < claim["epsilon"] == record["metrics"]["epsilon"] <= 6


def test_a_private_round_does_what_is_accounted_for():
    """Noise once, on the sum, by the plan's clip and expected cohort; and clients that join one by one."""
    options = {"client_noise": 1.5, "client_clip": 0.5, "rollbacks": 0, "clients": 40}
    recipe = federated.compose(dataclasses.replace(federated.PRESETS["smoke"], **options))
    batches = [recipe.stream.batch(number) for number in range(30)]
    inputs = batches[0]["input"][0, 0]
    state = lp.initial(recipe.model, recipe.optimizer, lp.keys.seeded(0), inputs, **recipe.stats)
    with noting.noted() as notes:
        state, _ = jax.jit(recipe.step)(state, batches[0])
    release = lp.privacy.noise.Release(lp.privacy.constant(1.5), lp.privacy.flat(0.5), 8)
    assert [note for note in notes if note != noting.Bound(0.5)] == [release]
    assert state.stats["privacy"]["steps"] == 1
    sizes = [int(batch["participation"].sum()) for batch in batches]
    assert len({batch["participation"].shape for batch in batches}) == 1
    assert len(set(sizes)) > 5
    assert abs(np.mean(sizes) - 8) < 2


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_rounds_that_do_not_match_their_plan_are_refused(monkeypatch, quantile):
    options = {"client_noise": 1.5, "client_clip": 0.5, "client_quantile": quantile, "rollbacks": 0, "clients": 40}
    recipe = federated.compose(dataclasses.replace(federated.PRESETS["smoke"], **options))
    inputs = recipe.stream.batch(0)["input"][0, 0]
    state = lp.initial(recipe.model, recipe.optimizer, lp.keys.seeded(0), inputs, **recipe.stats)
    recipe.require(state)
    planned = federated.planned
    for change, problem in [
        ({"noise": lp.privacy.constant(1.0)}, "has noise"),
        ({"clip": lp.privacy.flat(1.0)}, "clips by"),
        ({"examples": 39}, "sees Poisson batches of 8 of 40"),
        ({"capacity": 40}, "and its plan is for Poisson batches of 8 of 40 in 40 rows"),
        ({"steps": 4}, "has 5 steps"),
    ]:
        monkeypatch.setattr(federated, "planned", lambda *given, to=change: dataclasses.replace(planned(*given), **to))
        with pytest.raises(lp.InputError, match=problem):
            recipe.require(state)


def test_the_norm_of_updates_follows_their_quantile(tmp_path):
    """It starts far above all of them, and falls towards their median, by about as much with the noise as without."""
    flags = ("--client-clip", "50", "--client-quantile", "0.5", "--rollbacks", "0", "--epochs", "4", "--mesh", "2x1")
    ends = []
    for noise in ((), ("--client-noise", "0.3")):
        assert outcome(*flags, *noise, "--run", str(tmp_path / f"run{len(noise)}")) == 0
        norms = [row["train/update_clip"] for row in rows(tmp_path / f"run{len(noise)}") if "train/update_clip" in row]
        assert norms[0] == 50
        ends.append(norms[-1])
    assert ends[0] == pytest.approx(50 * np.exp(-0.1 * 9), rel=1e-5)  # nobody's update is as long: 9 rounds down
    assert 0 < ends[1] != ends[0]


def test_privacy_for_clients_is_not_counted_between_machines():
    config = dataclasses.replace(federated.PRESETS["private"], clients=20, cohort=8)
    with pytest.raises(lp.InputError, match="without a count of its privacy"):
        federated.job(config)


FLAGS = ("--preset", "smoke", "--algorithm", "scaffold", "--update", "sign", "--epochs", "12", "--dropout", "0.1")


def begun(directory: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.federated", *FLAGS, "--mesh", "2x1", "--run", str(directory)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_killed_and_run_again_it_goes_on_bit_for_bit(tmp_path):
    """Server and clients' variates, what clients still owe, cohorts and dropouts: all of it."""
    process, journal = begun(tmp_path / "killed"), tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 8):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "result.json").exists()
    process = begun(tmp_path / "killed")
    out, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, ""), out
    assert outcome(*FLAGS[2:], "--mesh", "2x1", "--run", str(tmp_path / "whole")) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["steps"] == 30


def test_side_by_side(tmp_path, capsys):
    flags = ("--compare", "--mesh", "1x1", "--run", str(tmp_path / "all"))
    assert outcome(*flags) == 0
    record = json.loads((tmp_path / "all" / "result.json").read_text())
    names = ("test/accuracy", "iid/test/accuracy", "centralized/test/accuracy")
    assert all(0 < record["metrics"][name] < 1 for name in names)
    page = (tmp_path / "all" / "comparison.html").read_text()
    assert "dirichlet:0.1" in page
    said = capsys.readouterr().out
    assert f"--run {tmp_path / 'all'}\n" in said  # the whole command, and not one of its runs
    assert outcome(*flags) == 0  # shows it again
    (tmp_path / "all" / "stranger").touch()
    assert outcome(*flags) == 2


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--algorithm", "fedavgg"), "unknown algorithm 'fedavgg'"),
        (("--partition", "dirichlet:0"), "concentration 0.0 of the Dirichlet"),
        (("--partition", "natural"), "'natural' names no field"),
        (("--partition", "even"), "'even' names no field"),
        (("--partition", "natural:writer"), "'digits' has no field 'writer'"),
        (("--partition", "diriclet:1"), "unknown partition 'diriclet'"),
        (("--clients", "5"), "a cohort of 8 is more than the 5 clients"),
        (("--clients", "1500"), "1437 examples are too few for 1500 clients"),
        (("--cohort", "0"), "a cohort of 0"),
        (("--cohort", "6", "--mesh", "4x1"), "a batch of 6 does not divide over the mesh"),
        (("--local-epochs", "0"), "a local number of epochs of 0"),
        (("--quorum", "1.5"), "a quorum of 1.5"),
        (("--dropout", "-1"), "a dropout of -1.0"),
        (("--deadline", "0"), "a deadline of 0.0"),
        (("--combine", "krum"), "'krum' does not say"),
        (("--combine", "krum:3"), "a cohort of 8 is too small"),
        (("--combine", "meen"), "unknown way to combine updates 'meen'"),
        (("--update", "int9"), "unknown form of updates 'int9'"),
        (("--client-clip", "0"), "norm 0.0"),
        (("--algorithm", "scaffold", "--momentum", "0.9"), "plain SGD"),
        (("--algorithm", "fednova", "--layer-decay", "0.5"), "plain SGD"),
        (("--algorithm", "scaffold", "--client-clip", "1"), "--client-clip cuts them short"),
        (("--algorithm", "fedprox", "--proximal", "-1"), "strength -1.0"),
        (("--algorithm", "scaffold", "--bitwise", "8"), "--bitwise adds updates up"),
        (("--client-quantile", "0.5"), "needs a norm to begin with"),
        (("--client-quantile", "1.5", "--client-clip", "1"), "the quantile 1.5"),
        (("--client-quantile", "0.5", "--client-clip", "0"), "norm 0.0"),
        (("--client-quantile", "0.5", "--client-clip", "1", "--combine", "median"), "counts votes in a sum"),
        ((*PRIVATE, "--epsilon", "0"), "epsilon 0.0"),
        ((*PRIVATE, "--epsilon", "3", "--client-noise", "1"), "both say how much noise"),
        ((*PRIVATE, "--client-noise", "-1"), "the noise multiplier -1.0"),
        ((*PRIVATE, "--epsilon", "3", "--quorum", "0.5"), "clients that join by themselves"),
        ((*PRIVATE, "--epsilon", "3", "--combine", "median"), "--combine median"),
        ((*PRIVATE, "--epsilon", "3", "--algorithm", "centralized"), "all data is in one place"),
        ((*PRIVATE, "--epsilon", "3", "--algorithm", "fednova"), "--client-clip cuts them short"),
        ((*PRIVATE, "--epsilon", "3", "--model", "resnet8"), "batch norm"),
        ((*PRIVATE, "--epsilon", "3", "--cohort", "21"), "a cohort of 21 is more than the 20 clients"),
        ((*PRIVATE, "--epsilon", "3", "--bitwise", "8"), "does not hold for noise"),
        (("--epsilon", "3"), "measured by what one may add"),
        (("--epsilon", "3", "--client-clip", "1"), "without noise"),
        (("--mesh", "auto"), "cohorts of clients, and these cannot be planned"),
        (("--find-learning-rate",), "--find-learning-rate has no meaning"),
        (("--schedule", "plateau"), "--schedule plateau has no meaning"),
        (("--server-learning-rate", "0"), "0.0"),
    ],
)
def test_a_recipe_refuses(flags, problem, tmp_path, capsys):
    mesh = () if "--mesh" in flags else ("--mesh", "1x1")
    assert outcome("--batch-size", "16", *flags, *mesh, "--run", str(tmp_path / "run")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert problem in lines[0]
    assert not (tmp_path / "run").exists()
