"""What every recipe of experiments.compress wins and costs, over the seeds of a run.

    python -m benchmarks.compress
    python -m benchmarks.compress --runs DIR --epochs 10
    python -m benchmarks.compress --runs DIR --again

The first makes three runs of experiments.resnet on the digits (ResNet-8) and compresses each by every recipe; the
second takes the runs of several seeds (`--seeds 3 --run DIR`) that are there; the third only audits what lies in them,
as when the machine is quiet. Accuracy is against the same seed's dense model, times are of calls in turn with it. The
value is the share of recipes of which the means reach every bar.
"""

import contextlib
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record
from experiments import compress, resnet
from lepton_jax.finished import Finished

# the least ratios, and the most points of accuracy that may be lost
BARS: dict[str, dict[str, float]] = {
    "folded": {"points": 0.1},
    "w8a8": {"size": 3.8, "points": 0.2},
    "w4": {"size": 7, "points": 1.0},
    "w4-aware": {"size": 7, "points": 0.3},
    "channels2x": {"macs": 2.1, "size": 2, "speed1": 1.3, "speed128": 1.6, "points": 0.3},
    "channels3x": {"macs": 2.1, "size": 2, "speed1": 1.3, "speed128": 1.6, "points": 0.3},
    "prune80": {"size": 3.3, "points": 0.3},
    "prune90": {"size": 6, "points": 0.8},
    "lowrank": {"size": 2, "layers128": 1.5, "points": 0.5},
    "lowrank-svd": {"size": 2, "layers128": 1.5, "points": 0.5},
    "compose": {"size": 8, "speed128": 1.5, "points": 0.5},
    "compose3x": {"size": 8, "speed128": 1.5, "points": 0.5},
    "prune80-int8": {"size": 9, "points": 0.5},
}


Audit = Callable[[str], dict[str, Any]]  # of a recipe, by its name


def making(run: Finished, epochs: float, learning_rate: float | None, teacher: float) -> Audit:
    """Make and ship; what two recipes share is trained once."""
    job = lp.compressions.Job(run, epochs, learning_rate, teacher)
    trained = functools.cache(lambda make: make(job))

    def audit(recipe: str) -> dict[str, Any]:
        make, ship = lp.compressions.RECIPES[recipe]
        with contextlib.redirect_stdout(io.StringIO()):
            small = trained(make)
        return lp.compaction.shipped(run, ship(job, small), recipe)

    return audit


def shipped(run: Finished) -> Audit:
    """Only audit what was shipped."""
    return functools.partial(lp.compaction.audited, run)


def measured(
    runs: pathlib.Path, recipes: Sequence[str], mesh: str, auditor: Callable[[Finished], Audit]
) -> dict[str, list[Any]]:
    """{recipe: its audits on every run in a directory}."""
    found: dict[str, list[Any]] = {recipe: [] for recipe in recipes}
    if not (directories := sorted(runs.glob("seed-*"))):
        raise lp.InputError(f"--runs {runs} holds no run of a seed", "make some with --seeds 3 --run DIR")
    for directory in directories:
        run = lp.finished.load(str(directory), compress.EXPERIMENTS, mesh)
        audit = auditor(run)
        for recipe in recipes:
            found[recipe].append(audit(recipe))
            lp.compaction.told(run, recipe, found[recipe][-1])
    return found


def figures(audits: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """{figure: its value in every audit}."""
    found = {name: np.array([audit[name] for audit in audits]) for name in ("size", "macs", "points")}
    times = {f"{what}{n}": np.array([audit[what][n] for audit in audits]) for what, n in _timed(audits[0])}
    return found | times


def _timed(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was timed, of the whole network and of the factored layers alone, and at which batch sizes."""
    return [(what, n) for what in ("speed", "layers") for n in audit[what]]


def broken(found: Mapping[str, np.ndarray], bars: Mapping[str, float]) -> list[str]:
    """The figures whose means miss their bars."""
    means = {name: float(np.mean(found[name])) for name in bars}
    return [name for name, bar in bars.items() if (means[name] > bar if name == "points" else means[name] < bar)]


def told(recipe: str, audits: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A row of the table: means, for accuracy with the sample deviation."""
    found = figures(audits)
    loss, spread = found["points"], float(np.std(found["points"], ddof=1)) if len(audits) > 1 else 0.0
    ratios = [f"{np.mean(found[name]):.2f}x" for name in ("size", "macs", "speed1", "speed128")]
    layers = f"{np.mean(found['layers128']):.2f}x" if "layers128" in found else ""
    accuracy = np.mean([audit["after"]["accuracy"] for audit in audits])
    missed = ", ".join(broken(found, BARS[recipe])) or "none"
    return [recipe, *ratios, layers, f"{accuracy:.4f}", f"{0.0 - np.mean(loss):+.2f} ± {spread:.2f}", missed]


def digits(directory: pathlib.Path) -> pathlib.Path:
    """Three runs of the main job."""
    arguments = ["--seeds", "3", "--run", str(directory / "digits")]
    with contextlib.redirect_stdout(io.StringIO()):
        lp.cli.outcome(resnet.main, resnet.Config, resnet.PRESETS, arguments)
    return directory / "digits"


def main(
    runs: str | None = None,
    epochs: float = 30,
    learning_rate: float | None = None,
    teacher: float = 0.5,
    mesh: str = "1x1",
    recipes: tuple[str, ...] = tuple(BARS),
    again: bool = False,
) -> None:
    """Compress every run by every recipe.

    Args:
        runs: A directory of runs of several seeds; by default they are made, on the digits.
        epochs: Passes over the training data in recipes that tune.
        learning_rate: The highest while tuning; by default each recipe's own.
        teacher: The weight of the dense model beside the labels.
        mesh: Devices for tuning.
        recipes: Which.
        again: Make nothing: audit what an earlier call has left in the runs.
    """
    if again and runs is None:
        raise lp.InputError("--again audits what lies in runs, and no --runs is given", "give --runs DIR")
    for recipe in recipes:
        lp.errors.named("recipe", recipe, BARS)
    tuning = {"epochs": epochs, "learning_rate": learning_rate, "teacher": teacher}
    auditor = shipped if again else functools.partial(making, **tuning)
    with tempfile.TemporaryDirectory() as place:
        directory = pathlib.Path(runs) if runs else digits(pathlib.Path(place))
        audits = measured(directory, recipes, mesh, auditor)
    rows = [told(recipe, audits[recipe]) for recipe in recipes]
    value = float(np.mean([not broken(figures(audits[recipe]), BARS[recipe]) for recipe in recipes]))
    head = ["recipe", "size", "MACs", "batch 1", "batch 128", "layers", "accuracy", "points", "misses"]
    record.tell("compress", head, rows, value, 1.0, value == 1.0)


if __name__ == "__main__":
    lp.cli.command(main)
