"""The parts of a recipe over clients that flags name: who holds what, who answers, the algorithm, local training."""

from collections.abc import Callable
from dataclasses import replace

import optax

from lepton_jax import data, errors, federated, recipe, tree
from lepton_jax.errors import InputError
from lepton_jax.federated import Cohorts, algorithms, clipping, compression, partition
from lepton_jax.federated.algorithms import Algorithm
from lepton_jax.rounds import CENTRALIZED, Config
from lepton_jax.types import GradFn, Loss


def cohorts(config: Config, train: data.Source) -> Cohorts:
    """The rounds: who holds what, who is asked, and who answers. Raises InputError."""
    held = parted(config, train)
    asked = federated.sampling.fixed_size(len(held), config.cohort, config.seed)
    answering = federated.Availability(config.dropout, config.deadline, quorum=config.quorum)
    local = (config.batch_size, config.local_epochs)
    return Cohorts(train, held, asked, config.cohort, *local, config.seed, answering)


def parted(config: Config, train: data.Source) -> partition.Partition:
    """Who holds what. Raises InputError."""
    if partition.field(config.partition):
        return partition.by_field(config.partition, data.owners(train), config.seed)
    return partition.build(config.partition, data.labels(train), config.clients, config.seed)


def algorithm(config: Config, clients: int, noise: Callable[[GradFn], GradFn] = algorithms.same) -> Algorithm:
    """The algorithm, the form in which its updates travel, and what goes around their sum. Raises InputError."""
    rates = {"learning_rate": config.learning_rate, "strength": config.proximal}
    found = algorithms.build(config.algorithm, clients=clients, **rates)
    if config.update != "full":
        code = errors.named("form of updates", config.update, compression.CODES)()
        found = found.sending(lambda client: federated.compressed(client, code), residual=tree.zeros)
    clip, quantile, summed = config.client_clip, config.client_quantile, found.round
    if clip is None:
        return found
    if quantile is None:
        found = found.sending(lambda client: federated.clipped(client, clip))
        return found._replace(round=lambda gradient: noise(summed(gradient)))
    found = found.sending(federated.adaptively_clipped)
    shared = {**found.shared, **clipping.started(clip)}
    return found._replace(round=lambda gradient: federated.adaptive(noise(summed(gradient)), quantile), shared=shared)


def reach(config: Config) -> float | None:
    """The greatest norm of what one client adds to the sum; None where there is no bound."""
    if config.client_clip is None or config.client_quantile is None:
        return config.client_clip
    return federated.sensitivity()


def local(config: Config, loss: Loss) -> tuple[GradFn, optax.GradientTransformation]:
    """(the gradient, the optimizer) of local training, which begins anew in each round."""
    gradient, _ = recipe.gradient(replace(config, bitwise=None), loss)
    return gradient, recipe.optimized(config, lambda count: config.learning_rate)


def require(config: Config) -> None:
    """Raise InputError for flags that have no meaning here, or none together."""
    name, exact = config.algorithm, config.algorithm in algorithms.EXACT
    used = (config.optimizer, config.momentum, config.weight_decay, config.clip, config.layer_decay)
    over, kept = name != CENTRALIZED, name == "scaffold" or config.update != "full"
    refused = [
        (exact and config.client_clip is not None,
         f"--algorithm {name} reads its clients' whole ways, and --client-clip cuts them short",
         "leave one of them out"),
        (exact and used != ("sgd", 0, 0, None, 1),
         f"--algorithm {name} reads its clients' ways as those of plain SGD",
         "use --optimizer sgd --momentum 0 --weight-decay 0, no --clip, no --layer-decay"),
        (config.client_quantile is not None and config.client_clip is None,
         f"--client-quantile {config.client_quantile} needs a norm to begin with", "give --client-clip, as in 1"),
        (config.client_quantile is not None and config.combine != "mean",
         f"--client-quantile counts votes in a sum of updates, and --combine {config.combine} is none",
         "use --combine mean"),
        (over and config.find_learning_rate,
         "--find-learning-rate has no meaning over rounds", f"leave it out, or use --algorithm {CENTRALIZED}"),
        (over and config.schedule == "plateau",
         "--schedule plateau has no meaning over rounds", f"use another, or --algorithm {CENTRALIZED}"),
        (over and config.precision == "float16",
         "--precision float16 has no meaning over rounds", f"use bfloat16, or --algorithm {CENTRALIZED}"),
        (over and config.bitwise and (kept or config.combine != "mean"),
         "--bitwise adds updates up, and keeps nothing for clients",
         "leave it out, or use another --algorithm, --update full and --combine mean"),
    ]  # fmt: skip
    private_too = [
        (not over,
         "privacy for whole clients has none where all data is in one place", "leave --epsilon and --client-noise out"),
        (None not in (config.epsilon, config.client_noise),
         "--epsilon and --client-noise both say how much noise there is", "leave one of them out"),
        (config.client_clip is None,
         "noise for whole clients is measured by what one may add", "give --client-clip, as in --client-clip 1"),
        (config.combine != "mean",
         f"the noise is on a sum of updates, and --combine {config.combine} is none", "use --combine mean"),
        (config.quorum > 0,
         f"epsilon is counted for clients that join by themselves, and by --quorum {config.quorum} others decide it",
         "leave --quorum out; who is lost to --dropout or a --deadline does no harm"),
        (config.bitwise,
         f"--bitwise {config.bitwise} does not hold for noise, whose last bits depend on the mesh", "leave it out"),
        (config.rollbacks or config.spike,
         "--rollbacks and --spike look at the loss without noise", "give --rollbacks 0, and no --spike"),
    ]  # fmt: skip
    for wrong, problem, remedy in refused + private_too * config.private:
        if wrong:
            raise InputError(problem, remedy)
