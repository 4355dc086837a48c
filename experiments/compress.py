"""Make a finished run smaller, and say what that wins and costs.

python -m experiments.compress --run RUN --recipe w8a8
python -m experiments.compress --run RUN --recipe compose --epochs 10
"""

import lepton_jax as lp
from experiments import cifar, medical, resnet, vit

EXPERIMENTS = {room.__name__.split(".")[-1]: (room.Config, room.compose) for room in (cifar, medical, resnet, vit)}


def main(
    run: str,
    recipe: str = "w8a8",
    epochs: float = 10,
    learning_rate: float | None = None,
    teacher: float = 0.5,
    mesh: str = "1x1",
    data_dir: str | None = None,
    size: float | None = None,
    macs: float | None = None,
    speed: float | None = None,
    points: float | None = None,
    again: bool = False,
) -> None:
    """Make a finished run smaller; RUN/compressed/ gets the packed model, its audit, and a report of all of them.

    Args:
        run: The directory of a finished run.
        recipe: folded, w8a8, w4, w4-aware, w4-w8, prune80, prune90, prune80-int8, channels2x, channels3x, lowrank,
            lowrank-svd, compose, or compose3x.
        epochs: Passes over the training data in recipes that tune.
        learning_rate: The highest while tuning; by default the recipe's own, 0.02 for w4-aware and 0.1 for others.
        teacher: The weight of what the run's own model teaches the smaller one, from 0 to 1; the rest is the labels'.
        mesh: Devices, as for training.
        data_dir: Where the run's data lie now, if they have moved.
        size: Fail where the file is not so many times smaller.
        macs: Fail where there are not so many times fewer multiplications.
        speed: Fail where it is not so many times faster, at batch 1 and 128.
        points: Fail where more hundredths of accuracy are lost.
        again: Make nothing: audit the file of the recipe that lies in RUN/compressed/.
    """
    make, ship = lp.errors.named("recipe", recipe, lp.compressions.RECIPES)
    finished = lp.finished.load(run, EXPERIMENTS, mesh, data_dir)
    if again:
        record = lp.compaction.audited(finished, recipe)
    else:
        job = lp.compressions.Job(finished, epochs, learning_rate, teacher)
        record = lp.compaction.shipped(finished, ship(job, make(job)), recipe)
    lp.compaction.told(finished, recipe, record)
    given = {"size": size, "macs": macs, "speed": speed, "points": points}
    lp.compress.require(record, {name: limit for name, limit in given.items() if limit is not None})


if __name__ == "__main__":
    lp.cli.command(main)
