"""Several runs as one page: their scores, curves and settings side by side. No network and no script."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from lepton_jax.report import chart, comparison
from lepton_jax.report.comparison import Run
from lepton_jax.report.document import document, escape, marked_up, table
from lepton_jax.report.numbers import NONE, cell, signed

WIDE = {
    "train/loss",
    "validation/loss",
    "test/loss",
    "train/gradient_norm",
}  # over orders of magnitude when a run diverges
MINUS = "−"  # noqa: RUF001  as wide as a plus
CURVES = {
    "Train loss": "train/loss",
    "Validation loss": "validation/loss",
    "Validation accuracy": "validation/accuracy",
    "Test loss": "test/loss",
    "Test accuracy": "test/accuracy",
    "Learning rate": "train/learning_rate",
    "Gradient norm": "train/gradient_norm",
}


def render(found: Sequence[Run], place: pathlib.Path) -> str:
    """The page as HTML, to lie in the directory `place`, from where it links to the runs' own pages."""
    experiments = list(dict.fromkeys(run.experiment for run in found))
    heading = f"{len(found)} runs of {comparison.listed(experiments)}"
    told = "".join(f"<p>{escape(remark)}</p>" for remark in comparison.remarks(found))
    sections = {
        "Scores": scores(found),
        "Curves": curves(found),
        "Flags that differ": flags(found),
        "Runs": facts(found),
        "Versions": versions(found),
    }
    return document(heading, heading, sections.items(), legend(found, place) + told)


def legend(found: Sequence[Run], place: pathlib.Path) -> str:
    """Which letter and colour is which run, with a link to its own page where it has one."""
    rows = []
    for n, run in enumerate(found):
        page, name = run.directory / "report.html", escape(run.name)
        if page.exists():
            name = f'<a href="{escape(quote(os.fsencode(comparison.link(page, place))))}">{name}</a>'
        state = comparison.facts(run)["status"]
        rows.append(f"<li>{sign(n, run)} {name}<span>{escape(state)}</span></li>")
    return f'<ul class="legend">{"".join(rows)}</ul>'


def sign(n: int, run: Run) -> str:
    """A run's letter, in its colour."""
    return f'<b class="line{n}">{run.letter}</b>'


def scores(found: Sequence[Run]) -> str:
    """Each metric of each run, the best marked, with differences from the baseline."""
    names, base = comparison.metrics(found), comparison.baseline(found)
    if not names:
        return "<p>Nothing has been evaluated yet.</p>"
    rows = [[escape(comparison.label(name)), *(score(run, base, name, found) for run in found)] for name in names]
    leading = sum(map(comparison.leads, names)) or len(names)
    marked = any(comparison.best(found, name) for name in names)
    note = ["The best of each row is marked."] * marked
    if base is not None and any(comparison.difference(run, base, name) is not None for run in found for name in names):
        note.append(f"Below a score stands its difference from {base.letter}.")
    tables = [
        beside(found, rows[:leading]),
        details("Other metrics", beside(found, rows[leading:]) if rows[leading:] else ""),
    ]
    return f"<p>{' '.join(note)}</p>" * bool(note) + "".join(tables)


def score(run: Run, base: Run | None, metric: str, found: Sequence[Run]) -> str:
    """One cell of the scores."""
    shown, more = cell(run.scores.get(metric)), comparison.difference(run, base, metric)
    if run.result is None:
        return f"<em>{shown}</em>"
    shown = f"<mark>{shown}</mark>" if run.letter in comparison.best(found, metric) else shown
    return shown if more is None else f"{shown}<small>{signed(more).replace('-', MINUS, 1)}</small>"


def curves(found: Sequence[Run]) -> str:
    """A chart for each of CURVES that any run has, with a line per run."""
    figures = []
    for title, name in CURVES.items():
        series = {f"{run.letter} {run.name}": [(row.get("epoch"), row.get(name)) for row in run.rows] for run in found}
        scale = chart.suited([y for points in series.values() for _, y in points]) if name in WIDE else chart.LINEAR
        if picture := chart.lines(series, "epoch", [run.letter for run in found], scale):
            caption = title if scale is chart.LINEAR else f'{title}<span class="key">logarithmic</span>'
            figures.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    if not figures:
        return "<p>Nothing was logged.</p>"
    key = "".join(f'<span class="key line{n}">{run.letter} {escape(run.name)}</span>' for n, run in enumerate(found))
    return f'<p class="keys">{key}</p><div class="charts">{"".join(figures)}</div>'


def flags(found: Sequence[Run]) -> str:
    """The flags that are not the same in all runs; the others unfold."""
    differing, shared = comparison.aligned([comparison.flags(run) for run in found])
    rest = table([], shared.items(), "facts") if shared else ""
    return (rows_of(found, differing) or "<p>Every flag is the same.</p>") + details("Flags that all share", rest)


def versions(found: Sequence[Run]) -> str:
    """The versions that are not the same in all runs, and the others in a line."""
    differing, shared = comparison.aligned([comparison.versions(run) for run in found])
    common = ", ".join(f"{name} {version}" for name, version in shared.items())
    return rows_of(found, differing) + (f"<p>The same in all: {escape(common)}.</p>" if common else "")


def facts(found: Sequence[Run]) -> str:
    """What each run is and how far it came."""
    columns = [comparison.facts(run) for run in found]
    names = dict.fromkeys(name for column in columns for name in column)
    return rows_of(found, {name: [column.get(name, NONE) for column in columns] for name in names})


def rows_of(found: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> str:
    """Texts by name, a column per run; "" without any."""
    return beside(found, [[escape(name), *map(escape, texts)] for name, texts in rows.items()]) if rows else ""


def beside(found: Sequence[Run], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells with a column per run; all such tables on the page have columns of one width."""
    head = ["", *(f"{sign(n, run)}<span>{escape(run.name)}</span>" for n, run in enumerate(found))]
    return f'<div class="beside" style="--runs: {len(found)}">{marked_up(head, rows, "runs")}</div>'


def details(summary: str, content: str) -> str:
    """Content that unfolds; "" without any."""
    return f"<details><summary>{summary}</summary>{content}</details>" if content else ""
