"""RUN/report.html: a run as one page, which needs no network and no script."""

import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax import chart, report, runs

CONFUSION = 50  # classes up to which the whole confusion matrix is shown
TILES = {
    "accuracy": "test accuracy",
    "f1_macro": "F1, macro",
    "auc": "AUC, macro",
    "top5": "top 5",
    "loss": "test loss",
}
CURVES = {
    "Loss": {"train": "train/loss", "test": "test/loss"},
    "Test accuracy": {"accuracy": "test/accuracy"},
    "Learning rate": {"learning rate": "train/learning_rate"},
    "Gradient norm": {"gradient norm": "train/gradient_norm"},
}


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


def write(directory: pathlib.Path, page: Page) -> None:
    """Write report.html into the run directory, complete or not at all."""
    runs.replace(directory / "report.html", render(page))


def render(page: Page) -> str:
    """The page as HTML; every text in it is escaped."""
    title = f"{page.record.get('experiment', 'run')} on {page.flags.get('data', 'data')}"
    accuracy = page.record.get("metrics", {}).get("test/accuracy")
    sections = {
        "Curves": curves(page.rows),
        "Classes": classes(page),
        "Confusion": confusion(page),
        "Run": facts(page),
        "The same again": again(page),
    }
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections.items() if content)
    named = title if accuracy is None else f"{title}: {number(accuracy)}"
    head = f"{HEAD.replace('TITLE', escape(named))}<h1>{escape(title)}</h1>"
    return f"{head}{tiles(page.record)}{body}</main></body></html>\n"


def escape(text: Any) -> str:
    """Text as HTML shows it; what is not valid Unicode (a class named by a broken file name) as `?`."""
    return html.escape(str(text).encode("utf-8", "replace").decode())


def number(value: Any) -> str:
    """A number as the screen writes it; a dash where there is none, or NaN."""
    return "–" if value is None or value != value else report.number(value)  # noqa: RUF001


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = (
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table class="{kind}">{thead}<tbody>{"".join(lines)}</tbody></table></div>'


def tiles(record: Mapping[str, Any]) -> str:
    """The final scores, large."""
    scores = record.get("metrics", {})
    shown = ((label, scores[f"test/{name}"]) for name, label in TILES.items() if f"test/{name}" in scores)
    return '<div class="tiles">' + "".join(f"<div><b>{number(v)}</b>{escape(t)}</div>" for t, v in shown) + "</div>"


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each of CURVES that the rows have anything of."""
    figures = []
    for title, names in CURVES.items():
        series = {label: [(row.get("epoch"), row.get(name)) for row in rows] for label, name in names.items()}
        if picture := chart.lines(series, "epoch"):
            legend = "".join(f'<i class="line{n}">{escape(label)}</i>' for n, label in enumerate(series))
            caption = f"{title} {legend if len(series) > 1 else ''}"
            figures.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else "<p>Nothing was logged.</p>"


def facts(page: Page) -> str:
    """What the run was."""
    record = page.record
    told = {
        **page.facts,
        "steps": f"{record.get('steps', 0):,}, which is {record.get('examples', 0):,} examples",
        "time": report.clock(record.get("seconds", 0.0)),
        "seed": record.get("seed", ""),
    }
    tested = [row for row in page.rows if row.get("test/accuracy") is not None]
    if tested:
        best = max(tested, key=lambda row: row["test/accuracy"])
        told["best test accuracy"] = f"{number(best['test/accuracy'])} at epoch {best.get('epoch', 0):.2f}"
    return table([], told.items(), "facts")


def classes(page: Page) -> str:
    """Precision, recall, F1 and AUC by class; past CONFUSION classes the weakest first."""
    columns = ("examples", "precision", "recall", "f1", "auc")
    rows = [
        (name, *(number(row.get(column)) for column in columns), row.get("f1", 0.0))
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
    pairs = [divmod(int(cell), len(counts)) for cell in order if wrong.flat[cell]]
    rows = [(page.classes[t], page.classes[p], number(int(wrong[t, p]))) for t, p in pairs]
    mistakes = table(("truth", "taken for", "examples"), rows) if rows else "<p>There is no mistake.</p>"
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


def again(page: Page) -> str:
    """The command that makes the run anew, and every flag."""
    rows = ((f"--{name.replace('_', '-')}", "" if value is None else value) for name, value in page.flags.items())
    flags = f"<details><summary>All flags</summary>{table([], rows, 'facts')}</details>"
    return f"<pre>{escape(page.command)}</pre>{flags}"


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>TITLE</title><style>
:root { color-scheme: light dark; --page: #fff; --text: #1d2430; --soft: #5c6675; --rule: #dfe3e8; --panel: #f6f7f9;
  --line0: #2468c9; --line1: #d9730d; --right: 70 130 220; --wrong: 230 120 40; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --text: #e4e7ec; --soft: #98a2b1; --rule: #2d333d;
  --panel: #1c2027; --line0: #6ea8ff; --line1: #f5a35c; --right: 60 115 205; --wrong: 200 95 25; } }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 1.7rem; margin: 0 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 34px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 0 0 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; color: var(--soft); }
.tiles div { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.tiles b { display: block; font-size: 1.5rem; color: var(--text); font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 18px 28px; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: var(--soft); }
figcaption i { font: 400 .85rem system-ui, sans-serif; color: var(--soft); margin-left: 12px; }
figcaption i::before { content: ""; display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 0; }
.line0::before { background: var(--line0); } .line1::before { background: var(--line1); }
.scroll { overflow: auto; max-height: 36rem; } .whole { max-height: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top; } th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.facts th { color: var(--soft); white-space: nowrap; } .facts td { overflow-wrap: anywhere; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; }
thead th { color: var(--soft); position: sticky; top: 0; background: var(--page); }
.side { display: flex; flex-wrap: wrap; gap: 24px 48px; } .side > * { max-width: 100%; }
.matrix td, .matrix th { border: 1px solid var(--rule); padding: 3px 7px; text-align: right; min-width: 1.4em; }
.matrix thead td { border: 0; } .matrix caption { text-align: left; color: var(--soft); padding-bottom: 6px; }
.matrix th { white-space: nowrap; max-width: 11em; overflow: hidden; text-overflow: ellipsis; }
.matrix tbody th { position: sticky; left: 0; background: var(--page); }
.matrix .upright span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11em; overflow: hidden; }
.right { background: rgb(var(--right) / calc(.75 * var(--share))); }
.wrong { background: rgb(var(--wrong) / calc(.9 * var(--share))); }
pre { background: var(--panel); border-radius: 8px; padding: 12px 14px; overflow: auto; }
summary { cursor: pointer; margin-bottom: 8px; }
</style></head><body><main>"""
