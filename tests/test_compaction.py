"""From a finished run to a packed file that runs: every recipe of experiments.compress, and what is refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from experiments import compress as program
from experiments import resnet, vit
from lepton_jax import cli, compaction, compressions, finished
from lepton_jax.errors import InputError
from lepton_jax.report import tradeoff


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run of a ResNet-8 on a part of the digits."""
    place = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--preset", "smoke", "--epochs", "6", "--batch-size", "64", "--examples", "400", "--run", str(place)]
    assert cli.outcome(resnet.main, resnet.Config, resnet.PRESETS, flags) == 0
    return place


@pytest.fixture(scope="module")
def run(directory):
    return finished.load(str(directory), program.EXPERIMENTS)


@pytest.fixture(scope="module")
def making(run):
    """What recipes share is made once."""
    return functools.cache(lambda make: make(compressions.Job(run, 0.5)))


def outputs(model, variables, run):
    images = jnp.asarray(run.recipe.stream.batch(0)["input"])
    return np.asarray(jax.jit(lambda variables: model.apply(variables, images, False, None)[0])(variables))


def test_a_finished_run_is_what_its_result_says(run, directory):
    record = json.loads((directory / "result.json").read_text())
    assert compaction.scorer(run)(run.model, run.variables) == record["metrics"]["test/accuracy"]


# the same as another recipe but for a number, or a part of another
LONG = {"channels3x", "compose3x", "lowrank-svd", "prune80", "prune90", "w4-w8"}


@pytest.mark.parametrize(
    "recipe", [pytest.param(x, marks=pytest.mark.long if x in LONG else ()) for x in sorted(compressions.RECIPES)]
)
def test_what_is_shipped_is_what_was_made(recipe, run, making):
    """To rounding where nothing is rounded on purpose, and with few other answers where it is."""
    make, ship = compressions.RECIPES[recipe]
    small = making(make)
    shipped = ship(compressions.Job(run, 0.5), small)
    record = compaction.shipped(run, shipped, recipe)
    model, variables = compaction.load(run.directory / "compressed" / f"{recipe}.lepton")
    found = outputs(model, variables, run)
    made = outputs(lp.compress.applied(small.model), small.variables, run)
    if recipe in ("folded", "prune80", "prune90", "channels2x", "channels3x", "lowrank", "lowrank-svd"):
        np.testing.assert_allclose(found, made, atol=2e-4 * np.abs(made).max())
    else:
        assert np.mean(found.argmax(1) == made.argmax(1)) > 0.8
    assert record["after"]["bytes"] <= (run.directory / "compressed" / f"{recipe}.lepton").stat().st_size
    assert record["size"] > (1 if recipe == "folded" else 1.5)
    if recipe.startswith(("channels", "compose")):
        assert record["macs"] > (3 if "3x" in recipe else 2)
    assert record["layers"].keys() == ({"1", "128"} if recipe.startswith("lowrank") else set())
    if recipe.startswith("prune"):
        leaves = jax.tree.leaves(variables["params"], is_leaf=lp.compress.leaves.is_packed)
        places = [leaf.places() for leaf in leaves if isinstance(leaf, lp.compress.Sparse)]
        share = sum(int(each.sum()) for each in places) / sum(each.size for each in places)
        assert share == pytest.approx(0.1 if "90" in recipe else 0.2, abs=1e-3)


def test_the_page_says_how_fast_factored_layers_are():
    model = {"bytes": 2000, "macs": 3_000_000, "accuracy": 0.5, "milliseconds": {"1": 1.0}}
    audit = {"before": model, "after": model, "size": 2.0, "macs": 1.0, "points": 0.0, "speed": {"1": 1.5}}
    audits = {"lowrank": {**audit, "layers": {"1": 1.75}}, "w4": {**audit, "layers": {}}, "older": audit}
    heads = [column.head for column in tradeoff.columns(audits)]
    found = [row[1 + heads.index("factored layers, batch 1")] for row in tradeoff.rows(audits)]
    assert found == ["", "1.75x", "", ""]
    assert not any("layers" in column.head for column in tradeoff.columns({"w4": audits["w4"]}))


def called(*arguments):
    return cli.guarded(lambda: cli.call(program.main, arguments=[str(argument) for argument in arguments]))


def test_the_command_leaves_model_audit_and_report(directory, capsys):
    assert called("--run", directory, "--recipe", "w8a8", "--size", "3", "--points", "60") == 0
    said = capsys.readouterr().out
    place = directory / "compressed"
    assert "bytes in the file" in said
    assert str(place / "report.html") in said
    audit = json.loads((place / "w8a8.json").read_text())
    assert audit["size"] > 3
    page = (place / "report.html").read_text()
    assert "w8a8" in page
    assert all(line.split(":")[0] in page for line in tradeoff.NOT_SAID)


def test_what_was_shipped_is_audited_again(directory, capsys):
    place = directory / "compressed"
    assert called("--run", directory, "--recipe", "folded") == 0
    shipped, audit = (place / "folded.lepton").read_bytes(), json.loads((place / "folded.json").read_text())
    (place / "folded.json").unlink()
    assert called("--run", directory, "--recipe", "folded", "--again") == 0
    assert (place / "folded.lepton").read_bytes() == shipped
    again = json.loads((place / "folded.json").read_text())
    assert all(again[name] == audit[name] for name in ("size", "macs", "points"))
    (place / "folded.lepton").unlink()
    assert called("--run", directory, "--recipe", "folded", "--again") == 2
    assert "folded.lepton cannot be read" in capsys.readouterr().err


def test_a_run_without_batch_norms_is_made_smaller_too(tmp_path, capsys):
    flags = ["--preset", "smoke", "--epochs", "1", "--depth", "1", "--examples", "200", "--run", str(tmp_path / "run")]
    assert cli.outcome(vit.main, vit.Config, vit.PRESETS, flags) == 0
    assert called("--run", tmp_path / "run", "--recipe", "w8a8", "--size", "2.5", "--points", "20") == 0
    assert "bytes in the file" in capsys.readouterr().out


def test_a_broken_budget_fails_after_the_audit_is_written(directory, capsys):
    assert called("--run", directory, "--recipe", "w8a8", "--size", "30") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "size is" in error[0]
    assert (directory / "compressed" / "w8a8.json").exists()


def test_what_cannot_be_compressed(directory, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    (broken / "result.json").unlink()
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "experiment": "resnets"}))
    changed = tmp_path / "changed"
    shutil.copytree(directory, changed)
    config["config"]["examples"] = 300
    (changed / "config.json").write_text(json.dumps(config))
    for arguments, problem in {
        ("--run", tmp_path / "absent"): "is not a run directory",
        ("--run", broken): "is not complete",
        ("--run", other): "unknown experiment 'resnets'",
        ("--run", changed): "was made with data",
        ("--run", directory, "--recipe", "w8a9"): "unknown recipe 'w8a9'",
        ("--run", directory, "--mesh", "9x"): "'9x' does not parse",
        ("--run", directory, "--recipe", "prune80", "--epochs", "0"): "0",
        ("--run", directory, "--recipe", "prune80", "--learning-rate", "nan"): "nan",
        ("--run", directory, "--recipe", "prune80", "--teacher", "1.5"): "1.5 is outside [0, 1]",
    }.items():
        assert called(*arguments) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2, lines
        assert problem in lines[0]


def test_a_file_that_names_no_network(run, tmp_path):
    lp.compress.file.save(tmp_path / "m", run.variables, {"rule": "floats", "kept": {}})
    with pytest.raises(InputError, match="does not say what model"):
        compaction.load(tmp_path / "m")
    model, variables = compaction.load(tmp_path / "m", run.model)
    np.testing.assert_array_equal(outputs(model, variables, run), outputs(run.model, run.variables, run))
    lp.compress.file.save(tmp_path / "m", run.variables, {"rule": "magic", "kept": {}})
    with pytest.raises(InputError, match="unknown rule 'magic'"):
        compaction.load(tmp_path / "m", run.model)
