"""What a run keeps, what it goes on from, and how it leaves: its checkpoints as the loop and the result need them."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from lepton_jax import agreement, preemption, preparation, progress, recovery, rows, train
from lepton_jax.checkpoint import Checkpoints
from lepton_jax.config import Config
from lepton_jax.recipe import Recipe
from lepton_jax.report import Reporter
from lepton_jax.types import TrainState


def kept(config: Config, directory: pathlib.Path) -> Checkpoints:
    """The checkpoints of the run in a directory, which may lie elsewhere. Raises InputError."""
    return Checkpoints(config.checkpoints or directory / "checkpoints", config.keep, config.monitor)


def resumed(
    recipe: Recipe, mesh: Mesh, state: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """(state, what its checkpoint says) of the newest checkpoint that can be trusted, or the beginning."""
    if checkpoints.latest() is None:
        return state, {"seconds": 0.0, "window": []}
    progress.reporter().stage("restoring")
    return checkpoints.restore(state, mesh, recipe.model.rules)


def surviving(
    recipe: Recipe,
    config: Config,
    mesh: Mesh,
    directory: pathlib.Path,
    checkpoints: Checkpoints,
    begun: Mapping[str, Any],
    seconds: Callable[[], float],
    reporter: Reporter,
) -> train.Survival:
    """Checkpoints, leaving when asked to, and going back from a loss that cannot be.

    begun: what the checkpoint says that the run goes on from. seconds: those of all its lives so far.
    """

    def save(state: TrainState, scores: Mapping[str, float], window: rows.Window) -> None:
        checkpoints.save(state, {"seconds": seconds(), "window": rows.written(window)}, scores)

    def check() -> None:
        checkpoints.check()
        if (step := checkpoints.committed()) is not None:
            progress.reporter().committed(step)

    def first() -> TrainState:
        return preparation.prepared(recipe, config, mesh)

    spike = math.inf if config.spike is None else config.spike
    return train.Survival(
        save=save,
        check=check,
        leave=preemption.is_asked,
        recover=recovery.recovering(
            directory, checkpoints, recipe.stream, first, mesh, recipe.model.rules, config.rollbacks, reporter
        ),
        spike=spike,
        begun=rows.read(begun["window"]),
        last=agreement.shared(lambda: recovery.last_loss(directory)),
    )


def selected(checkpoints: Checkpoints, recipe: Recipe, config: Config, mesh: Mesh, state: TrainState) -> TrainState:
    """The state that the result is of: with `--restore best` that of the best checkpoint."""
    best = checkpoints.best() if config.restore == "best" else None
    if best is None or best == int(state.step):
        return state
    return checkpoints.restore(state, mesh, recipe.model.rules, best)[0]
