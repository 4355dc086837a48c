"""Numbers as people read them."""

import math
from typing import Any

NONE = "–"  # noqa: RUF001  what stands where there is no value
FORMATS = {
    "step": "step {:>6,}",
    "epoch": "epoch {:>6.2f}",
    "recall_macro": "recall {:.4f}",
    "f1_macro": "f1 {:.4f}",
    "learning_rate": "learning rate {:<8.3g}",
    "examples_per_second": "{:>7,.0f} examples/s",
}


def quantity(name: str, value: Any) -> str:
    """A number with its name or unit: `loss 0.4312`, `12,345 examples/s`."""
    return FORMATS[name].format(value) if name in FORMATS else f"{name} {number(value)}"


def number(value: Any) -> str:
    """A number as people read it: integers whole, others to four decimals, or as 1.23e-05 where those say little."""
    if isinstance(value, int):
        return f"{value:,}"
    plain = value == 0 or 1e-3 <= abs(value) < 1e4 or not math.isfinite(value)
    return f"{value:.4f}" if plain else f"{value:.2e}"


def cell(value: Any) -> str:
    """A number in a table; a dash where there is none, or NaN."""
    return NONE if value is None or value != value else number(value)


def signed(value: float) -> str:
    """A difference with its sign, to four decimals where those say anything; none as `=`."""
    size = abs(value)
    return "=" if value == 0 else f"{'+' if value > 0 else '-'}{f'{size:.4f}' if 5e-5 <= size < 1e4 else number(size)}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
