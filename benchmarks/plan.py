"""How far predicted peak memory is from XLA's own report of the program that it is predicted of.

    python -m benchmarks.plan

Four recipes on the meshes of the law's table, and on those of 64 devices that a plan looks at. Predicted is what the
shardings say, plus the temporaries of a rehearsal on fewer devices; it is held against arguments + outputs - aliased +
temporaries of the whole program, compiled for all of the devices. Where at most four devices share in the batch the
rehearsal is the program itself, and its temporaries are XLA's own. The value is the largest error, the bar 10 %.
Nothing is trained.
"""

import importlib
from typing import Any

import lepton_jax as lp
from benchmarks import record

BAR, DEVICES = 0.10, 64
RECIPES = {
    "mlp": ("resnet", "--model", "mlp", "--batch-size", "256"),
    "resnet20": ("resnet", "--model", "resnet20", "--batch-size", "256"),
    "vit": ("vit", "--batch-size", "256"),
    "stacked": ("vit", "--stacked", "--depth", "8", "--batch-size", "256"),
}
MESHES = ("1x1", "8x1", "4x2", "2x4", "1x8", "fsdp=8", "data=2,fsdp=2,model=2", "pipe=4,data=2", "sequence=4,data=2")
SPLIT = ("64x1", "data=8,fsdp=8", "fsdp=64", "32x2", "data=4,fsdp=8,model=2", "fsdp=32,model=2", "16x4", "8x8")
LARGE = (*SPLIT, "data=16,sequence=4", "data=4,fsdp=8,sequence=2", "data=16,pipe=4", "data=4,fsdp=8,pipe=2")


def work(name: str, *flags: str) -> lp.plan.Work:
    """An experiment as work to be planned."""
    module: Any = importlib.import_module(f"experiments.{name}")
    config = lp.cli.parse(module.Config, module.PRESETS, list(flags), f"experiments.{name}")
    return lp.plan.of_recipe(module.compose(config), config)


def main(
    models: tuple[str, ...] = tuple(RECIPES),
    meshes: tuple[str, ...] = (*MESHES, *LARGE),
    microbatches: tuple[int, ...] = (1, 4),
) -> None:
    """Predict, compile, compare.

    Args:
        models: The recipes: mlp, resnet20, vit, stacked.
        meshes: The meshes.
        microbatches: Numbers of microbatches; where they do not divide the batch, one.
    """
    from lepton_jax.plan import choice, prediction

    lp.mesh.simulate(DEVICES)
    rows, errors = [], []
    for name in models:
        predictor = lp.plan.Predictor(work(*lp.errors.named("model", name, RECIPES)))
        for mesh in meshes:
            axes = lp.mesh.parse(mesh)
            local = predictor.work.size // prediction.batch_shards(axes)
            for number in sorted({number if local % number == 0 else 1 for number in microbatches}):
                found = predictor.predict(axes, number)
                report = lp.plan.rehearse(predictor.work, axes, predictor.work.size, number)
                stand_in = predictor.stand_in(axes)
                errors.append(found.memory / report.peak - 1)
                sizes = [round(size) for size in (found.memory, report.peak)]
                rows.append([name, mesh, number, choice.text(stand_in), *sizes, f"{errors[-1]:+.2%}"])
                print(*rows[-1], flush=True)
    head = ["model", "mesh", "microbatches", "rehearsed on", "predicted, bytes", "XLA's report", "error"]
    worst = max(map(abs, errors))
    record.tell("plan", head, rows, worst, BAR, worst <= BAR)


if __name__ == "__main__":
    lp.cli.command(main)
