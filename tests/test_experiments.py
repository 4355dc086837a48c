"""The recipes, from flags to result.json: each at its smallest, and what is its own."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import cifar, medical, resnet, vit
from lepton_jax import cli, data, recipe

RECIPES = {module.__name__.split(".")[-1]: module for module in (cifar, medical, resnet, vit)}


def outcome(module, *arguments):
    return cli.outcome(module.main, module.Config, module.PRESETS, [*arguments])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_preset_can_work(name):
    for preset in RECIPES[name].PRESETS.values():
        preset.check()


@pytest.mark.parametrize("name", ["cifar", "medical", "vit"])
def test_a_recipe_leaves_a_run(name, tmp_path, capsys):
    flags = ("--preset", "smoke", "--epochs", "1", "--mesh", "2x1", "--microbatches", "2", "--sharpness", "0.05")
    assert outcome(RECIPES[name], *flags, "--run", str(tmp_path / "run")) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["experiment"] == name
    assert np.isfinite(record["metrics"]["test/loss"])
    said = capsys.readouterr().out
    assert all(f"  {score} " in said for score in ("recall", "f1", "auc"))
    assert f"python -m experiments.{name}" in said


@pytest.mark.parametrize(
    ("name", "flags", "problem"),
    [
        ("cifar", ("--policy", "trivial"), "unknown policy 'trivial'"),
        ("cifar", ("--mixing", "cutmixup"), "unknown mixing 'cutmixup'"),
        ("cifar", ("--erasing", "2"), "2.0"),
        ("vit", ("--patch", "3"), "do not divide into patches of 3x3"),
        ("vit", ("--heads", "3"), "3 heads do not divide a width of 32"),
        ("medical", ("--rotation", "nan"), "degrees nan"),
        ("medical", ("--data", "lines", "--data-dir", "TEXT"), "no class"),
        ("cifar", ("--data", "lines", "--data-dir", "TEXT"), "inputs of int32"),
        ("resnet", ("--data", "lines", "--data-dir", "TEXT"), "inputs of int32"),
    ],
)
def test_a_recipe_refuses(name, flags, problem, tmp_path, capsys):
    (tmp_path / "text").write_text("one\ntwo\nthree\n" * 20)
    flags = [flag.replace("TEXT", str(tmp_path / "text")) for flag in flags]
    assert outcome(RECIPES[name], "--preset", "smoke", "--mesh", "1x1", *flags, "--run", str(tmp_path / "run")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert problem in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.fixture
def medmnist(tmp_path):
    """Real digits 0 to 2 in MedMNIST's layout, labels [n, 1], one class in ten of the examples of another."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    keep = [np.flatnonzero(digits.target == number) for number in range(3)]
    keep[2] = keep[2][:30]
    columns = {}
    for start, split in enumerate(("train", "val", "test")):
        rows = np.concatenate([places[start::3] for places in keep])
        columns |= {f"{split}_images": images[rows], f"{split}_labels": digits.target[rows, None].astype(np.uint8)}
    np.savez(tmp_path / "set.npz", **columns)
    return tmp_path / "set.npz"


def test_medical_reads_the_layout_and_judges_on_validation_data(medmnist, tmp_path):
    flags = ("--epochs", "40", "--batch-size", "16", "--learning-rate", "3e-3", "--no-flip", "--mesh", "1x1")
    assert outcome(medical, *flags, "--data-dir", str(medmnist), "--run", str(tmp_path / "run")) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["selected"]["by"] == "validation/auc"
    for score in ("accuracy", "recall_macro", "f1_macro", "auc"):
        assert record["metrics"][f"test/{score}"] > 0.8, record["metrics"]
        assert f"validation/{score}" in record["metrics"]


def test_a_part_of_the_examples_is_the_same_for_every_seed():
    config = dataclasses.replace(resnet.PRESETS["smoke"], examples=100)
    whole = data.load("digits", seed=0)
    parts = [recipe.part(whole, 100).train for _ in range(2)]
    np.testing.assert_array_equal(parts[0].indices, parts[1].indices)
    assert recipe.part(whole, len(whole.train)) is whole
    assert abs(len(recipe.dataset(config).train) - 100) <= 5
    counts, every = (np.bincount(data.labels(source), minlength=10) for source in (parts[0], whole.train))
    np.testing.assert_allclose(counts, every * 100 / len(whole.train), atol=1)
