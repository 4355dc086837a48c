"""What compressions of one run have won and cost, as a page: size against accuracy, and every audit."""

import pathlib
from collections.abc import Mapping
from typing import Any

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
        ("Audits", table(head(audits), rows(audits), "numbers")),
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


def head(audits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The columns."""
    sizes = next(iter(audits.values()))["speed"]
    times = [f"{what}, batch {n}" for n in sizes for what in ("ms", "speed")]
    return ["", "kB", "size", "million MACs", "MACs", *times, "accuracy", "points"]


def rows(audits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row for the dense model and one for each compression."""
    first = next(iter(audits.values()))
    found = [row("a  dense", first["before"], dict.fromkeys(first["speed"], ""), "", "", "")]
    for letter, (name, one) in zip(LETTERS[1:], audits.items(), strict=False):
        speed = {n: f"{ratio:.2f}x" for n, ratio in one["speed"].items()}
        found.append(
            row(f"{letter}  {name}", one["after"], speed, f"{one['size']:.2f}x", f"{one['macs']:.2f}x", gained(one))
        )
    return found


def gained(one: Mapping[str, Any]) -> str:
    """Hundredths of accuracy against the dense model, of which a zero has no sign."""
    return f"{0.0 - round(one['points'], 2):+.2f}" if round(one["points"], 2) else "0.00"


def row(name: str, one: Mapping[str, Any], speed: Mapping[str, str], size: str, macs: str, points: str) -> list[str]:
    """One model's figures as texts."""
    times = [text for n, ratio in speed.items() for text in (f"{one['milliseconds'][n]:.3g}", ratio)]
    kilobytes, millions = f"{one['bytes'] / 1e3:,.1f}", f"{one['macs'] / 1e6:,.2f}"
    return [name, kilobytes, size, millions, macs, *times, f"{one['accuracy']:.4f}", points]
