"""Early stopping and the best checkpoint: by rows alone, resumed alike, never on the test data where there is other."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from experiments import resnet
from lepton_jax import checkpoint, cli, report, runs, selection

NAN = float("nan")


def rows(values, name="validation/accuracy", every=1.0):
    return [{"step": 10 * k, "epoch": every * k, name: value} for k, value in enumerate(values, 1)]


@hypothesis.given(st.lists(st.floats(0, 1) | st.just(NAN) | st.none(), max_size=12), st.integers(1, 5))
def test_stopping_is_what_a_counter_would_do(values, patience):
    """The textbook loop with a counter, as the reference."""
    best, bad = -np.inf, 0
    for value in values:
        better = value is not None and value > best
        best, bad = (value, 0) if better else (best, bad + 1)
    assert selection.stalled(rows(values), "validation/accuracy", patience, 1.0) == (bad >= patience)


@pytest.mark.parametrize(
    ("every", "patience", "waits"), [(0.7, 2.1, 3), (0.1, 0.3, 3), (1, 2.5, 3), (2, 1, 1), (1, 1, 1)]
)
def test_patience_is_counted_in_exact_epochs(every, patience, waits):
    for after in range(5):
        judged = rows([0.5] + [0.4] * after, every=every)
        assert selection.stalled(judged, "validation/accuracy", patience, every) == (after >= waits)


def test_the_best_is_the_first_of_equals_and_of_loss_the_least():
    assert selection.best(rows([0.1, 0.9, NAN, None, 0.9]), "validation/accuracy") == (20, 2.0, 0.9)
    assert selection.best(rows([3.0, 1.0, 2.0], "test/loss"), "test/loss") == (20, 2.0, 1.0)
    assert selection.best(rows([NAN, None]), "validation/accuracy") is None
    assert selection.best(rows([0.5]), "test/accuracy") is None


QUICK = ("--preset", "smoke", "--model", "mlp", "--batch-size", "16", "--learning-rate", "0.02")


def run(directory, *arguments, mesh="1x1"):
    code = cli.outcome(
        resnet.main, resnet.Config, resnet.PRESETS, [*QUICK, "--mesh", mesh, "--run", str(directory), *arguments]
    )
    assert code == 0
    return json.loads((directory / "result.json").read_text())


@pytest.fixture
def arrays(tmp_path):
    """Real digits, with a validation split of noise: its accuracy says nothing, so stopping soon is sure."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = np.uint8(digits.images * 15), digits.target
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    splits = {"train": slice(0, 96), "test": slice(96, 160)}
    content = {f"{name}_images": images[part] for name, part in splits.items()}
    content |= {f"{name}_labels": labels[part] for name, part in splits.items()}
    np.savez(tmp_path / "data.npz", **content, val_images=noise, val_labels=np.arange(64) % 10)
    return ("--data", "npz", "--data-dir", str(tmp_path / "data.npz"), "--epochs", "30", "--rotation", "0")


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def killed_at(monkeypatch, step):
    """The process dies when that step was dispatched."""

    def progress(self, number):
        if number == step:
            raise Killed

    monkeypatch.setattr(report.Lines, "progress", progress)


def evaluations(directory):
    return [
        {name: value for name, value in row.items() if name.startswith(("validation/", "test/", "step"))}
        for row in runs.rows(directory)
        if any(name.startswith(("validation/", "test/")) for name in row)
    ]


def test_a_run_stops_on_validation_data_and_resumes_alike(arrays, tmp_path, monkeypatch):
    flags = (*arrays, "--patience", "3", "--restore", "best")
    whole = run(tmp_path / "whole", *flags)
    judged = runs.rows(tmp_path / "whole")
    best = selection.best(judged, "validation/accuracy")
    assert best is not None
    assert whole["steps"] == whole["stopped"]["step"] == best.step + 3 * 6 < 30 * 6
    assert whole["stopped"]["reason"] == "validation/accuracy has not risen in 3 epoch(s)"
    assert whole["selected"] == {"of": "best", "by": "validation/accuracy", "step": best.step}
    assert whole["metrics"]["validation/accuracy"] == best.value
    assert not any("test/accuracy" in row for row in judged)  # looked at once, at the end

    with monkeypatch.context() as patch:
        killed_at(patch, best.step + 9)
        with pytest.raises(Killed):
            run(tmp_path / "cut", *flags)
    again = run(tmp_path / "cut", *flags)
    for name in ("metrics", "steps", "stopped", "selected"):
        assert again[name] == whole[name]
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "whole")

    (tmp_path / "cut" / "result.json").unlink()  # as if it had died between its last checkpoint and its result
    shown = run(tmp_path / "cut", *flags)
    assert {**shown, "seconds": 0} == {**again, "seconds": 0}
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "whole")


def test_the_same_stop_on_another_mesh(arrays, tmp_path):
    one, other = (run(tmp_path / mesh, *arrays, "--patience", "2", mesh=mesh) for mesh in ("1x1", "4x2"))
    assert (one["stopped"], one["selected"]) == (other["stopped"], other["selected"])


def test_without_validation_data_the_test_data_chooses_and_the_run_says_so(tmp_path, capsys):
    done = run(tmp_path / "run", "--epochs", "2", "--restore", "best", "--monitor", "loss")
    assert done["selected"]["by"] == "test/loss"
    assert done["stopped"] == {"step": done["steps"], "epoch": 2.0042, "reason": "after all 2 epochs"}
    assert "there is no validation data" in capsys.readouterr().out
    best = selection.best(runs.rows(tmp_path / "run"), "test/loss")
    assert best is not None
    assert done["metrics"]["test/loss"] == best.value


def test_the_best_checkpoint_outlives_the_newest_and_is_found_again(tmp_path):
    import jax
    import jax.numpy as jnp

    from lepton_jax.types import TrainState

    def saved(name, scores, keep=1):
        with checkpoint.Checkpoints(tmp_path / name, keep, name) as checkpoints:
            for step, value in enumerate(scores, 1):
                state = TrainState(jnp.int32(step), {"w": jnp.ones(2)}, {}, (), jax.random.key(0))
                checkpoints.save(state, {}, {} if value is None else {name: value})
        with checkpoint.Checkpoints(tmp_path / name, keep, name) as checkpoints:
            return checkpoints.best(), sorted(int(path.name) for path in (tmp_path / name).iterdir())

    assert saved("accuracy", [0.1, 0.9, 0.5, None, 0.9, 0.2]) == (2, [2, 6])
    assert saved("loss", [3.0, 1.0, 2.0, NAN]) == (2, [2, 4])
    assert saved("auc", [NAN, None])[0] is None
