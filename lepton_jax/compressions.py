"""The recipes of experiments.compress: what is made of a finished run, and how it is shipped."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lepton_jax import compaction, compress, tree
from lepton_jax.compaction import Small
from lepton_jax.compress import base, folding, ranks
from lepton_jax.finished import Finished
from lepton_jax.types import Variables


class Job(NamedTuple):
    """A finished run, and how what is smaller is tuned.

    learning_rate: the highest, None for the recipe's own. teacher: the weight of the run's model, beside the labels.
    """

    run: Finished
    epochs: float
    learning_rate: float | None = None
    teacher: float = 0.5

    def tuned(self, compression: compress.Compression, small: Small, learning_rate: float) -> tuple[Variables, Any]:
        """(variables, state) after tuning. learning_rate: the recipe's own."""
        rate = learning_rate if self.learning_rate is None else self.learning_rate
        return compaction.tuned(self.run, small.model, small.variables, compression, self.epochs, rate, self.teacher)


Make = Callable[[Job], Small]
Ship = Callable[[Job, Small], Small]

# learning rates for what has lost little, and for what has lost so much that it has to be learned again
LITTLE, MUCH = 0.02, 0.1


def dense(job: Job) -> Small:
    """The run's model as it is."""
    return Small(job.run.model, job.run.variables)


def narrow(fewer: float) -> Make:
    """So many times fewer multiplications and half of the parameters, in widths that fill vector registers; tuned."""

    def make(job: Job) -> Small:
        run, images = job.run, compaction.images(job.run, 1)[0]
        graph = compress.graph(run.model, run.variables, images)
        scores = compress.l2(graph, run.variables["params"])
        enough = compress.both(compress.fewer_macs(graph, 1 - 1 / fewer), compress.fewer_numbers(graph, 0.52))
        kept = compress.choose(graph, scores, enough, least=8, multiple=8)
        small = Small(compress.shrunk(run.model, kept), compress.remove(run.variables, kept))
        variables, _ = job.tuned(compress.identity(), small, MUCH)
        return Small(small.model, variables, kept=kept)

    return make


def four_bits() -> compress.Compression:
    """Weights in 4 bits, by groups of 16 inputs."""
    return compress.quantized(4, compress.groups(16))


def aware(job: Job) -> Small:
    """Weights trained as what 4 bits will make of them."""
    variables, _ = job.tuned(four_bits(), dense(job), LITTLE)
    return Small(job.run.model, variables)


def pruning(job: Job, sparsity: float) -> compress.Compression:
    """The smallest weights, little by little over the first half of the tuning."""
    steps = job.run.recipe.stream.steps(job.epochs)
    every = max(1, steps // 40)
    times = compress.gradual(0, every * max(1, steps // (2 * every)), every, first=0.5)
    ranking = compress.within(compress.erdos_renyi_kernel(sparsity))
    return compress.prune(compress.magnitude, ranking, times)


def pruned(sparsity: float) -> Make:
    """Without the smallest weights, which are zeros; tuned."""

    def make(job: Job) -> Small:
        compression = pruning(job, sparsity)
        variables, state = job.tuned(compression, dense(job), MUCH)
        shown = compression.view(variables["params"], state)
        return Small(job.run.model, {**variables, "params": shown})

    return make


def low_rank(convolution: compress.Method, rule: ranks.Rule) -> Make:
    """Kernels as products of smaller ones, tuned factor by factor."""

    def make(job: Job) -> Small:
        run, images = job.run, compaction.images(job.run)
        moments = compress.measured(run.model, run.variables, images, compress.second_moment)
        norm = compress.output_error(moments)
        parts = compress.factorized(rule, convolution=convolution, norm=norm)
        applied = Small(compress.applied(run.model), run.variables)
        variables, state = job.tuned(compress.by_factors(parts), applied, MUCH)
        return Small(run.model, {**variables, "params": parts.pack(variables["params"], state)})

    return make


def packed(job: Job, small: Small, pack: Callable[[Variables], Any]) -> Small:
    """Batch norms folded away, where there are any, and the parameters packed."""
    variables, inputs = small.variables, compaction.images(job.run, 1)[0]
    variables = folding.into(variables, folding.pairs(small.model, variables, inputs))
    variables = compress.constants({**variables, "params": pack(variables)})
    return Small(small.model, variables, small.rule, small.kept)


def floats(job: Job, small: Small) -> Small:
    """Shipped in floats."""
    return packed(job, small, lambda variables: variables["params"])


def integers(job: Job, small: Small) -> Small:
    """Weights and activations in int8."""

    def pack(variables: Variables) -> Any:
        values = compress.quantized(8).pack(variables["params"], ())
        seen = {**variables, "params": compress.unpacked(values)}
        return compress.with_inputs(values, compress.input_scales(small.model, seen, compaction.images(job.run)))

    return packed(job, Small(small.model, small.variables, "whole numbers", small.kept), pack)


def rounded(job: Job, small: Small) -> Small:
    """Weights in 4 bits, rounded so that the layers' outputs change least."""
    images, groups = compaction.images(job.run), compress.groups(16)
    return packed(job, small, lambda variables: compress.rounded(small.model, variables, images, "gptq", 4, groups))


def nearest(job: Job, small: Small) -> Small:
    """Weights in 4 bits, each the nearest, as they were trained."""
    return packed(job, small, lambda variables: four_bits().pack(variables["params"], ()))


def mixed(job: Job, small: Small) -> Small:
    """Weights in 4 or 8 bits, whichever costs least loss where all together are 6.5 times smaller."""
    images, loss = compaction.images(job.run), compaction.training_loss(job.run)

    def pack(variables: Variables) -> Any:
        params = variables["params"]
        eight = compress.quantized(8).pack(params, ())
        four = compress.rounded(small.model, variables, images, "gptq", 4, compress.groups(16))
        bits = {"8": lambda name, leaf: base.at(eight, name), "4": lambda name, leaf: base.at(four, name)}
        choices = compress.sensitivities(
            params, bits, lambda params: loss({**variables, "params": compress.unpacked(params)})
        )
        weights = sum(base.at(params, name).nbytes for name in choices)
        chosen = compress.allocate(choices, nbytes=weights / 6.5)
        return base.put(params, {name: bits[label](name, None) for name, label in chosen.items()})

    return packed(job, small, pack)


def sparse(*behind: compress.Compression) -> Ship:
    """Only what is not zero, and where it lies."""

    def ship(job: Job, small: Small) -> Small:
        def pack(variables: Variables) -> Any:
            params = variables["params"]
            names = [name for name in tree.paths(params) if name.endswith("kernel")]
            masks = compress.fixed({name: base.at(params, name) != 0 for name in names})
            chain = compress.chain(masks, *behind)
            return chain.pack(*chain.init(params))

        return packed(job, small, pack)

    return ship


eighty, half, third = pruned(0.8), narrow(2.1), narrow(3.0)
RECIPES: dict[str, tuple[Make, Ship]] = {
    "folded": (dense, floats),
    "w8a8": (dense, integers),
    "w4": (dense, rounded),
    "w4-aware": (aware, nearest),
    "w4-w8": (dense, mixed),
    "prune80": (eighty, sparse()),
    "prune80-int8": (eighty, sparse(compress.quantized(8))),
    "prune90": (pruned(0.9), sparse()),
    "channels2x": (half, floats),
    "channels3x": (third, floats),
    "lowrank": (low_rank(compress.tucker, compress.in_multiples(compress.by_share(0.45), 16)), floats),
    "lowrank-svd": (low_rank(compress.svd, compress.in_multiples(compress.by_ratio(0.35), 8)), floats),
    "compose": (half, integers),
    "compose3x": (third, integers),
}
"""What is made smaller, perhaps by training, and how it is shipped."""
