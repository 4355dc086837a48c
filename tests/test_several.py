"""Several seeds in one run: each a run of its own, and their mean and sample deviation against numpy."""

import json

import numpy as np
import pytest

from experiments import resnet
from lepton_jax import cli, several
from lepton_jax.errors import InputError

QUICK = ("--preset", "smoke", "--model", "mlp", "--mesh", "1x1", "--epochs", "1")


def outcome(*arguments):
    return cli.outcome(resnet.main, resnet.Config, resnet.PRESETS, [*QUICK, *arguments])


def test_seeds_run_one_after_the_other_and_resume(tmp_path, capsys):
    directory = tmp_path / "run"
    assert outcome("--seeds", "2", "--seed", "5", "--run", str(directory)) == 0
    first = json.loads((directory / "result.json").read_text())
    assert first["seeds"] == [5, 6]
    alone = [json.loads((directory / f"seed-{n}" / "result.json").read_text()) for n in (5, 6)]
    for name, value in first["metrics"].items():
        values = [record["metrics"][name] for record in alone]
        assert value == pytest.approx(np.mean(values))
        assert first["deviations"][name] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    table = capsys.readouterr().out.split("seeds  ")[-1]
    assert f"{first['metrics']['test/accuracy']:.4f}" in table
    assert "deviation" in table

    assert outcome("--seed", "6", "--run", str(tmp_path / "single")) == 0
    single = json.loads((tmp_path / "single" / "result.json").read_text())
    assert single["metrics"] == alone[1]["metrics"]

    capsys.readouterr()
    assert outcome("--seeds", "3", "--seed", "5", "--run", str(directory)) == 0
    assert capsys.readouterr().out.count("compiled ") == 1  # the third alone was trained
    more = json.loads((directory / "result.json").read_text())
    assert more["seeds"] == [5, 6, 7]
    assert {name: more["runs"][name] for name in first["runs"]} == first["runs"]


def test_a_metric_that_is_none_has_no_mean():
    records = {
        f"seed-{n}": {"metrics": {"test/auc": auc, "test/loss": 1.0 + n}, "seed": n, "seconds": 1.0}
        for n, auc in enumerate([0.5, None])
    }
    record = several.together("x", records)
    assert record["metrics"] == {"test/auc": None, "test/loss": 1.5}
    assert record["deviations"] == {"test/auc": None, "test/loss": pytest.approx(0.5**0.5)}


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "seed-a"])
def test_directories_of_something_else(name, tmp_path, capsys):
    (tmp_path / name).write_text("precious")
    assert outcome("--seeds", "2", "--run", str(tmp_path)) == 2
    assert "is not a directory of several seeds" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_and_new_paths(tmp_path):
    several.check(tmp_path)
    several.check(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a directory of several seeds"):
        several.check(tmp_path / "file")
