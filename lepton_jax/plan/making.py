"""A plan of a recipe and its flags: made here, or by a process of its own.

The latter is for runs of several processes, which share their devices and so could only compile together. `python -m
lepton_jax.plan.making` reads a `Question` and writes a `Choice`, or why there is none, in JSON.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any, NamedTuple

from lepton_jax import cli, finished
from lepton_jax.config import Config
from lepton_jax.errors import InputError
from lepton_jax.plan import choice
from lepton_jax.plan.accelerators import ACCELERATORS
from lepton_jax.plan.prediction import Predictor
from lepton_jax.plan.work import of_recipe
from lepton_jax.recipe import Recipe

AUTO = "auto"


class Choice(NamedTuple):
    """What was chosen. memory: the bytes that it needs on each device, as predicted."""

    mesh: str
    microbatches: int
    memory: float


def here(
    recipe: Recipe, config: Config, devices: int, microbatches: int | None, memory: float, accelerator: str
) -> Choice:
    """The fastest of what fits into so many bytes on each device, as compiled by this process.

    microbatches: these and no others. accelerator: by name. Raises InputError where nothing fits.
    """
    work = of_recipe(recipe, config)
    mesh = None if config.mesh == AUTO else config.mesh or f"{devices}x1"
    axes, by = choice.looked_at(work, mesh, devices, microbatches), ACCELERATORS[accelerator]
    plan = choice.planned(Predictor(work), axes, memory, by, config.precision, microbatches)
    if plan.chosen is None:
        raise choice.too_large(plan, memory)
    return Choice(choice.text(plan.chosen.axes), plan.chosen.microbatches, plan.chosen.memory)


class Question(NamedTuple):
    """What is to be planned. module: the experiment's; config: its flags; the others as `here` has them."""

    module: str
    config: dict[str, Any]
    devices: int
    microbatches: int | None
    memory: float
    accelerator: str


def apart(config: Config, *about: Any) -> Choice:
    """The same, made on simulated devices by a process that this one starts and waits for.

    about: devices, microbatches, memory and accelerator as `here` has them. Raises InputError as it does, and for flags
    whose experiment another process cannot import.
    """
    question = Question(module(config), asdict(config), *about)
    ours = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-m", "lepton_jax.plan.making"],
        input=json.dumps(question._asdict()),
        capture_output=True,
        text=True,
        env={**ours, "JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        raise RuntimeError(f"the process that plans ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "problem" in answer:
        raise InputError(**answer)
    return Choice(**answer)


def module(config: Config) -> str:
    """The module of the experiment whose flags these are. Raises InputError where another process cannot import it."""
    name = type(config).__module__
    if name == "__main__":
        spec = sys.modules[name].__spec__
        if spec is None:
            problem = "auto plans for several processes in one of its own, which cannot import what has no module"
            raise InputError(problem, "start the recipe as python -m MODULE, or give --mesh and --microbatches")
        return spec.name
    return name


def answer(question: Question) -> dict[str, Any]:
    """The choice, or the problem and the remedy, as JSON has them."""
    from lepton_jax import preparation
    from lepton_jax.plan import work
    from lepton_jax.plan.__main__ import simulate

    simulate(question.devices)
    try:
        experiment = cli.imported(question.module, ("Config", "compose"))
        config = finished.restored(experiment.Config, question.config, None)
        recipe = experiment.compose(config)
        with preparation.accepting(work.shapes(recipe, config)["input"]):
            return here(recipe, config, *question[2:])._asdict()
    except InputError as error:
        return {"problem": error.problem, "remedy": error.remedy}


if __name__ == "__main__":
    print(json.dumps(answer(Question(**json.load(sys.stdin)))))
