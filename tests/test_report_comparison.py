"""Runs side by side: what is compared, what is refused, and the page that `python -m lepton_jax.report` writes."""

import json
import os
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

from lepton_jax import cli
from lepton_jax.errors import InputError
from lepton_jax.report import __main__ as program
from lepton_jax.report import comparison, numbers, printed, side_by_side
from tests.test_report import Tags

FLAGS = {"data": "digits", "seed": 0, "epochs": 2, "learning_rate": 0.1, "mesh": None}
VERSIONS = {"python": "3.11", "jax": "0.10.2"}


def a_run(directory, scores=None, experiment="resnet", identity="same", versions=VERSIONS, rows=(), **flags):
    """A run directory; without `scores` it is unfinished."""
    directory.mkdir(parents=True)
    config = {
        "experiment": experiment,
        "config": {**FLAGS, **flags},
        "identity": {"parameters": 1234, "data": identity},
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if scores is not None:
        (directory / "report.html").write_text("a page")
        metrics = {f"test/{name}": value for name, value in scores.items()}
        told = {"status": "complete", "steps": 40, "examples": 4000, "metrics": metrics, "seconds": 61.0}
        more = {"mesh": {"data": 8, "model": 1}, "devices": "8 cpu simulated", "versions": versions}
        (directory / "result.json").write_text(json.dumps({**told, **more}))
    return directory


def rows(shift=0.0):
    train = [{"step": s, "epoch": s / 10, "train/loss": 2.0 / s + shift} for s in range(1, 20)]
    return [*train, {"step": 20, "epoch": 2.0, "test/accuracy": 0.7 + shift, "test/loss": 0.6}]


@pytest.fixture
def runs(tmp_path):
    return [
        a_run(tmp_path / "a", {"accuracy": 0.9, "loss": 0.5, "f1_macro": 0.7}, rows=rows()),
        a_run(tmp_path / "b", {"accuracy": 0.8, "loss": 0.4, "f1_macro": 0.7}, rows=rows(0.1), seed=1),
        a_run(tmp_path / "c", rows=rows(0.2), learning_rate=0.4),
    ]


def test_the_best_is_the_greatest_or_for_losses_the_least_and_only_of_finished_runs(runs):
    found = comparison.read(runs)
    assert comparison.best(found, "test/accuracy") == {"A"}
    assert comparison.best(found, "test/loss") == {"B"}
    assert comparison.best(found, "test/f1_macro") == set()  # a tie of all is no best
    assert found[2].scores == {"test/accuracy": pytest.approx(0.9), "test/loss": 0.6}
    assert [comparison.difference(run, found[0], "test/accuracy") for run in found] == [None, pytest.approx(-0.1), None]


def test_the_first_finished_run_is_the_baseline(runs):
    found = comparison.read(runs[::-1])
    assert comparison.baseline(found) is found[1]
    assert comparison.baseline(comparison.read([runs[2], a_run(runs[0].parent / "d")])) is None


def test_validation_scores_stand_beside_those_of_the_test_data(tmp_path):
    judged = [{"step": 5, "epoch": 1.0, "validation/accuracy": 0.6, "validation/loss": 0.9}]
    one = a_run(tmp_path / "a", {"accuracy": 0.5, "precision_macro": 0.4}, rows=judged)
    found = comparison.read([one, a_run(tmp_path / "b", rows=judged)])
    named = [comparison.label(name) for name in comparison.metrics(found)]
    assert named == ["accuracy", "validation accuracy", "validation loss", "precision, macro"]
    assert found[1].scores == {"validation/accuracy": 0.6, "validation/loss": 0.9}
    assert Tags(side_by_side.render(found, tmp_path)).seen.count("svg") == 2


def test_metrics_that_are_null_or_not_everywhere_are_compared_where_they_are(tmp_path):
    given = [{"accuracy": 0.5, "auc": None}, {"accuracy": 0.5, "auc": 0.9, "bleu": 3.0}, {"error": 0.1}]
    found = comparison.read([a_run(tmp_path / str(n), scores) for n, scores in enumerate(given)])
    assert comparison.metrics(found) == ["test/accuracy", "test/auc", "test/bleu", "test/error"]
    assert comparison.best(found, "test/auc") == set()
    assert comparison.difference(found[1], found[0], "test/auc") is None


def test_only_flags_that_differ_are_rows_and_the_rest_is_shared(runs):
    differing, shared = comparison.aligned([comparison.flags(run) for run in comparison.read(runs)])
    assert differing == {"--seed": ["0", "1", "0"], "--learning-rate": ["0.1", "0.1", "0.4"]}
    assert shared == {"--data": "digits", "--epochs": "2", "--mesh": "not set"}


def test_a_flag_of_one_experiment_alone_differs_and_two_is_two_however_written(tmp_path):
    runs = [a_run(tmp_path / "a", {}, epochs=2.0), a_run(tmp_path / "b", {}, "vit", patch=4)]
    differing, _ = comparison.aligned([comparison.flags(run) for run in comparison.read(runs)])
    assert differing == {"--patch": [numbers.NONE, "4"]}


def test_versions_of_an_unfinished_run_do_not_differ(runs):
    differing, shared = comparison.aligned([comparison.versions(run) for run in comparison.read(runs)])
    assert (differing, shared) == ({}, VERSIONS)


@pytest.mark.parametrize(
    ("changes", "word"), [({"identity": "other"}, "data"), ({"experiment": "vit"}, "experiments"), ({}, None)]
)
def test_what_makes_scores_hard_to_compare_is_said(tmp_path, changes, word):
    told = comparison.remarks(comparison.read([a_run(tmp_path / "a", {}), a_run(tmp_path / "b", {}, **changes)]))
    assert len(told) == (word is not None)
    assert word is None or word in told[0]


def test_names_are_as_short_as_tells_them_apart():
    assert comparison.shortest([("x", "runs", "a"), ("x", "runs", "b")]) == ["a", "b"]
    assert comparison.shortest([("x", "one", "a"), ("x", "two", "a"), ("a",)]) == ["one/a", "two/a", "a"]


@pytest.mark.parametrize(
    ("mesh", "told"), [({"data": 8, "model": 1}, "8x1"), ({"data": 4, "fsdp": 2}, "data=4,fsdp=2")]
)
def test_a_mesh_is_written_as_its_flag(mesh, told):
    assert comparison.axes(mesh) == told


@pytest.mark.parametrize(
    ("value", "told"), [(0.0306, "+0.0306"), (-0.5, "-0.5000"), (0, "="), (-6e-4, "-0.0006"), (2e-6, "+2.00e-06")]
)
def test_differences_have_a_sign(value, told):
    assert numbers.signed(value) == told


def test_the_page_marks_the_best_and_overlays_the_curves(runs):
    read = Tags(side_by_side.render(comparison.read(runs), runs[0].parent))
    assert read.seen.count("mark") == 2
    assert {"0.9000", "0.4000"} <= set(read.words)
    assert "−0.1000" in read.words  # noqa: RUF001
    assert read.seen.count("svg") == 3  # train loss, test loss, accuracy; nothing else was logged
    assert read.seen.count("polyline") == 9
    assert "C is unfinished: the scores are those so far, and not ranked." in read.words
    assert "unfinished, at step 20" in read.words
    assert "Every flag is the same." not in read.words


def test_the_page_needs_no_script_and_no_network_and_its_links_are_relative_and_right(tmp_path, runs):
    odd = a_run(tmp_path / "x" / "a%20 b#?c:d", {"accuracy": 0.1})
    place = tmp_path / "pages" / "deep"
    read = Tags(side_by_side.render(comparison.read([*runs, odd]), place))
    links = [value for name, value in read.attributes if name == "href"]
    assert len(links) == 3  # the unfinished one has no page
    for link, run in zip(links, [*runs[:2], odd], strict=True):
        parts = urllib.parse.urlsplit(link)
        assert (parts.scheme, parts.netloc, link.startswith("/")) == ("", "", False)
        assert pathlib.Path(os.path.normpath(place / urllib.parse.unquote(parts.path))) == run / "report.html"
    assert not {"script", "link", "img", "iframe"} & set(read.seen)
    assert not [name for name, _ in read.attributes if name == "src" or name.startswith("on")]


def test_every_text_is_escaped_on_the_page_and_as_it_is_on_the_terminal(tmp_path, capsys):
    hostile = "[bold]<script>alert(1)<"
    one = a_run(tmp_path / "[red]<b>", {hostile: 1.0}, experiment=hostile, versions={hostile: hostile}, data=hostile)
    found = comparison.read([one, a_run(tmp_path / "b", {hostile: 2.0}, identity=hostile, **{hostile: hostile})])
    read = Tags(side_by_side.render(found, tmp_path))
    assert "script" not in read.seen
    assert hostile in read.words
    printed.show(found)
    shown = capsys.readouterr().out
    assert shown.count(hostile) >= 4
    assert "[red]<b>" in shown


def test_eight_runs_fit_a_terminal_of_eighty_columns(tmp_path):
    import rich.console

    scores = {"accuracy": 0.91234, "f1_macro": 0.9, "auc": 0.99, "top5": 1.0, "loss": 0.3}
    runs = [
        a_run(tmp_path / f"run{n}", {k: v - n / 100 for k, v in scores.items()}, learning_rate=n / 8) for n in range(8)
    ]
    plain = rich.console.Console(width=80)
    with plain.capture() as captured:
        plain.print(printed.told(comparison.read(runs)))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("accuracy"))
    assert row.split() == ["accuracy", "0.9123*", *(f"{0.91234 - n / 100:.4f}" for n in range(1, 8))]
    row = next(line for line in lines if line.startswith("--learning-rate"))
    assert row.split()[1:] == [comparison.said(n / 8) for n in range(8)]


def test_the_command_prints_a_table_and_writes_the_page(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    program.main(tuple(runs), out)
    shown = capsys.readouterr().out
    assert not [line for line in shown.splitlines() if line != line.rstrip()]
    assert shown.splitlines()[-1].split() == ["page", str(out)]
    assert "0.9000*" in shown
    Tags(out.read_text())
    program.main(tuple(runs[:2]), out)  # its own page it replaces
    assert "2 runs" in out.read_text()


def refused(capsys, monkeypatch, tmp_path, *arguments):
    """The two lines that the command ends with; nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = cli.guarded(lambda: cli.call(program.main, arguments=[str(argument) for argument in arguments]))
    error = capsys.readouterr().err
    assert (code, len(error.splitlines())) == (2, 2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    return error


def test_what_is_no_run_is_refused(runs, tmp_path, capsys, monkeypatch):
    def error(*arguments):
        return refused(capsys, monkeypatch, tmp_path, *arguments)

    (tmp_path / "link").symlink_to(runs[0])
    for name in ("empty", "d.html"):
        (tmp_path / name).mkdir()
    broken = {name: a_run(tmp_path / name, {}) for name in ("config", "result", "journal", "list")}
    (broken["config"] / "config.json").write_text("{")
    (broken["list"] / "config.json").write_text("[]")
    (broken["result"] / "result.json").write_text('{"status": "complete"}')
    (broken["journal"] / "metrics.jsonl").write_text("{\n")
    assert "0 runs" in error()
    assert "1 run is" in error(runs[0])
    assert "9 runs" in error(*map(str, range(9)))
    assert "not there" in error(runs[0], "nowhere")
    assert "not a directory" in error(runs[0], runs[0] / "config.json")
    assert "no config.json" in error(runs[0], "empty")
    assert f"name the runs in it, as {runs[0]}" in error(runs[0], tmp_path)
    assert "given twice" in error(runs[0], runs[1], runs[0])
    assert "the same run as" in error(runs[0], "link")
    assert "config.json cannot be read" in error(runs[0], "config")
    assert "not a run's" in error(runs[0], "list")
    assert "no 'metrics'" in error(runs[0], "result")
    assert "metrics.jsonl cannot be read" in error(runs[0], "journal")
    assert "--uot" in error(*runs, "--uot", "x")
    assert ".html" in error(*runs, "--out", "config.json")
    assert "is a directory" in error(*runs, "--out", "d.html")
    assert "page of a run" in error(*runs, "--out", runs[0] / "report.html")
    assert "cannot be written" in error(*runs, "--out", tmp_path / "nowhere" / "x.html")


def test_an_input_error_names_a_way_out(tmp_path):
    with pytest.raises(InputError) as caught:
        comparison.read([tmp_path, tmp_path / "x"])
    assert caught.value.remedy


def test_the_command_does_not_wait_for_jax():
    code = "import sys, lepton_jax.report.__main__; print(*{'jax', 'flax', 'optax', 'orbax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
