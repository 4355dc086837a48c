"""Several runs side by side as text, for a terminal or a file."""

import io
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lepton_jax.report import comparison
from lepton_jax.report.comparison import Run
from lepton_jax.report.numbers import NONE, cell, signed

FACTS = ("devices", "mesh", "parameters", "steps", "examples", "time")
FEW = 5  # runs that have room for wider gaps
BESIDE = 200  # columns where the output is not a terminal: long texts go on below


def show(found: Sequence[Run]) -> None:
    """Print runs side by side, in colour on a terminal and plain elsewhere."""
    screen = Console(highlight=False)
    if screen.is_terminal:
        screen.print(told(found))
        return
    written = io.StringIO()
    Console(highlight=False, width=BESIDE, file=written).print(told(found))
    print(*(line.rstrip() for line in written.getvalue().splitlines()), sep="\n")


def told(found: Sequence[Run]) -> Group:
    """The runs by letter, then tables with a column for each."""
    columns = [comparison.facts(run) for run in found]
    facts = {name: [column.get(name, NONE) for column in columns] for name in FACTS}
    flags, _ = comparison.aligned([comparison.flags(run) for run in found])
    versions, _ = comparison.aligned([comparison.versions(run) for run in found])
    texts = {"flags that differ": flags, "runs": facts, "versions that differ": versions}
    tables = [scores(found), *(beside(found, title, rows) for title, rows in texts.items() if rows)]
    remarks = [plain("\n".join(told))] if (told := comparison.remarks(found)) else []
    return Group(legend(found), *(piece for part in [*remarks, *tables] for piece in ("", part)))


def legend(found: Sequence[Run]) -> Table:
    """Which letter is which run, and how far it came."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold cyan")
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    for run in found:
        facts = comparison.facts(run)
        table.add_row(run.letter, plain(run.directory), plain(f"{run.experiment}, {facts['status']}"))
    return table


def empty(found: Sequence[Run], title: str) -> Table:
    """A table without rows, narrow enough for eight runs on 80 columns."""
    apart = 2 if len(found) <= FEW else 1
    table = Table(box=None, padding=(0, 0, 0, apart), pad_edge=False, header_style="bold cyan")
    table.add_column(title, header_style="bold", no_wrap=True, min_width=12)
    for run in found:
        table.add_column(run.letter, justify="right", overflow="fold", min_width=6)
    return table


def scores(found: Sequence[Run]) -> Table:
    """The leading metrics, or all where there are none of those; a terminal has no room for more."""
    names, table = comparison.metrics(found), empty(found, "scores")
    leading = list(filter(comparison.leads, names))
    for name in leading or names:
        table.add_row(plain(comparison.label(name)), *(score(found, run, name) for run in found))
    return table


def beside(found: Sequence[Run], title: str, rows: Mapping[str, Sequence[str]]) -> Table:
    """Texts by name, those that any run has."""
    table = empty(found, title)
    for name, row in rows.items():
        if set(row) != {NONE}:
            table.add_row(plain(name), *map(plain, row))
    return table


def score(found: Sequence[Run], run: Run, metric: str) -> Text:
    """A score, with a star where it is the best, over its difference from the baseline."""
    value, more = run.scores.get(metric), comparison.difference(run, comparison.baseline(found), metric)
    is_best = run.letter in comparison.best(found, metric)
    style = "bold green" if is_best else "dim" if run.result is None else ""
    told = Text(f"{cell(value)}{'*' if is_best else ' '}", style)
    return told if more is None else told.append(f"\n{signed(more)} ", "dim not bold")


def plain(text: object) -> Text:
    """Text as it is, whatever brackets it has; what is not valid Unicode (a broken file name) as `?`."""
    return Text(str(text).encode("utf-8", "replace").decode())
