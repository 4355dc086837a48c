"""Line charts as inline SVG, coloured by the page that holds them.

Colours are the CSS variables --line0, --line1 ...; text and axes take the colour of the text around.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Points = Sequence[tuple[float | None, float | None]]

WIDTH, HEIGHT = 420, 230  # units of the view box; the picture scales with the page
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 10, 34  # what the labels need
POINTS = 400  # per line; more cannot be seen
MARKED = 30  # a line of at most so many points shows each of them
WIDE = 1000  # greatest over least, from where equal steps would hide the small values
APART = 11  # the least distance of two names at the ends of lines


def lines(series: Mapping[str, Points], x_label: str, ends: Sequence[str] = (), scale: "Scale | None" = None) -> str:
    """One chart of several named lines from x = 0 on; "" where nothing can be drawn. Past POINTS, points are averaged.

    ends: a short name for each line, of a letter or two, written where the line ends. scale: of y.
    """
    scale = scale or LINEAR
    drawn = {name: thinned(finite(points, scale)) for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return ""
    x_ticks, y_ticks = ticks([0.0, *(x for x, _ in every)], 6), scale.ticks([y for _, y in every], 5)
    bottom, height = scale.of(y_ticks[0]), scale.of(y_ticks[-1]) - scale.of(y_ticks[0])
    end = max(x for x, _ in every) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / end, (scale.of(y) - bottom) / height
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    x_ticks = [x for x in x_ticks if x <= end]
    parts = [grid(x_ticks, y_ticks, place, end), text(place(end, y_ticks[0]), x_label, "end", 29)]
    parts += [line(n, name, points, place, x_label) for n, (name, points) in enumerate(drawn.items()) if points]
    parts.append(endings([(n, place(*points[-1])) for n, points in enumerate(drawn.values()) if points], ends))
    label = html.escape(", ".join(name for name, points in drawn.items() if points))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def finite(points: Points, scale: "Scale") -> list[tuple[float, float]]:
    """The points that can be drawn."""
    whole = ((x, y) for x, y in points if x is not None and y is not None)
    return [(x, y) for x, y in whole if math.isfinite(x) and math.isfinite(y) and y >= scale.least]


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


def powers(values: Sequence[float], wanted: int) -> list[float]:
    """Powers of ten, about `wanted` of them, from below the least value to above the greatest."""
    first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    span = max(last - first, 1)
    step = math.ceil(span / wanted)
    return [10.0 ** (first + step * number) for number in range(math.ceil(span / step) + 1)]


class Scale(NamedTuple):
    """How y is laid out: proportional to `of(y)`, for y of at least `least`, with `ticks(values, wanted)`."""

    of: Callable[[float], float]
    least: float
    ticks: Callable[[Sequence[float], int], list[float]]


LINEAR = Scale(float, -math.inf, ticks)
LOGARITHMIC = Scale(math.log10, 1e-300, powers)


def suited(values: Sequence[float | None]) -> Scale:
    """LOGARITHMIC for positive values that reach over a factor of WIDE, else LINEAR."""
    real = [y for y in values if y is not None and math.isfinite(y)]
    return LOGARITHMIC if real and min(real) > 0 and max(real) > WIDE * min(real) else LINEAR


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
        parts.append(text((left - 6, level), short(y), "end", 4))
    parts += [text(place(x, y_ticks[0]), f"{x:.6g}", "middle", 16) for x in x_ticks]
    return "".join(parts)


def short(value: float) -> str:
    """A number beside an axis: 0.25, 40000, 2e+06 as 2e6."""
    mantissa, _, exponent = f"{value:.6g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def line(
    number: int,
    name: str,
    points: Sequence[tuple[float, float]],
    place: Callable[[float, float], tuple[float, float]],
    x_label: str,
) -> str:
    """A line in the colour of its number; a single point, and each of few, is a dot."""
    colour = f"var(--line{number})"
    path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'
    dots = (marker(place(*point), colour, name, x_label, point) for point in points if len(points) <= MARKED)
    return f'<g class="series{number}">{drawn}{"".join(dots)}</g>'


def marker(at: tuple[float, float], colour: str, name: str, x_label: str, point: tuple[float, float]) -> str:
    """A dot that tells its numbers under the pointer."""
    told = html.escape(f"{name} {point[1]:.4g} at {x_label} {point[0]:.4g}")
    return f'<circle cx="{at[0]}" cy="{at[1]}" r="2.5" fill="{colour}"><title>{told}</title></circle>'


def endings(ends: Sequence[tuple[int, tuple[float, float]]], names: Sequence[str]) -> str:
    """The names of lines to the right of where each ends, in its colour, so that colour is not all that tells."""
    parts = []
    for column in columns([end for end in ends if end[0] < len(names)]):
        for (number, (x, _)), level in zip(column, spread([y for _, (_, y) in column]), strict=True):
            at = f'x="{x + 5:.1f}" y="{level + 4:.1f}"'
            parts.append(f'<text class="end" {at} style="fill:var(--line{number})">{html.escape(names[number])}</text>')
    return "".join(parts)


def columns(ends: Sequence[tuple[int, tuple[float, float]]]) -> list[list[tuple[int, tuple[float, float]]]]:
    """Ends of lines, those together whose names could lie on each other."""
    found: list[list[tuple[int, tuple[float, float]]]] = []
    for end in sorted(ends, key=lambda end: end[1][0]):
        if found and end[1][0] - found[-1][-1][1][0] < APART:
            found[-1].append(end)
        else:
            found.append([end])
    return found


def spread(levels: Sequence[float]) -> list[float]:
    """Levels moved as little as it takes to lie APART from each other, from top to bottom in their order."""
    order = sorted(range(len(levels)), key=lambda number: levels[number])
    # groups of neighbours that touch: each is centred on the mean of where its members want to be
    groups: list[list[int]] = []
    for number in order:
        groups.append([number])
        while len(groups) > 1 and top(groups[-1], levels) < top(groups[-2], levels) + APART * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    moved = {number: top(group, levels) + APART * n for group in groups for n, number in enumerate(group)}
    return [moved[number] for number in range(len(levels))]


def top(group: Sequence[int], levels: Sequence[float]) -> float:
    """The level of a group's first name, when its names lie APART around the mean of their levels; on the picture."""
    height = APART * (len(group) - 1)
    middle = sum(levels[number] for number in group) / len(group)
    return min(max(middle - height / 2, TOP), HEIGHT - BOTTOM - height)


def text(at: tuple[float, float], words: str, anchor: str, below: float) -> str:
    """Small words at a point, or `below` it."""
    x, y = at
    return f'<text x="{x}" y="{y + below:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
