"""What a federated run leaves beside its record: who holds what, what privacy costs, what tuning gains."""

import pathlib
from collections.abc import Callable
from typing import Any

from lepton_jax import agreement, keys, runs
from lepton_jax.data import labels
from lepton_jax.federated import Client, Cohorts, chart, partition, personal
from lepton_jax.recipe import Recipe
from lepton_jax.types import TrainState


def drawn(directory: pathlib.Path, recipe: Recipe, cohorts: Cohorts, title: str) -> None:
    """Write clients.png, how many examples of each class every client holds; of several processes the first does."""
    if not agreement.is_first():
        return
    classes, path = recipe.dataset.classes, directory / "clients.png"
    held = partition.held(cohorts.partition, labels(recipe.dataset.train), len(classes))
    chart.draw(path, held, classes, title)
    print(f"clients    {path}", flush=True)


def accounted(directory: pathlib.Path, told: Callable[[int], dict[str, Any]]) -> None:
    """Write into result.json what the run's rounds cost in privacy, and say it; of several processes the first does.

    told: the claim after so many rounds, `privacy.Plan.told` of a plan whose examples are clients.
    """
    if not agreement.is_first():
        return
    claim = told(runs.result(directory)["steps"])
    claim["relation"] = claim["relation"].replace("example", "client")
    runs.amend(directory, {"epsilon": claim["epsilon"], "delta": claim["delta"]}, privacy=claim)
    cost = f"epsilon {claim['epsilon']:.4g}, delta {claim['delta']:g}"
    print(f"private    {cost} for whole clients ({claim['accountant']}, {claim['relation']})", flush=True)


def tuned(directory: pathlib.Path, recipe: Recipe, cohorts: Cohorts, alone: Client, state: TrainState) -> None:
    """Write personal.json: every client's accuracy before and after a round's worth of training for itself.

    alone: how a client then trains. It begins with the averaged parameters where there are such. Of several processes
    the first one does it.
    """
    if not agreement.is_first():
        return
    stats = {name: entry for name, entry in state.stats.items() if name == "model"}
    params, key = state.stats.get("ema", state.params), keys.named(state.key, "personal")
    gain = personal.gained(recipe.model, alone, params, stats, cohorts, recipe.dataset.test, key)
    runs.write(directory / "personal.json", {name: getattr(gain, name).tolist() for name in gain._fields})
    means = f"{gain.before.mean():.4f} -> {gain.after.mean():.4f}"
    print(f"personal   {means}  accuracy on a client's own classes, mean of clients", flush=True)
