"""Make a finished run smaller, and say what that wins and costs.

python -m experiments.compress --run RUN --recipe w8a8
python -m experiments.compress --run RUN --recipe compose --epochs 10
"""

from collections.abc import Callable
from typing import NamedTuple

import lepton_jax as lp
from experiments import cifar, medical, resnet, vit

EXPERIMENTS = {room.__name__.split(".")[-1]: (room.Config, room.compose) for room in (cifar, medical, resnet, vit)}


class Job(NamedTuple):
    """A finished run, and how long what is smaller is tuned."""

    run: "lp.finished.Finished"
    epochs: float
    learning_rate: float

    def tuned(self, compression: "lp.compress.Compression", small: "lp.compaction.Small") -> tuple:
        """(variables, state) after tuning, with the run's own model as the teacher."""
        return lp.compaction.tuned(self.run, small.model, small.variables, compression, self.epochs, self.learning_rate)


def dense(job: Job) -> "lp.compaction.Small":
    """The run's model as it is."""
    return lp.compaction.Small(job.run.model, job.run.variables)


def integers(job: Job, small: "lp.compaction.Small") -> "lp.compaction.Small":
    """Batch norms folded away, weights and activations in int8."""
    images = lp.compaction.images(job.run)
    variables = lp.compress.folded(small.model, small.variables, images[0])
    scales = lp.compress.input_scales(small.model, variables, images)
    packed = lp.compress.quantized(8).pack(variables["params"], ())
    packed = lp.compress.with_inputs(packed, scales)
    variables = lp.compress.constants({**variables, "params": packed})
    return lp.compaction.Small(small.model, variables, "whole numbers", small.kept)


def w8a8(job: Job) -> "lp.compaction.Small":
    """Weights and activations in int8, after training."""
    return integers(job, dense(job))


def w4(job: Job) -> "lp.compaction.Small":
    """Weights in 4 bits by groups of 16 inputs, rounded so that outputs change least (GPTQ), after training."""
    small, images = dense(job), lp.compaction.images(job.run)
    variables = lp.compress.folded(small.model, small.variables, images[0])
    packed = lp.compress.rounded(small.model, variables, images, "gptq", 4, lp.compress.groups(16))
    return lp.compaction.Small(small.model, lp.compress.constants({**variables, "params": packed}))


def w4_aware(job: Job) -> "lp.compaction.Small":
    """Weights in 4 bits by groups, trained as what they are rounded to."""
    compression, small = lp.compress.quantized(4, lp.compress.groups(16)), dense(job)
    variables, state = job.tuned(compression, small)
    variables = lp.compress.folded(small.model, variables, lp.compaction.images(job.run)[0])
    packed = compression.pack(variables["params"], state)
    return lp.compaction.Small(small.model, lp.compress.constants({**variables, "params": packed}))


def pruned(job: Job, sparsity: float, *behind: "lp.compress.Compression") -> "lp.compaction.Small":
    """The smallest weights gone, little by little over the first half of the tuning; packed as what is left."""
    steps = job.run.recipe.stream.steps(job.epochs)
    every = max(1, steps // 40)
    times = lp.compress.gradual(0, every * max(1, steps // (2 * every)), every, first=0.5)
    ranking = lp.compress.within(lp.compress.erdos_renyi(sparsity))
    masks, small = lp.compress.prune(lp.compress.magnitude, ranking, times), dense(job)
    variables, state = job.tuned(masks, small)
    variables = lp.compress.folded(small.model, variables, lp.compaction.images(job.run)[0])
    shipped = lp.compress.chain(masks, *behind)
    packed = shipped.pack(variables["params"], (state, *(() for _ in behind)))
    return lp.compaction.Small(small.model, lp.compress.constants({**variables, "params": packed}))


def narrowed(job: Job) -> "lp.compaction.Small":
    """Fewer channels, for 2.1 times fewer multiplications and half of the parameters; tuned."""
    run, images = job.run, lp.compaction.images(job.run, 1)[0]
    graph = lp.compress.graph(run.model, run.variables, images)
    scores = lp.compress.l2(graph, run.variables["params"])
    enough = lp.compress.both(lp.compress.fewer_macs(graph, 1 - 1 / 2.1), lp.compress.fewer_numbers(graph, 0.51))
    kept = lp.compress.choose(graph, scores, enough, least=4, multiple=4)
    small = lp.compaction.Small(lp.compress.shrunk(run.model, kept), lp.compress.remove(run.variables, kept))
    variables, _ = job.tuned(lp.compress.identity(), small)
    return lp.compaction.Small(small.model, variables, kept=kept)


def lowrank(job: Job) -> "lp.compaction.Small":
    """Kernels as products of smaller ones with half of the parameters, tuned factor by factor."""
    small, images = dense(job), lp.compaction.images(job.run)
    moments = lp.compress.measured(small.model, small.variables, images, lp.compress.second_moment)
    norm = lp.compress.output_error(moments)
    parts = lp.compress.factorized(lp.compress.by_ratio(0.45), convolution=lp.compress.tucker, norm=norm)
    applied = lp.compaction.Small(lp.compress.applied(small.model), small.variables)
    variables, state = job.tuned(lp.compress.by_factors(parts), applied)
    return lp.compaction.Small(small.model, {**variables, "params": parts.pack(variables["params"], state)})


RECIPES: dict[str, Callable[[Job], "lp.compaction.Small"]] = {
    "w8a8": w8a8,
    "w4": w4,
    "w4-aware": w4_aware,
    "prune80": lambda job: pruned(job, 0.8),
    "prune90": lambda job: pruned(job, 0.9),
    "prune80-int8": lambda job: pruned(job, 0.8, lp.compress.quantized(8)),
    "channels2x": narrowed,
    "lowrank": lowrank,
    "compose": lambda job: integers(job, narrowed(job)),
}


def main(
    run: str,
    recipe: str = "w8a8",
    epochs: float = 10,
    learning_rate: float = 0.02,
    mesh: str = "1x1",
    data_dir: str | None = None,
    size: float | None = None,
    macs: float | None = None,
    speed: float | None = None,
    points: float | None = None,
) -> None:
    """Make a finished run smaller; RUN/compressed/ gets the packed model, its audit, and a report of all of them.

    Args:
        run: The directory of a finished run.
        recipe: w8a8, w4, w4-aware, prune80, prune90, prune80-int8, channels2x, lowrank, or compose.
        epochs: Passes over the training data in recipes that tune.
        learning_rate: The highest while tuning.
        mesh: Devices, as for training.
        data_dir: Where the run's data lie now, if they have moved.
        size: Fail where the file is not so many times smaller.
        macs: Fail where there are not so many times fewer multiplications.
        speed: Fail where it is not so many times faster, at batch 1 and 128.
        points: Fail where more hundredths of accuracy are lost.
    """
    make = lp.errors.named("recipe", recipe, RECIPES)
    finished = lp.finished.load(run, EXPERIMENTS, mesh, data_dir)
    record = lp.compaction.shipped(finished, make(Job(finished, epochs, learning_rate)), recipe)
    lp.compaction.told(finished, recipe, record)
    given = {"size": size, "macs": macs, "speed": speed, "points": points}
    lp.compress.require(record, {name: limit for name, limit in given.items() if limit is not None})


if __name__ == "__main__":
    lp.cli.command(main)
