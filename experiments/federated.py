"""Federated learning, simulated: clients with data of their own train locally, and a server averages.

python -m experiments.federated --partition dirichlet:0.1 --algorithm scaffold
python -m experiments.federated --compare --run RUN
python -m experiments.federated --preset private --epsilon 8
python -m experiments.federated --preset cifar10 --data-dir CIFAR --mesh 8x1
"""

import math
import pathlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import lepton_jax as lp

if TYPE_CHECKING:
    Algorithm = lp.federated.algorithms.Algorithm


@dataclass(frozen=True)
class Config(lp.rounds.Config):
    """Train a classifier on data that stays with its clients.

    --epochs, --eval-every and --checkpoint-every count clients: an epoch asks as many as there are. --batch-size and
    --learning-rate are the clients', and --schedule is that of the server's rate, over rounds.
    """

    model: str = "mlp"
    """mlp, cnn, wrn16-4-group ...; what has batch norm averages its statistics over clients."""
    augment: bool = False
    """Random crops and flips on the clients; wrong for digits."""
    personalize: bool = False
    """At the end, tune a copy for each client on its own data, and compare."""
    compare: bool = False
    """Make three runs: centralized, with IID clients, and as the flags say; comparison.html lays them side by side."""


SGD = Config(momentum=0.0, weight_decay=0.0, schedule="constant", log_every=5)
PRESETS = {
    "digits": replace(SGD, epochs=20, batch_size=16, eval_every=2, checkpoint_every=4),
    "smoke": replace(SGD, epochs=1, local_epochs=1, log_every=1),
    "private": replace(
        SGD,
        partition="iid",
        clients=200,
        cohort=64,
        epochs=20,
        batch_size=8,
        client_clip=1.0,
        epsilon=8.0,
        rollbacks=0,
        eval_every=5,
    ),
    "cifar10": replace(
        SGD,
        data="cifar10",
        model="cnn",
        partition="dirichlet:0.3",
        clients=100,
        cohort=16,
        batch_size=32,
        learning_rate=0.05,
        augment=True,
    ),
}


def compose(config: Config) -> "lp.recipe.Recipe":
    """Data, model, loss and update as the flags say."""
    lp.clients.require(config)
    dataset = lp.recipe.dataset(config, by=lp.federated.partition.field(config.partition))
    source = lp.data.Resident(dataset.train) if config.resident else dataset.train
    network = lp.models.build(config.model, len(dataset.classes))
    scales = (0.5, 0.5) if config.private else lp.data.statistics(dataset.train)  # private ones are not measured
    model, criterion = lp.models.normalized(network, *scales), lp.cross_entropy(config.label_smoothing)

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        loss, size = lp.computed(loss, config.precision), dataset.input_shape[0]
        if config.augment:
            crop = lp.augment.random_crop(size, padding=size // 8)
            loss = lp.augmented(loss, lp.augment.compose(crop, lp.augment.random_horizontal_flip()))
        return lp.resident(loss, source.inputs) if isinstance(source, lp.data.Resident) else loss

    def require(state: "lp.TrainState") -> None:
        if config.private and "model" in state.stats:
            problem = f"--model {config.model} has batch norm, whose averages would leave the clients without noise"
            raise lp.InputError(problem, "use cnn, mlp or wrn16-4-group")
        if plan := planned(config, stream):
            plan.require(step, state, stream, stream.steps(config.epochs))

    loss = around(lp.supervised(model, criterion))
    if config.algorithm == lp.rounds.CENTRALIZED:
        stream = lp.data.Stream(source, config.batch_size, config.seed)
        schedule, optimizer = lp.recipe.optimization(config, stream)
        step, stats = lp.recipe.step(config, loss, optimizer)
    else:
        stream, algorithm = rounds(config, source)
        rate = lp.federated.algorithms.rate(config.algorithm, config.server_learning_rate)
        schedule = lp.recipe.scheduled(replace(config, learning_rate=rate), stream)
        optimizer = algorithm.server(schedule)
        client, combine = algorithm.trained(*lp.clients.local(config, loss)), lp.federated.robust.build(config.combine)
        gradient = lp.federated.federated(client, combine)
        if config.bitwise:
            gradient = lp.sharded(gradient, config.bitwise)
        step = lp.descend(algorithm.round(gradient), optimizer)
        step, stats = lp.recipe.averaged(config, step, algorithm.stats(stream.examples))
        if "clients" in stats:
            model = model._replace(rules=lp.federated.rules(model.rules))
    parts = (dataset, stream, model, criterion, optimizer, schedule, step, around, stats)
    return lp.recipe.Recipe("federated", *parts, require=require)


def rounds(config: Config, source: "lp.data.Source") -> "tuple[lp.federated.Cohorts, Algorithm]":
    """(the clients of all rounds, the algorithm).

    With privacy for whole clients there is noise on the sum of their clipped updates (DP-FedAvg, McMahan et al. 2018,
    https://arxiv.org/abs/1710.06963): here two wings meet.
    """
    stream = lp.clients.cohorts(config, source)
    plan = planned(config, stream)
    if plan is None:
        return stream, lp.clients.algorithm(config, stream.examples)

    def noisy(gradient: "lp.types.GradFn") -> "lp.types.GradFn":
        return lp.privacy.noised(gradient, plan.noise, plan.clip, plan.batch)

    algorithm = lp.clients.algorithm(config, stream.examples, noisy)
    asked = lp.federated.sampling.poisson(stream.examples, config.cohort, config.seed, plan.capacity)
    return replace(stream, asked=asked), algorithm._replace(shared={**algorithm.shared, "privacy": plan.start})


def planned(config: Config, stream: "lp.data.Batches") -> "lp.privacy.Plan | None":
    """What privacy for whole clients takes and costs, if each joins by itself; None where it is not asked for."""
    clip = lp.clients.reach(config)
    if not config.private or clip is None:
        return None
    devices = math.prod(lp.mesh.parse(config.mesh).values()) if config.mesh else 1
    rows = math.lcm(8, devices)  # of a multiple: as many on 1, 2, 4 and 8 devices
    noise = {"noise": config.client_noise, "epsilon": config.epsilon, "delta": config.delta, "multiple": rows}
    return lp.privacy.plan(stream.examples, config.cohort, stream.steps(config.epochs), clip, **noise)


def job(config: Config) -> "lp.federation.Job":
    """The same between machines, for `python -m lepton_jax.federated serve` and `join`: clients client-0, client-1 ...

    Who takes part is then a matter of who is there: --cohort, --dropout, --deadline and --quorum are the coordinator's.
    """
    if config.algorithm == lp.rounds.CENTRALIZED or config.bitwise or config.private:
        problem = "a job between machines is of clients alone, in no virtual shards, and without a count of its privacy"
        raise lp.InputError(problem, "leave centralized, --bitwise, --epsilon and --client-noise out")
    if config.resident:
        raise lp.InputError("a job between machines has no inputs of all clients", "leave --resident out")
    recipe, algorithm = compose(replace(config, cohort=config.clients)), lp.clients.algorithm(config, config.clients)
    client = algorithm.trained(*lp.clients.local(config, recipe.around(lp.supervised(recipe.model, recipe.criterion))))
    step = lp.descend(algorithm.round(lp.federation.received), recipe.optimizer)
    step, combine = lp.recipe.averaged(config, step, {})[0], lp.federated.robust.build(config.combine)
    return lp.federation.composed(recipe, config, algorithm, client, step, combine)


def main(config: Config) -> "lp.experiment.Result | None":
    """Run the recipe; with --compare, three of them."""
    if config.compare:
        return compared(config)
    recipe = compose(config)
    result = lp.experiment.run(recipe, config)
    if isinstance(recipe.stream, lp.federated.Cohorts) and result.directory.is_dir():
        lp.holdings.drawn(result.directory, recipe, recipe.stream, config.partition)
        if plan := planned(config, recipe.stream):
            lp.holdings.accounted(result.directory, plan.told)
        if config.personalize:
            trained = lp.clients.local(config, recipe.around(lp.supervised(recipe.model, recipe.criterion)))
            alone = lp.federated.algorithms.Algorithm().trained(*trained)
            lp.holdings.tuned(result.directory, recipe, recipe.stream, alone, result.state)
    return result


def compared(config: Config) -> None:
    """The same number of passes over the same data: in one place, with even clients, and with the given ones."""
    directory = pathlib.Path(config.run) if config.run else lp.runs.fresh("federated")
    alone = replace(config, compare=False)
    field = lp.federated.partition.field(config.partition)
    passes = {
        name: getattr(config, name) * config.local_epochs for name in ("epochs", "eval_every", "checkpoint_every")
    }
    runs = {
        lp.rounds.CENTRALIZED: replace(
            alone,
            algorithm=lp.rounds.CENTRALIZED,
            epsilon=None,
            client_noise=None,
            log_every=20 * config.log_every,
            **passes,
        ),
        "iid": replace(alone, partition=f"even:{field}" if field else "iid"),
        "clients": alone,
    }
    lp.several.variants(main, runs, directory, "clients")


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
