"""A plan for an experiment on devices that need not be there.

python -m lepton_jax.plan experiments.resnet --devices 64 --memory 80GiB --batch 4096 --model resnet56
python -m lepton_jax.plan experiments.resnet --preset imagenet --input 224x224x3 --classes 1000 --devices 8
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import tyro

from lepton_jax import cli, errors, mesh
from lepton_jax.config import Config
from lepton_jax.errors import InputError
from lepton_jax.plan.accelerators import ACCELERATORS, Accelerator, nbytes

PROGRAM = "python -m lepton_jax.plan"
SIMULATED = 40  # devices for rehearsals: five to share the batch, eight to share the model
CHECKED = 64  # devices up to which the chosen program itself is compiled too


@dataclass(frozen=True)
class Request:
    """Which mesh and how many microbatches an experiment should have, on devices that need not be there. All other
    flags are the experiment's."""

    experiment: tyro.conf.Positional[str]
    """The module of the experiment, as in experiments.resnet."""
    devices: int
    """How many devices there will be."""
    memory: str | None = None
    """Memory of each, as 80GiB. Default: the accelerator's."""
    batch: int | None = None
    """Examples per update, over all devices. Default: the experiment's."""
    accelerator: str = "h100"
    """a100, h100, h200, v5e, v5p, or v6e: for which the fastest is chosen."""
    input: str | None = None
    """Plan without data, for images of this height, width and channels, as 224x224x3; with --classes."""
    classes: int | None = None
    """The classes of such images."""


def main(arguments: list[str]) -> None:
    """Print the plan. Raises InputError."""
    with cli.refusing(PROGRAM):
        request, others = tyro.cli(Request, args=arguments, prog=PROGRAM, return_unknown_args=True)
    if request.devices < 1:
        raise InputError(f"--devices {request.devices} is not positive", "give the number of devices")
    accelerator = errors.named("accelerator", request.accelerator, ACCELERATORS)
    memory = accelerator.memory if request.memory is None else nbytes(request.memory)
    module = cli.imported(request.experiment, ("Config", "PRESETS", "compose"))
    config = configured(module, request, [other for other in others if other != "--"])
    devices = f"{request.devices} x {accelerator.name}"
    print(f"planning   {request.experiment} on {devices}, a batch of {config.batch_size:,}", flush=True)
    simulate(request.devices)
    from lepton_jax import preparation
    from lepton_jax.plan import work

    recipe = module.compose(config)
    with preparation.accepting(work.shapes(recipe, config)["input"]):
        show(recipe, config, request.devices, memory, accelerator)


def configured(module: Any, request: Request, flags: list[str]) -> Config:
    """The experiment's flags as they are to be planned. Raises InputError."""
    config = cli.parse(module.Config, module.PRESETS, flags, f"{PROGRAM} {request.experiment}")
    if request.batch is not None:
        config = dataclasses.replace(config, batch_size=request.batch)
    if (request.input is None) != (request.classes is None):
        given = "--input" if request.classes is None else "--classes"
        raise InputError(f"{given} is given alone", "give both, as in --input 224x224x3 --classes 1000")
    if request.input is not None:
        data = f"blank:{request.input}:{request.classes}"
        config = dataclasses.replace(config, data=data, data_dir=None, image_size=None, examples=None)
    elif config.data_dir is None and config.data.partition(":")[0] not in ("digits", "blank"):
        problem = f"--data {config.data} is planned for, and no --data-dir says where it lies"
        raise InputError(problem, "give it, or plan without data: --input 224x224x3 --classes 1000")
    if config.mesh not in (None, "auto") and mesh.size(mesh.parse(config.mesh)) != request.devices:
        raise InputError(
            f"--mesh {config.mesh} does not take --devices {request.devices}", "leave it out, or change one"
        )
    config.check()
    return config


def simulate(devices: int) -> None:
    """Start JAX on as many simulated devices as plans for so many take, whatever accelerators this machine has."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    mesh.simulate(max(SIMULATED, devices if devices <= CHECKED else 0))


def show(recipe: Any, config: Config, devices: int, memory: float, accelerator: Accelerator) -> None:
    """Plan, and print what was found. Raises InputError where nothing fits."""
    from lepton_jax.plan import choice, rehearsal, table, work

    wanted = work.of_recipe(recipe, config)
    number = config.microbatches if config.microbatches not in (1, "auto") else None
    axes = choice.looked_at(wanted, None if config.mesh == "auto" else config.mesh, devices, number)
    plan = choice.planned(choice.Predictor(wanted), axes, memory, accelerator, config.precision, number)
    print(table.told(plan, memory, accelerator, config.precision))
    if plan.chosen is None:
        raise choice.too_large(plan, memory)
    print("", *table.parts(plan.chosen, config.precision), sep="\n")
    if devices <= CHECKED:
        report = rehearsal.rehearse(wanted, plan.chosen.axes, wanted.size, plan.chosen.microbatches)
        off = plan.chosen.memory / report.peak - 1
        print(f"checked    compiled whole, XLA reports {choice.size(report.peak)}: the prediction is off by {off:+.1%}")
    if config.precision != "float32":
        print(f"note       this CPU's compiler computes {config.precision} in float32: memory and traffic are bounds")
    print(f"chosen     --mesh {choice.text(plan.chosen.axes)} --microbatches {plan.chosen.microbatches}")


if __name__ == "__main__":
    if code := cli.guarded(lambda: main(sys.argv[1:])):
        cli.leave(code)
