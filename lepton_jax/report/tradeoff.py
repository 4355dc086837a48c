"""What compressions of one run have won and cost, as a page: size against accuracy, and every audit."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lepton_jax import runs
from lepton_jax.report import chart
from lepton_jax.report.document import document, table

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NOT_SAID = (
    "Masks are not speed: a product with zeros takes as long as one without, and a sparse file is unpacked to run.",
    "Weights in 4 bits, and in 8 bits without activations, are size only: on a CPU they are unpacked to be multiplied.",
    "Multiplications are not milliseconds: what they take is measured, on the machine that is named, and nowhere else.",
    "Accuracy is of one run. A difference of a few tenths of a point between two of them is within what a seed moves.",
)


def write(directory: pathlib.Path, title: str, audits: Mapping[str, Mapping[str, Any]], machine: str) -> pathlib.Path:
    """DIRECTORY/report.html, one self-contained page. audits: records of `compress.audit`, by name."""
    path = directory / "report.html"
    runs.replace(path, page(title, audits, machine))
    return path


def page(title: str, audits: Mapping[str, Mapping[str, Any]], machine: str) -> str:
    """The page as HTML."""
    sections = [
        ("Accuracy against size", picture(audits)),
        ("Audits", table(["", *(column.head for column in columns(audits))], rows(audits), "numbers")),
        ("What these numbers do not say", "".join(f"<p>{line}</p>" for line in NOT_SAID)),
    ]
    return document(title, title, sections, f"<p>Timed on {machine}; times are medians of calls in turn.</p>")


def picture(audits: Mapping[str, Mapping[str, Any]]) -> str:
    """A point for each model, marked by the letter that its row in the table has."""
    models = [next(iter(audits.values()))["before"], *(one["after"] for one in audits.values())]
    names = ["dense", *audits]
    points = {name: [(one["bytes"] / 1000, 100 * one["accuracy"])] for name, one in zip(names, models, strict=True)}
    drawn = chart.lines(points, "kB in the file", ends=LETTERS[: len(names)])
    caption = "<figcaption>accuracy in percent</figcaption>"
    return f'<div class="charts"><figure>{caption}{drawn}</figure><div></div></div>'


class Column(NamedTuple):
    """text: of a model's record, or where `compared` of an audit's, for then the dense model has none."""

    head: str
    text: Callable[[Mapping[str, Any]], str]
    compared: bool = False


def columns(audits: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """What is said of every model."""
    found = [
        Column("kB", lambda model: f"{model['bytes'] / 1e3:,.1f}"),
        Column("size", lambda audit: f"{audit['size']:.2f}x", True),
        Column("million MACs", lambda model: f"{model['macs'] / 1e6:,.2f}"),
        Column("MACs", lambda audit: f"{audit['macs']:.2f}x", True),
    ]
    for n in next(iter(audits.values()))["speed"]:
        found.append(Column(f"ms, batch {n}", lambda model, n=n: f"{model['milliseconds'][n]:.3g}"))
        found.append(Column(f"speed, batch {n}", lambda audit, n=n: f"{audit['speed'][n]:.2f}x", True))
    # audits of earlier versions say nothing of layers
    for n in {n: None for audit in audits.values() for n in audit.get("layers", {})}:
        found.append(Column(f"factored layers, batch {n}", lambda audit, n=n: _layers(audit, n), True))
    return [*found, Column("accuracy", lambda model: f"{model['accuracy']:.4f}"), Column("points", gained, True)]


def _layers(audit: Mapping[str, Any], n: str) -> str:
    ratio = audit.get("layers", {}).get(n)
    return f"{ratio:.2f}x" if ratio else ""


def rows(audits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row for the dense model and one for each compression."""
    dense, shown = next(iter(audits.values()))["before"], columns(audits)
    found = [["a  dense", *("" if column.compared else column.text(dense) for column in shown)]]
    for letter, (name, one) in zip(LETTERS[1:], audits.items(), strict=False):
        texts = [column.text(one if column.compared else one["after"]) for column in shown]
        found.append([f"{letter}  {name}", *texts])
    return found


def gained(one: Mapping[str, Any]) -> str:
    """Hundredths of accuracy against the dense model, of which a zero has no sign."""
    return f"{0.0 - round(one['points'], 2):+.2f}" if round(one["points"], 2) else "0.00"
