"""Who holds what, as a picture: a column for each client, stacked by class."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lepton_jax.errors import InputError

SHOWN = 100  # clients; more columns cannot be told apart


def draw(
    path: str | pathlib.Path, held: Int[np.ndarray, "clients classes"], classes: Sequence[str], title: str
) -> None:
    """Write the picture (PNG, SVG or PDF, by the path's ending) of how many examples of each class each client holds.

    held: see `partition.held`. Of more than SHOWN clients the first ones are shown, and the title says so. Raises
    InputError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise InputError("matplotlib is not installed", "pip install 'lepton-jax[plot]'") from error
    shown = held[:SHOWN]
    figure = Figure(figsize=(max(6.0, 2.5 + 0.12 * len(shown)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = _colours(len(classes))
    below = np.zeros(len(shown), held.dtype)
    for number, name in enumerate(classes):
        axes.bar(np.arange(len(shown)), shown[:, number], 0.85, bottom=below, color=colours[number], label=name)
        below = below + shown[:, number]
    first = f", the first {SHOWN} of {len(held):,} clients" if len(held) > SHOWN else ""
    axes.set_title(title + first, loc="left", fontsize=10)
    axes.set_xlabel("client")
    axes.set_ylabel("examples")
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    if len(classes) <= 20:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=150)


def _colours(classes: int) -> list:
    from matplotlib import colormaps

    if classes <= 10:
        return [colormaps["tab10"](number) for number in range(classes)]
    return [colormaps["turbo"](share) for share in np.linspace(0.04, 0.96, classes)]
