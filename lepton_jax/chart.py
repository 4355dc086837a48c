"""Line charts as inline SVG, coloured by the page that holds them.

Colours are the CSS variables --line0, --line1 ...; text and axes take the colour of the text around.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Points = Sequence[tuple[float | None, float | None]]

WIDTH, HEIGHT = 420, 230  # units of the view box; the picture scales with the page
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 34  # what the labels need
POINTS = 400  # per line; more cannot be seen
MARKED = 30  # a line of at most so many points shows each of them


def lines(series: Mapping[str, Points], x_label: str) -> str:
    """One chart of several named lines from x = 0 on; "" where no point is finite. Past POINTS, points are averaged."""
    drawn = {name: thinned(finite(points)) for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return ""
    x_ticks, y_ticks = ticks([0.0, *(x for x, _ in every)], 6), ticks([y for _, y in every], 5)
    end = max(x for x, _ in every) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / end, (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + across * width, 1), round(HEIGHT - BOTTOM - up * height, 1)

    x_ticks = [x for x in x_ticks if x <= end]
    parts = [grid(x_ticks, y_ticks, place, end), text(place(end, y_ticks[0]), x_label, "end", 29)]
    for number, (name, points) in enumerate(drawn.items()):
        colour = f"var(--line{number})"
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [marker(place(*point), colour, name, x_label, point) for point in points if len(points) <= MARKED]
    label = html.escape(", ".join(series))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    whole = ((x, y) for x, y in points if x is not None and y is not None)
    return [(x, y) for x, y in whole if math.isfinite(x) and math.isfinite(y)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of neighbours."""
    if len(points) <= POINTS:
        return list(points)
    return [tuple(part.mean(axis=0).tolist()) for part in np.array_split(np.array(points), POINTS)]


def ticks(values: Sequence[float], wanted: int) -> list[float]:
    """Round numbers, about `wanted` of them, from below the least value to above the greatest."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    place: Callable[[float, float], tuple[float, float]],
    end: float,
) -> str:
    """Horizontal lines, and the numbers on both axes."""
    parts = []
    for y in y_ticks:
        (left, level), (right, _) = place(0.0, y), place(end, y)
        across = f'x1="{left}" x2="{right}" y1="{level}" y2="{level}"'
        parts.append(f'<line {across} stroke="currentColor" opacity=".15"/>')
        parts.append(text((left - 6, level), f"{y:.6g}", "end", 4))
    parts += [text(place(x, y_ticks[0]), f"{x:.6g}", "middle", 16) for x in x_ticks]
    return "".join(parts)


def text(at: tuple[float, float], words: str, anchor: str, below: float) -> str:
    """Small words at a point, or `below` it."""
    x, y = at
    return f'<text x="{x}" y="{y + below:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def marker(at: tuple[float, float], colour: str, name: str, x_label: str, point: tuple[float, float]) -> str:
    """A dot that tells its numbers under the pointer."""
    told = html.escape(f"{name} {point[1]:.4g} at {x_label} {point[0]:.4g}")
    return f'<circle cx="{at[0]}" cy="{at[1]}" r="2.5" fill="{colour}"><title>{told}</title></circle>'
