"""A finished run, taken up again: its recipe, its final state and what it scored."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lepton_jax import mesh as meshes
from lepton_jax import preparation, runs, survival
from lepton_jax.config import Config
from lepton_jax.errors import InputError, named
from lepton_jax.recipe import Recipe
from lepton_jax.types import Model, TrainState, Variables

Composer = tuple[type[Any], Callable[[Any], Recipe]]
"""An experiment's Config, and what makes a Recipe of one."""


class Finished(NamedTuple):
    """A run that is complete. record: its result.json."""

    directory: pathlib.Path
    config: Config
    recipe: Recipe
    mesh: Mesh
    state: TrainState
    record: dict[str, Any]

    @property
    def model(self) -> Model:
        """The model on raw images."""
        return self.recipe.model

    @property
    def variables(self) -> Variables:
        """What the result was measured of: the averaged parameters, where the run has them."""
        return {"params": self.state.stats.get("ema", self.state.params), **self.state.stats.get("model", {})}


def load(
    directory: str, experiments: Mapping[str, Composer], mesh: str = "1x1", data_dir: str | None = None
) -> Finished:
    """The run in a directory, its state laid over a mesh.

    experiments: those that it may be of, by name. data_dir: where the data lies now, if it has moved. Raises
    InputError where there is no run, where it is not complete, or where its data have changed.
    """
    place = pathlib.Path(directory)
    if not (place / "config.json").is_file():
        raise InputError(f"--run {directory} is not a run directory", "name one that an experiment has left")
    found, result = runs.recorded(place / "config.json"), place / "result.json"
    if not result.is_file():
        raise InputError(f"the run in {directory} is not complete", "run the command that started it once more")
    record = json.loads(result.read_text(encoding="utf-8"))
    kind, compose = named("experiment", found["experiment"], experiments)
    config = restored(kind, found["config"], data_dir)
    recipe, over = compose(config), meshes.make(mesh)
    like = preparation.prepared(recipe, dataclasses.replace(config, mesh=mesh), over)
    runs.require_same(place, found["identity"], preparation.identity(recipe, like))
    with survival.kept(config, place) as checkpoints:
        state, _ = checkpoints.restore(like, over, recipe.model.rules, record["selected"]["step"])
    return Finished(place, config, recipe, over, state, record)


def restored(kind: type[Any], flags: Mapping[str, Any], data_dir: str | None) -> Any:
    """A run's flags as its experiment's Config, with the data where they lie now."""
    known = {field.name for field in dataclasses.fields(kind)}
    if strangers := sorted(set(flags) - known):
        problem = f"the run was made with the flag {strangers[0]!r}, which its experiment no longer has"
        raise InputError(problem, "use the version of Lepton that made it")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    return dataclasses.replace(kind(**given), **({"data_dir": data_dir} if data_dir else {}))
