"""Run directories: recognised, refused, made whole or not at all, and cut back to a checkpoint."""

import json
import shutil
from collections import namedtuple

import pytest

from lepton_jax import runs
from lepton_jax.errors import InputError

CONFIG = {"seed": 0, "mesh": "8x1", "eval_every": float("inf"), "clip": None}
IDENTITY = {"parameters": 10, "data": "abc"}
RECORD = {"experiment": "resnet", "config": CONFIG, "identity": IDENTITY}


@pytest.fixture
def made(tmp_path):
    directory = tmp_path / "run"
    runs.create(directory, RECORD, 0)
    return directory


def test_a_run_recognises_itself_also_on_another_mesh(made):
    assert runs.check(made, "resnet", CONFIG, IDENTITY)
    assert runs.check(made, "resnet", {**CONFIG, "mesh": "1x1"}, IDENTITY)


@pytest.mark.parametrize(
    ("experiment", "config", "identity", "problem"),
    [
        ("vit", CONFIG, IDENTITY, "belongs to the experiment 'resnet', not 'vit'"),
        ("resnet", {**CONFIG, "seed": 1}, IDENTITY, "seed = 0, not 1"),
        ("resnet", {**CONFIG, "clip": 1.0}, IDENTITY, "clip = None, not 1.0"),
        ("resnet", {**CONFIG, "new_flag": 1}, IDENTITY, "new_flag = None, not 1"),
        ("resnet", CONFIG, {**IDENTITY, "data": "abd"}, "data = 'abc', not 'abd'"),
        ("resnet", CONFIG, {**IDENTITY, "parameters": 11}, "parameters = 10, not 11"),
    ],
)
def test_another_run_is_refused(made, experiment, config, identity, problem):
    with pytest.raises(InputError, match=problem):
        runs.check(made, experiment, config, identity)


def test_new_and_empty_directories_are_new(tmp_path):
    assert not runs.check(tmp_path, "resnet", CONFIG, IDENTITY)
    (tmp_path / "supervised" / "launch").mkdir(parents=True)
    assert not runs.check(tmp_path / "supervised", "resnet", CONFIG, IDENTITY)
    shutil.rmtree(tmp_path / "supervised")
    assert not runs.check(tmp_path / "new", "resnet", CONFIG, IDENTITY)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[1]", '{"experiment": "resnet"}', "\xff", '{"compilerOptions": {}}'])
def test_a_stranger_with_a_config_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json is not a run's"):
        runs.check(tmp_path, "resnet", CONFIG, IDENTITY)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_not_a_run_is_refused(tmp_path, kind):
    place = tmp_path / "thesis"
    if kind == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        (place / "chapter").write_text("precious")
    with pytest.raises(InputError, match="is not a run directory"):
        runs.check(place, "resnet", CONFIG, IDENTITY)


@pytest.mark.parametrize("place", ["file/run", "file/deep/run"])
def test_a_directory_that_cannot_be_made_leaves_nothing(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        runs.create(tmp_path / place, RECORD, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_without_room_is_refused_and_left_as_it_was(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 0, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="needs up to 2 MB and 1 MB are free"):
        runs.create(tmp_path / "a" / "b", RECORD, 2 * 10**6)
    assert not any(tmp_path.iterdir())


def test_a_record_that_cannot_be_written_takes_the_new_directories_with_it(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        runs.create(tmp_path / "a" / "b", RECORD, 0)
    assert not any(tmp_path.iterdir())


def test_creating_again_keeps_the_first_record(made):
    runs.create(made, {**RECORD, "experiment": "other"}, 0)
    assert json.loads((made / "config.json").read_text())["experiment"] == "resnet"


def test_a_record_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    runs.write(path, {"accuracy": 0.5, "auc": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 0.5, "auc": None}

    def interrupted(*_):
        raise OSError("gone")

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(OSError, match="gone"):
        runs.write(path, {"accuracy": 0.6})
    assert json.loads(path.read_text())["accuracy"] == 0.5
    assert [found.name for found in tmp_path.iterdir()] == ["result.json"]


def test_writing_names_what_could_not_be_written(tmp_path):
    with pytest.raises(InputError) as error, runs.writing(tmp_path):
        (tmp_path / "absent" / "x").write_text("")
    assert str(tmp_path / "absent" / "x") in error.value.problem
    with pytest.raises(InputError, match=f"{tmp_path}: No space left"), runs.writing(tmp_path):
        raise OSError(28, "No space left on device")


def test_rewind_keeps_whole_rows_up_to_the_step(tmp_path):
    assert runs.rewind(tmp_path, 3) == []
    assert not any(tmp_path.iterdir())
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3, 4)) + '{"step": 2, "train/l')
    assert runs.rewind(tmp_path, 3) == [{"step": 1}, {"step": 2}, {"step": 2}, {"step": 3}]
    assert runs.rows(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 2}, {"step": 3}]
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_fresh_paths_never_meet(tmp_path):
    names = set()
    for _ in range(3):
        path = runs.fresh("resnet", str(tmp_path))
        assert not path.exists()
        path.mkdir()
        names.add(path.name)
    assert len(names) == 3
