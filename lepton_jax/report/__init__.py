"""What a run shows and records: the screen, metrics.jsonl, TensorBoard events, and pages to read in a browser.

The reporters' names are here; `report.page` is a run as one page, and `python -m lepton_jax.report RUN1 RUN2 ...`
lays several side by side. None of it imports JAX.
"""

from lepton_jax.report.base import History, Reporter, Row, Together
from lepton_jax.report.numbers import clock, number, quantity
from lepton_jax.report.records import Events, Journal
from lepton_jax.report.terminal import Bar, Lines, screen, sentence

__all__ = [
    "Bar",
    "Events",
    "History",
    "Journal",
    "Lines",
    "Reporter",
    "Row",
    "Together",
    "clock",
    "number",
    "quantity",
    "screen",
    "sentence",
]
