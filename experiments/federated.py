"""Federated learning, simulated: clients with data of their own train locally, and a server averages.

python -m experiments.federated --partition dirichlet:0.1 --algorithm scaffold
python -m experiments.federated --compare --run RUN
python -m experiments.federated --preset cifar10 --data-dir CIFAR --mesh 8x1
"""

import pathlib
from dataclasses import dataclass, replace

import lepton_jax as lp

CENTRALIZED = "centralized"


@dataclass(frozen=True)
class Config(lp.cli.Config):
    """Train a classifier on data that stays with its clients.

    --epochs, --eval-every and --checkpoint-every count clients: an epoch asks as many as there are. --batch-size and
    --learning-rate are the clients', and --schedule is that of the server's rate, over rounds.
    """

    model: str = "mlp"
    """mlp, cnn, wrn16-4-group ...; what has batch norm averages its statistics over clients."""
    algorithm: str = "fedavg"
    """fedavg, fedavgm, fedadagrad, fedadam, fedyogi, fedprox, scaffold, fednova, or centralized: all data in one place,
    with as many passes over it."""
    partition: str = "dirichlet:0.1"
    """Who holds what: iid, dirichlet:CONCENTRATION (the smaller the more uneven), or shards:EACH."""
    clients: int = 20
    """How many clients hold the data."""
    cohort: int = 8
    """How many clients a round asks."""
    local_epochs: int = 2
    """Passes of a client over its own data in a round."""
    server_learning_rate: float | None = None
    """Of the server. Default: 1, and 0.03 for fedadagrad, fedadam and fedyogi."""
    proximal: float = 0.01
    """How strongly fedprox holds local training back."""
    combine: str = "mean"
    """How updates become one: mean, median, trimmed (a tenth on both sides), or krum:HOSTILE."""
    update: str = "full"
    """What clients send of their updates: full, top-k (a hundredth), int8 or sign, the last three with memory."""
    client_clip: float | None = None
    """Clip each client's update to this norm, all at the same weight."""
    dropout: float = 0.0
    """The probability that a client is lost in a round."""
    deadline: float = float("inf")
    """When a round closes, in local steps of the median client; who is slower does not count."""
    quorum: float = 0.0
    """The share of a cohort below which a round moves nothing."""
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
    require(config)
    dataset = lp.recipe.dataset(config)
    network = lp.models.build(config.model, len(dataset.classes))
    model = lp.models.normalized(network, *lp.data.statistics(dataset.train))
    criterion = lp.cross_entropy(config.label_smoothing)
    size = dataset.input_shape[0]
    crop = [lp.augment.random_crop(size, padding=size // 8), lp.augment.random_horizontal_flip()]
    augment = lp.augment.compose(*crop) if config.augment else lp.augment.identity

    def around(loss: "lp.types.Loss") -> "lp.types.Loss":
        return lp.augmented(lp.computed(loss, config.precision), augment)

    loss = around(lp.supervised(model, criterion))
    if config.algorithm == CENTRALIZED:
        stream = lp.data.Stream(dataset.train, config.batch_size, config.seed)
        schedule, optimizer = lp.recipe.optimization(config, stream)
        step, stats = lp.recipe.step(config, loss, optimizer)
    else:
        stream, algorithm = cohorts(config, dataset), chosen(config)
        rate = lp.federated.algorithms.rate(config.algorithm, config.server_learning_rate)
        schedule = lp.recipe.scheduled(replace(config, learning_rate=rate), stream)
        optimizer = algorithm.server(schedule)
        client, combine = algorithm.trained(*local(config, loss)), lp.federated.robust.build(config.combine)
        step, stats = update(config, algorithm, lp.federated.federated(client, combine), optimizer)
        if "clients" in stats:
            model = model._replace(rules=lp.federated.rules(model.rules))
    return lp.recipe.Recipe("federated", dataset, stream, model, criterion, optimizer, schedule, step, around, stats)


def cohorts(config: Config, dataset: "lp.data.Dataset") -> "lp.federated.Cohorts":
    """Who holds what, who is asked, and who answers."""
    labels = lp.data.labels(dataset.train)
    held = lp.federated.partition.build(config.partition, labels, config.clients, config.seed)
    asked = lp.federated.sampling.fixed_size(config.clients, config.cohort, config.seed)
    answering = lp.federated.Availability(config.dropout, config.deadline, quorum=config.quorum)
    return lp.federated.Cohorts(
        dataset.train, held, asked, config.cohort, config.batch_size, config.local_epochs, config.seed, answering
    )


def chosen(config: Config) -> "lp.federated.algorithms.Algorithm":
    """The algorithm, and the form in which its updates travel."""
    rates = {"learning_rate": config.learning_rate, "strength": config.proximal}
    algorithm = lp.federated.algorithms.build(config.algorithm, clients=config.clients, **rates)
    if config.update != "full":
        code = lp.errors.named("form of updates", config.update, lp.federated.compression.CODES)()
        algorithm = algorithm.sending(lambda client: lp.federated.compressed(client, code), residual=lp.tree.zeros)
    if config.client_clip is not None:
        clip = config.client_clip
        algorithm = algorithm.sending(lambda client: lp.federated.clipped(client, clip))
    return algorithm


def local(config: Config, loss: "lp.types.Loss") -> tuple:
    """(the gradient, the optimizer) of local training, which begins anew in each round."""
    gradient, _ = lp.recipe.gradient(replace(config, bitwise=None), loss)
    return gradient, lp.recipe.optimized(config, lambda count: config.learning_rate)


def update(config: Config, algorithm: "lp.federated.algorithms.Algorithm", gradient: "lp.types.GradFn", optimizer):
    """(the server's step along a round's gradient, the stats that it starts from)."""
    summed = lp.sharded(gradient, config.bitwise) if config.bitwise else gradient  # inside: FedNova looks at the sum
    return lp.recipe.averaged(config, lp.descend(algorithm.round(summed), optimizer), algorithm.stats(config.clients))


def job(config: Config) -> "lp.federation.Job":
    """The same between machines, for `python -m lepton_jax.federated serve` and `join`: clients client-0, client-1 ...

    Who takes part is then a matter of who is there: --cohort, --dropout, --deadline and --quorum are the coordinator's.
    """
    if config.algorithm == CENTRALIZED or config.bitwise:
        raise lp.InputError("a job between machines is of clients alone", "leave --bitwise and centralized out")
    recipe, algorithm = compose(replace(config, cohort=config.clients)), chosen(config)
    client = algorithm.trained(*local(config, recipe.around(lp.supervised(recipe.model, recipe.criterion))))
    step, _ = update(config, algorithm, lp.federation.received, recipe.optimizer)
    return lp.federation.composed(recipe, config, algorithm, client, step, lp.federated.robust.build(config.combine))


def require(config: Config) -> None:
    """Raise InputError for flags that have no meaning here, or none together."""
    exact = config.algorithm in lp.federated.algorithms.EXACT
    used = (config.optimizer, config.momentum, config.weight_decay, config.clip, config.layer_decay)
    if exact and config.client_clip is not None:
        problem = f"--algorithm {config.algorithm} reads its clients' whole ways, and --client-clip cuts them short"
        raise lp.InputError(problem, "leave one of them out")
    if exact and used != ("sgd", 0, 0, None, 1):
        problem = f"--algorithm {config.algorithm} reads its clients' ways as those of plain SGD"
        raise lp.InputError(problem, "use --optimizer sgd --momentum 0 --weight-decay 0, no --clip, no --layer-decay")
    if config.algorithm == CENTRALIZED:
        return
    if config.find_learning_rate or config.precision == "float16":
        flag = "--find-learning-rate" if config.find_learning_rate else "--precision float16"
        raise lp.InputError(f"{flag} has no meaning over rounds", f"leave it out, or use --algorithm {CENTRALIZED}")
    if config.bitwise and (config.algorithm == "scaffold" or config.update != "full" or config.combine != "mean"):
        problem = "--bitwise adds updates up, and keeps nothing for clients"
        raise lp.InputError(problem, "leave it out, or use another --algorithm, --update full and --combine mean")


def main(config: Config) -> "lp.experiment.Result | None":
    """Run the recipe; with --compare, three of them."""
    if config.compare:
        return compared(config)
    recipe = compose(config)
    result = lp.experiment.run(recipe, config)
    if isinstance(recipe.stream, lp.federated.Cohorts) and result.directory.is_dir():
        lp.clients.drawn(result.directory, recipe, recipe.stream, config.partition)
        if config.personalize:
            gradient, optimizer = local(config, recipe.around(lp.supervised(recipe.model, recipe.criterion)))
            alone = lp.federated.local(lp.descend(gradient, optimizer), optimizer)
            lp.clients.tuned(result.directory, recipe, recipe.stream, alone, result.state)
    return result


def compared(config: Config) -> None:
    """The same number of passes over the same data: in one place, with even clients, and with the given ones."""
    directory = pathlib.Path(config.run) if config.run else lp.runs.fresh("federated")
    alone = replace(config, compare=False)
    passes = {
        name: getattr(config, name) * config.local_epochs for name in ("epochs", "eval_every", "checkpoint_every")
    }
    runs = {
        CENTRALIZED: replace(alone, algorithm=CENTRALIZED, log_every=20 * config.log_every, **passes),
        "iid": replace(alone, partition="iid"),
        "clients": alone,
    }
    lp.several.variants(main, runs, directory, "clients")


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
