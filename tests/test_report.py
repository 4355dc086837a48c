"""What a run shows and records: the screen, strict JSON, TensorBoard events, the page."""

import html.parser
import importlib
import io
import itertools
import json
import math
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jax import metrics, report, runs
from lepton_jax.report import chart, page, style

NAN = float("nan")
TRAIN = {"step": 40, "epoch": 2.6667, "train/loss": 0.43121, "train/learning_rate": 0.09524, "train/input_idle": 0.1}
TEST = {"step": 40, "epoch": 2.6667, "test/loss": 1.5, "test/accuracy": 0.75, "test/f1_macro": NAN, "test/auc": NAN}


class Tags(html.parser.HTMLParser):
    """Reads a page: its tags balance, and what it says outside of <style>."""

    VOID = ("meta", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def a_page(number=3, **changes):
    confusion = np.eye(number, dtype=int) * 5
    confusion[0, 1] = 2
    names = tuple(f"class{c}" for c in range(number))
    given = {
        "record": {"experiment": "resnet", "steps": 40, "seconds": 3.2, "metrics": {"test/accuracy": 0.75}},
        "facts": {"devices": "8 simulated"},
        "rows": [TRAIN, TEST],
        "confusion": confusion,
        "per_class": metrics.per_class_table(confusion, np.full(number, 0.5)),
        "classes": names,
        "flags": {"data": "digits", "run": None},
        "command": "python -m experiments.resnet",
    }
    return page.Page(**{**given, **changes})


@pytest.mark.parametrize("classes", [2, 50, 51, 100])
def test_a_page_is_whole_html_for_any_number_of_classes(classes):
    read = Tags(page.render(a_page(classes)))
    assert read.seen.count("td") >= 5 * classes
    assert {f"class{c}" for c in range(classes)} <= set(read.words)
    # the mistake is named, and the whole matrix is there while it can be read
    assert "taken for" in read.words
    assert ("Rows are the truth, columns the prediction." in read.words) == (classes <= 50)


def test_past_fifty_classes_the_weakest_come_first():
    confusion = np.eye(60, dtype=int) * 5
    confusion[50, 0] = 20
    words = Tags(page.render(a_page(60, confusion=confusion, per_class=metrics.per_class_table(confusion)))).words
    assert words.index("class0") < words.index("class50") < words.index("class1")


def test_the_page_needs_no_script_and_no_network():
    read = Tags(page.render(a_page()))
    assert not {"script", "link", "img", "iframe"} & set(read.seen)
    assert not [name for name, _ in read.attributes if name in ("src", "href") or name.startswith("on")]


def test_the_page_says_which_state_it_is_of_and_why_the_run_ended():
    record = {
        "selected": {"of": "best", "by": "validation/auc", "step": 1200},
        "stopped": {"reason": "validation/auc has not risen in 3 epoch(s)"},
    }
    words = Tags(page.render(a_page(record=record))).words
    assert "step 1,200, the best by validation/auc" in words
    assert "validation/auc has not risen in 3 epoch(s)" in words


def test_every_text_is_escaped():
    hostile = '"><script>alert(1)</script>'
    record = {"experiment": hostile, "metrics": {}}
    texts = {"facts": {hostile: hostile}, "flags": {"data": hostile, "x": hostile}, "command": hostile}
    written = page.render(a_page(3, record=record, classes=(hostile, "b", "\udcff"), **texts))
    read = Tags(written)
    assert "script" not in read.seen
    assert not [value for name, value in read.attributes if "script" in (value or "") and name != "title"]
    assert read.words.count(hostile) >= 5
    written.encode()


def test_rows_may_be_empty_or_lack_what_is_drawn():
    assert "svg" not in Tags(page.render(a_page(rows=[]))).seen
    rows = [{"step": 1}, {"step": 2, "epoch": 0.5, "train/loss": None}, {"epoch": 1.0, "train/loss": NAN}]
    assert "svg" not in Tags(page.render(a_page(rows=rows))).seen
    read = Tags(page.render(a_page(rows=[*rows, {"epoch": 1.0, "train/loss": 2.0}])))
    assert read.seen.count("svg") == 1
    assert "nan" not in " ".join(read.words).lower()


def test_a_run_with_validation_data_shows_it_beside_the_others():
    rows = [
        TRAIN,
        *({"step": s, "epoch": s / 10, "validation/accuracy": s / 50, "validation/loss": 0.3} for s in (1, 2)),
    ]
    read = Tags(page.render(a_page(rows=rows)))
    legend = [word for word in read.words if word in ("train", "validation", "test")]
    assert legend == ["train", "validation", "validation"]
    assert "0.0400 at epoch 0.20" in read.words


def test_metrics_that_are_nan_are_dashes():
    record = {"experiment": "resnet", "metrics": {"test/accuracy": 0.5, "test/auc": NAN}}
    table = metrics.per_class_table(np.eye(3, dtype=int), np.full(3, NAN))
    read = Tags(page.render(a_page(record=record, per_class=table)))
    assert read.words.count("–") == 4  # noqa: RUF001
    assert "nan" not in " ".join(read.words).lower()


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    page.write(tmp_path, a_page())
    before = (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="zip"):
        page.write(tmp_path, a_page(per_class=[]))
    assert (tmp_path / "report.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_chart_lines_lie_inside_the_picture_and_keep_their_order():
    points = [(x / 100, math.sin(x / 50)) for x in range(5000)]
    read = Tags(chart.lines({"a": points, "b": [(50.0, 3.0)]}, "epoch"))
    path = next(value for name, value in read.attributes if name == "points")
    places = np.array([pair.split(",") for pair in path.split()], float)
    assert len(places) == chart.POINTS
    assert np.all(np.diff(places[:, 0]) >= 0)
    assert places.min() >= 0
    assert np.all(places.max(axis=0) <= (chart.WIDTH, chart.HEIGHT))


@pytest.mark.parametrize("values", [(1e-3, 5.0), (2.0, 3.0), (1.0, 1.0), (1e-30, 1e30), (10.0, 1000.0)])
def test_powers_of_ten_enclose_the_values(values):
    ticks = chart.powers(values, 5)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= min(values) * (1 + 1e-9)
    assert ticks[-1] >= max(values) * (1 - 1e-9)
    assert np.allclose(np.log10(ticks), np.round(np.log10(ticks)))


def test_a_logarithmic_chart_has_equal_steps_for_equal_factors_and_leaves_out_what_has_no_logarithm():
    points = [(0.0, 0.0), (1.0, 1000.0), (2.0, -1.0), (3.0, 1.0), (4.0, 0.001)]
    read = Tags(chart.lines({"a": points}, "epoch", scale=chart.LOGARITHMIC))
    path = next(value for name, value in read.attributes if name == "points")
    places = np.array([pair.split(",") for pair in path.split()], float)
    assert len(places) == 3
    assert places[1, 1] - places[0, 1] == pytest.approx(places[2, 1] - places[1, 1], abs=0.2)


@pytest.mark.parametrize(
    ("values", "scale"), [([1e-3, None, 9.0], "LOGARITHMIC"), ([0.1, 9.0], "LINEAR"), ([], "LINEAR")]
)
def test_the_scale_suits_the_values(values, scale):
    assert chart.suited([*values, NAN]) is getattr(chart, scale)
    assert chart.suited([*values, -1.0]) is chart.LINEAR


@given(st.lists(st.floats(chart.TOP, chart.HEIGHT - chart.BOTTOM), min_size=1, max_size=8))
def test_names_at_the_ends_of_lines_never_lie_on_each_other(levels):
    moved = chart.spread(levels)
    assert np.all(np.diff(np.sort(moved)) >= chart.APART - 1e-6)
    assert min(moved) >= chart.TOP - 1e-6
    assert max(moved) <= chart.HEIGHT - chart.BOTTOM + 1e-6
    # what is higher stays higher, and what has room stays where it is
    assert np.all(np.diff(np.array(moved)[np.argsort(levels, kind="stable")]) > 0)
    if np.all(np.diff(np.sort(levels)) >= chart.APART):
        assert moved == pytest.approx(levels)


def test_a_line_without_points_keeps_the_others_in_their_colours():
    written = chart.lines({"a": [], "b": [(1.0, 2.0)], "c": [(1.0, 2.5)]}, "epoch", "ABC")
    read = Tags(written)
    assert {value for name, value in read.attributes if name == "class"} == {"series1", "series2", "end"}
    assert {"B", "C"} <= set(read.words)
    assert "A" not in read.words


def linear(colour):
    """The linear RGB of #rrggbb (IEC 61966-2-1)."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2's ratio."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """CIE L*a*b* of linear RGB, with the white of sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = xyz @ rgb / (xyz @ np.ones(3))
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Vienot, Brettel and Mollon 1999: linear RGB as dichromats see it
DICHROMATS = {
    "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    "all": np.eye(3),
}


@pytest.mark.parametrize(("colours", "behind"), [(style.LIGHT, style.PAGES[0]), (style.DARK, style.PAGES[1])])
@pytest.mark.parametrize("eyes", DICHROMATS)
def test_eight_lines_can_be_told_apart_by_all_eyes(colours, behind, eyes):
    assert len(set(colours)) == 8
    assert min(contrast(colour, behind) for colour in colours) >= 3
    seen = [lab(np.clip(np.array(DICHROMATS[eyes]) @ linear(colour), 0, 1)) for colour in colours]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) >= 10  # CIE 1976; 2.3 is just noticeable


@pytest.mark.parametrize("values", [(0.0, 1.0), (3.0, 3.0), (0.0, 0.0), (-2e-7, 5e-7), (1.0, 12345.0), (-9.0, -8.9)])
def test_ticks_are_round_and_enclose_the_values(values):
    ticks = chart.ticks(values, 5)
    assert 2 <= len(ticks) <= 8
    margin = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] <= min(values) + margin
    assert ticks[-1] >= max(values) - margin
    step = ticks[1] - ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


@pytest.mark.parametrize(
    ("value", "written"),
    [(12345, "12,345"), (0.0, "0.0000"), (0.43121, "0.4312"), (1.2e-05, "1.20e-05"), (123456.7, "1.23e+05")],
)
def test_numbers_are_written_for_people(value, written):
    assert report.number(value) == written


def test_clock_writes_minutes_and_hours():
    assert [report.clock(s) for s in (0, 59.6, 61, 3599.7, 7321)] == ["0:00", "1:00", "1:01", "1:00:00", "2:02:01"]


def test_plain_lines_align_and_leave_out_what_is_missing(capsys):
    lines = report.Lines()
    lines.train(TRAIN | {"train/examples_per_second": 12345.6})
    lines.train(TRAIN | {"step": 12345, "epoch": 123.4})
    lines.evaluation(TEST)
    lines.stage("evaluating")
    lines.progress(41)
    assert capsys.readouterr().out.splitlines() == [
        "train      step     40  epoch   2.67  loss 0.4312  learning rate 0.0952     12,346 examples/s",
        "train      step 12,345  epoch 123.40  loss 0.4312  learning rate 0.0952",
        "test       step     40  epoch   2.67  loss 1.5000  accuracy 0.7500  f1 nan",
    ]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns that keeps what is written to it."""
    import rich.console

    written = io.StringIO()

    class Terminal(rich.console.Console):
        def __init__(self, **options):
            super().__init__(**options, file=written, force_terminal=True, width=80, color_system=None, _environ={})

    monkeypatch.setattr(rich.console, "Console", Terminal)
    return written


def test_the_bar_waits_for_the_compiler_and_shows_one_line(terminal):
    with report.Bar(12_345) as bar:
        bar.stage("compiling")
        assert "training" not in terminal.getvalue()
        for step in range(6001, 6020):
            bar.progress(step)
        bar.train(TRAIN | {"train/examples_per_second": 12345.6})
        bar.train(TRAIN)
        bar.stage("evaluating")
        bar.evaluation(TEST)
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", terminal.getvalue())
    assert "compiling" in shown
    assert "test       step     40  epoch   2.67  loss 1.5000  accuracy 0.7500" in shown
    last = shown.rstrip().splitlines()[-1]
    assert "6,019/12,345 loss 0.4312   12,346 examples/s in 0:00" in last
    assert max(len(line) for line in re.split(r"[\r\n]", shown)) <= 80


def test_a_bar_that_never_moved_closes_and_lines_before_it_stand(terminal):
    with report.Bar(10) as bar:
        bar.say("model      [bold]name[/bold]  as given " + 60 * "x")
        bar.stage("evaluating")
        bar.evaluation(TEST)
    assert "[bold]name[/bold]  as given " + 60 * "x" in terminal.getvalue()
    assert "training" not in terminal.getvalue()


def test_together_tells_all_and_history_keeps_rows():
    both = [report.History(), report.History()]
    with report.Together(both) as all_:
        all_.say("x")
        all_.stage("compiling")
        all_.progress(1)
        all_.train(TRAIN)
        all_.evaluation(TEST)
    assert [history.rows for history in both] == [[TRAIN, TEST]] * 2


def strictly(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_files_hold_null_for_nan_and_infinity(tmp_path):
    with report.Journal(tmp_path) as journal:
        journal.train(TRAIN | {"train/loss": math.inf})
        journal.evaluation(TEST)
    rows = [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/loss"] is None
    assert rows[1] == TEST | {"test/f1_macro": None, "test/auc": None}
    runs.write(tmp_path / "result.json", {"metrics": {"auc": NAN, "loss": np.float64("-inf")}, "l": [NAN, (1.5, "é")]})
    assert strictly((tmp_path / "result.json").read_text()) == {
        "metrics": {"auc": None, "loss": None},
        "l": [None, [1.5, "é"]],
    }


def test_a_killed_journal_is_cut_back_to_the_checkpoint_and_goes_on(tmp_path):
    with report.Journal(tmp_path) as journal:
        for step in (10, 20, 30):
            journal.train(TRAIN | {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # the kill
    assert [row["step"] for row in runs.rows(tmp_path)] == [10, 20, 30]
    assert [row["step"] for row in runs.rewind(tmp_path, 20)] == [10, 20]
    with report.Journal(tmp_path) as journal:
        journal.evaluation(TEST | {"step": 30})
    assert [row["step"] for row in runs.rows(tmp_path)] == [10, 20, 30]
    assert runs.rows(tmp_path)[0] == TRAIN | {"step": 10}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_directory_without_a_journal_has_no_rows(tmp_path):
    assert runs.rewind(tmp_path, 5) == runs.rows(tmp_path) == []
    assert not list(tmp_path.iterdir())


def scalars(directory):
    """(tag, step, value) of all scalars in the event files: TFRecords of Event messages, in file order."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")

    found = []
    for path in sorted(directory.glob("events*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_events_are_read_back(tmp_path):
    with report.Events(tmp_path) as events:
        events.train(TRAIN)
        events.evaluation(TEST)
    found = scalars(tmp_path / "events")
    assert [(tag, step) for tag, step, _ in found] == [(n, 40) for n in (*TRAIN, *TEST) if n not in ("step", "epoch")]
    values = {tag: value for tag, _, value in found}
    assert values["train/loss"] == pytest.approx(0.43121)
    assert math.isnan(values["test/auc"])


EVENTS = [
    {"time": 1.7e9, "event": "probe", "measured": {}, "chosen": ["a"], "sick": {"b<": "did not answer"}},
    {"time": 1.7e9, "event": "launch", "life": 1, "processes": 2, "hosts": []},
    {"time": 1.7e9, "event": "commit", "step": 3, "ledger": {"productive": 30.0, "lost": 10.0}},
    {"time": 1.7e9, "event": "stall", "process": 1, "phase": "step", "step": 7, "idle": 60.0, "stacks": []},
    {"time": 1.7e9, "event": "restart", "reason": "process 1 was ended by SIGKILL", "failures": 1},
]


def test_a_page_tells_what_the_supervisor_saw(tmp_path):
    (tmp_path / "launch").mkdir()
    lines = [*map(json.dumps, EVENTS), "[]", '{"event": 3}', '{"cut']
    (tmp_path / "launch" / "events.jsonl").write_text("\n".join(lines))
    page.write(tmp_path, a_page())
    words = " ".join(Tags((tmp_path / "report.html").read_text()).words)
    assert "b< was left out: did not answer" in words
    assert "life 1: 2 process(es)" in words
    assert "75.0%" in words
    assert "process 1 did not move for 60.0 s, in step at step 7" in words
    assert "process 1 was ended by SIGKILL; 1 failure(s)" in words
    page.write(tmp_path / "launch", a_page())
    assert "Processes" not in (tmp_path / "launch" / "report.html").read_text()
