"""RUN/report.html: a run as one page, which needs no network and no script."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_jax import runs
from lepton_jax.report import chart, supervision
from lepton_jax.report.document import document, escape, table
from lepton_jax.report.numbers import cell, clock

CONFUSION = 50  # classes up to which the whole confusion matrix is shown
TILES = {
    "accuracy": "test accuracy",
    "recall_macro": "recall, macro",
    "f1_macro": "F1, macro",
    "auc": "AUC, macro",
    "top5": "top 5",
    "loss": "test loss",
}
CURVES = {
    "Loss": {"train": "train/loss", "validation": "validation/loss", "test": "test/loss"},
    "Accuracy": {"validation": "validation/accuracy", "test": "test/accuracy"},
    "Learning rate": {"learning rate": "train/learning_rate"},
    "Gradient norm": {"gradient norm": "train/gradient_norm"},
}


@dataclass(frozen=True)
class Example:
    """One example as the page shows it."""

    position: int  # in its source
    image: str  # a data URI
    truth: str
    predicted: str
    probability: float  # of what was predicted


@dataclass(frozen=True)
class Examples:
    """Examples of both kinds, each with the number that it was taken from."""

    wrong: Sequence[Example]  # the surest mistakes first
    right: Sequence[Example]  # drawn, so that they stand for all
    mistakes: int
    hits: int


@dataclass(frozen=True)
class Page:
    """A run as the page tells it."""

    record: Mapping[str, Any]  # as in result.json
    facts: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]  # as in metrics.jsonl
    confusion: Any  # int [classes, classes]; rows are the truth, columns the prediction
    per_class: Sequence[Mapping[str, Any]]  # examples, precision, recall, f1, auc
    classes: Sequence[str]
    flags: Mapping[str, Any]
    command: str  # that makes the run anew
    examples: Examples | None = None  # where inputs are images
    events: Sequence[Mapping[str, Any]] = ()  # as in launch/events.jsonl


def write(directory: pathlib.Path, page: Page) -> None:
    """Write report.html into the run directory, complete or not at all, with what a supervisor saw of the run."""
    watched = replace(page, events=supervision.events(directory))
    runs.replace(directory / "report.html", render(watched))


def render(page: Page) -> str:
    """The page as HTML; every text in it is escaped."""
    title = f"{page.record.get('experiment', 'run')} on {page.flags.get('data', 'data')}"
    accuracy = page.record.get("metrics", {}).get("test/accuracy")
    sections = {
        "Curves": curves(page.rows),
        "Classes": classes(page),
        "Confusion": confusion(page),
        "Examples": examples(page.examples) if page.examples else "",
        "Run": facts(page),
        "Processes": supervision.section(page.events),
        "The same again": again(page),
    }
    named = title if accuracy is None else f"{title}: {cell(accuracy)}"
    return document(named, title, sections.items(), tiles(page.record))


def tiles(record: Mapping[str, Any]) -> str:
    """The final scores, large."""
    scores = record.get("metrics", {})
    shown = ((label, scores[f"test/{name}"]) for name, label in TILES.items() if f"test/{name}" in scores)
    return '<div class="tiles">' + "".join(f"<div><b>{cell(v)}</b>{escape(t)}</div>" for t, v in shown) + "</div>"


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each of CURVES that the rows have anything of."""
    figures = []
    for title, names in CURVES.items():
        logged = {label: name for label, name in names.items() if any(row.get(name) is not None for row in rows)}
        series = {label: [(row.get("epoch"), row.get(name)) for row in rows] for label, name in logged.items()}
        if picture := chart.lines(series, "epoch"):
            legend = "".join(f'<span class="key line{n}">{escape(label)}</span>' for n, label in enumerate(series))
            caption = f"{title} {legend if len(names) > 1 else ''}"
            figures.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else "<p>Nothing was logged.</p>"


def facts(page: Page) -> str:
    """What the run was."""
    record = page.record
    told = {
        **page.facts,
        "steps": f"{record.get('steps', 0):,}, which is {record.get('examples', 0):,} examples",
        "time": clock(record.get("seconds", 0.0)),
        "seed": record.get("seed", ""),
    }
    for split in ("validation", "test"):
        judged = [row for row in page.rows if row.get(f"{split}/accuracy") is not None]
        if judged:
            best = max(judged, key=lambda row: row[f"{split}/accuracy"])
            at = f"at epoch {best.get('epoch', 0):.2f}"
            told[f"best {split} accuracy"] = f"{cell(best[f'{split}/accuracy'])} {at}"
    if choice := record.get("selected"):
        by = f", the best by {choice['by']}" if choice["of"] == "best" else ", the last"
        told["result of"] = f"step {choice['step']:,}{by}"
    if reason := record.get("stopped", {}).get("reason"):
        told["stopped"] = reason
    return table([], told.items(), "facts")


def classes(page: Page) -> str:
    """Precision, recall, F1 and AUC by class; past CONFUSION classes the weakest first."""
    columns = ("examples", "precision", "recall", "f1", "auc")
    rows = [
        (name, *(cell(row.get(column)) for column in columns), row.get("f1", 0.0))
        for name, row in zip(page.classes, page.per_class, strict=True)
    ]
    many = len(rows) > CONFUSION
    if many:
        rows.sort(key=lambda row: row[-1])
    note = "<p>The weakest classes come first.</p>" if many else ""
    return note + table(("class", *columns), (row[:-1] for row in rows), "numbers")


def confusion(page: Page) -> str:
    """What is taken for what: the most frequent mistakes, and up to CONFUSION classes the whole matrix."""
    counts = np.asarray(page.confusion)
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [divmod(int(place), len(counts)) for place in order if wrong.flat[place]]
    rows = [(page.classes[t], page.classes[p], cell(int(wrong[t, p]))) for t, p in pairs]
    mistakes = table(("truth", "taken for", "examples"), rows, "counts") if rows else "<p>There is no mistake.</p>"
    whole = matrix(counts, page.classes) if len(counts) <= CONFUSION else ""
    return f'<div class="side">{whole}<div><h3>Most frequent mistakes</h3>{mistakes}</div></div>'


def matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """The confusion matrix as a table, shaded by the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    upright = "upright" if max(map(len, names)) > 3 else ""
    top = "".join(f'<th scope="col" title="{escape(name)}"><span>{escape(name)}</span></th>' for name in names)
    lines = []
    for truth, name in enumerate(names):
        cells = (shaded(int(counts[truth, p]), float(shares[truth, p]), truth == p) for p in range(len(names)))
        lines.append(f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{"".join(cells)}</tr>')
    head = f'<thead class="{upright}"><tr><td></td>{top}</tr></thead>'
    caption = "<caption>Rows are the truth, columns the prediction.</caption>"
    return (
        f'<div class="scroll whole"><table class="matrix">{caption}{head}<tbody>{"".join(lines)}</tbody></table></div>'
    )


def shaded(count: int, share: float, right: bool) -> str:
    """A cell of the matrix; the root makes rare mistakes visible."""
    if not count:
        return "<td></td>"
    return f'<td class="{"right" if right else "wrong"}" style="--share:{share**0.5:.2f}">{count:,}</td>'


def examples(found: Examples) -> str:
    """Images that the model took for something else, and such that it knew."""
    mistakes = (figure(e, f"<b>{escape(e.truth)}</b>, taken for <b>{escape(e.predicted)}</b>") for e in found.wrong)
    hits = (figure(e, f"<b>{escape(e.truth)}</b>") for e in found.right)
    wrong = gallery("Wrong, the surest first", mistakes, len(found.wrong), found.mistakes, "mistakes")
    return wrong + gallery("Right, drawn at random", hits, len(found.right), found.hits, "right answers")


def gallery(heading: str, figures: Iterable[str], shown: int, all_: int, what: str) -> str:
    """Figures under a heading that says how many of how many they are."""
    count = f"{shown} of {all_:,} {what}." if all_ else f"There are no {what}."
    grid = f'<div class="examples">{"".join(figures)}</div>' if all_ else ""
    return f"<h3>{heading}</h3><p>{count}</p>{grid}"


def figure(example: Example, told: str) -> str:
    """An image, what is said of it, the probability that the model gave its answer, and where it stands in the data."""
    words = f"example {example.position}: {example.truth}, predicted {example.predicted}"
    below = f"<span>{example.probability:.1%}, #{example.position}</span>"
    picture = f'<img src="{example.image}" alt="{escape(words)}">'
    return f"<figure>{picture}<figcaption>{told}{below}</figcaption></figure>"


def again(page: Page) -> str:
    """The command that makes the run anew, and every flag."""
    rows = ((f"--{name.replace('_', '-')}", "" if value is None else value) for name, value in page.flags.items())
    flags = f"<details><summary>All flags</summary>{table([], rows, 'facts')}</details>"
    return f"<pre>{escape(page.command)}</pre>{flags}"
