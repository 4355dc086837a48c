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


PRESETS = {
    "digits": Config(
        epochs=20,
        batch_size=16,
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        log_every=5,
        eval_every=2,
        checkpoint_every=4,
    ),
    "smoke": Config(epochs=1, momentum=0.0, weight_decay=0.0, schedule="constant", log_every=1, local_epochs=1),
    "cifar10": Config(
        data="cifar10",
        model="cnn",
        partition="dirichlet:0.3",
        clients=100,
        cohort=16,
        local_epochs=2,
        epochs=10,
        batch_size=32,
        learning_rate=0.05,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        augment=True,
        log_every=5,
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
        stream = cohorts(config, dataset)
        combine = lp.federated.robust.build(config.combine)
        gradient = lp.federated.federated(client(config, loss), combine)
        step, stats, schedule, optimizer = server(config, stream, gradient)
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


def chosen(config: Config) -> "tuple[lp.federated.algorithms.Algorithm, dict]":
    """The algorithm, and the stats that it and the form of the updates start from."""
    algorithm = lp.federated.algorithms.build(
        config.algorithm, learning_rate=config.learning_rate, clients=config.clients, strength=config.proximal
    )
    residual = {} if config.update == "full" else {"residual": lp.federated.compression.started}
    return algorithm, algorithm.stats(config.clients, **residual)


def client(config: Config, loss: "lp.types.Loss") -> "lp.federated.Client":
    """What a client does in a round."""
    algorithm, _ = chosen(config)
    gradient, optimizer = local(config, loss)

    def around(client: "lp.federated.Client") -> "lp.federated.Client":
        if config.update != "full":
            code = lp.errors.named("form of updates", config.update, lp.federated.compression.CODES)
            client = lp.federated.compressed(client, code())
        return client if config.client_clip is None else lp.federated.clipped(client, config.client_clip)

    return lp.federated.algorithms.client(algorithm, gradient, optimizer, around)


def local(config: Config, loss: "lp.types.Loss") -> tuple:
    """(the gradient, the optimizer) of local training, which begins anew in each round."""
    gradient = lp.accumulate(lp.plain(loss), config.parts)
    if config.sharpness:
        gradient = lp.sharpness_aware(gradient, config.sharpness)
    options = {"momentum": config.momentum, "weight_decay": config.weight_decay, "clip": config.clip}
    return gradient, lp.optimizers.build(config.optimizer, lambda count: config.learning_rate, **options)


def server(config: Config, stream: "lp.federated.Cohorts", gradient: "lp.types.GradFn") -> tuple:
    """(the update, the stats that it starts from, the schedule, the optimizer) of a round's pseudo-gradient."""
    algorithm, stats = chosen(config)
    schedule = lp.recipe.scheduled(replace(config, learning_rate=server_rate(config)), stream)
    optimizer = algorithm.server(schedule)
    gradient = algorithm.round(gradient)
    step = lp.descend(lp.sharded(gradient, config.bitwise) if config.bitwise else gradient, optimizer)
    if config.ema:
        step, stats = lp.averaged(step, config.ema), {**stats, "ema": lp.step.ema}
    return step, stats, schedule, optimizer


def server_rate(config: Config) -> float:
    """The peak learning rate of the server."""
    usual = lp.federated.algorithms.RATES[config.algorithm]
    rate = usual if config.server_learning_rate is None else config.server_learning_rate
    if not rate > 0:
        raise lp.InputError(f"--server-learning-rate {rate} is not positive", f"{usual:g} is usual")
    return rate


def job(config: Config) -> "lp.federation.Job":
    """The same between machines, for `python -m lepton_jax.federated serve` and `join`: clients client-0, client-1 ...

    Who takes part is then a matter of who is there: --cohort, --dropout, --deadline and --quorum are the coordinator's.
    """
    import jax

    config = replace(config, cohort=config.clients)
    if config.algorithm == CENTRALIZED or config.bitwise:
        raise lp.InputError("a job between machines is of clients alone", "leave --bitwise and centralized out")
    recipe, (algorithm, _) = compose(config), chosen(config)
    names, stream = tuple(f"client-{number}" for number in range(config.clients)), cohorts(config, recipe.dataset)
    step, stats, _, _ = server(config, stream, lp.federation.received)
    own = {} if config.update == "full" else {"residual": lp.federated.compression.started}

    def data(name: str, round: int) -> dict:
        return stream.of(names.index(name), round)

    def state() -> "lp.TrainState":
        shared = {name: start for name, start in stats.items() if name != "clients"}
        inputs = lp.step.shapes(data(names[0], 0))["input"]
        one = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
        return lp.initial(recipe.model, recipe.optimizer, lp.keys.seeded(config.seed), one, **shared)

    def evaluate(state: "lp.TrainState") -> dict:
        assess = lp.experiment.assessor(recipe, config, lp.mesh.make("1x1"))
        return {f"test/{name}": value for name, value in assess(state, "test").metrics.items()}

    return lp.federation.Job(
        name="federated",
        state=state,
        client=client(config, recipe.around(lp.supervised(recipe.model, recipe.criterion))),
        step=step,
        clients=names,
        rounds=stream.steps(config.epochs),
        batches=lp.step.shapes(data(names[0], 0)),
        data=data,
        own=lambda params: {name: start(params) for name, start in {**algorithm.own, **own}.items()},
        combine=lp.federated.robust.build(config.combine),
        evaluate=evaluate,
    )


def require(config: Config) -> None:
    """Raise InputError for flags that have no meaning here, or none together."""
    exact = config.algorithm in lp.federated.algorithms.EXACT
    plain = (config.optimizer, config.momentum, config.weight_decay, config.clip) == ("sgd", 0, 0, None)
    if exact and config.client_clip is not None:
        problem = f"--algorithm {config.algorithm} reads its clients' whole ways, and --client-clip cuts them short"
        raise lp.InputError(problem, "leave one of them out")
    if exact and not plain:
        problem = f"--algorithm {config.algorithm} reads its clients' ways as those of plain SGD"
        raise lp.InputError(problem, "use --optimizer sgd --momentum 0 --weight-decay 0, and no --clip")
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
    if config.algorithm != CENTRALIZED and result.directory.is_dir():
        told(recipe, config, result)
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


def told(recipe: "lp.recipe.Recipe", config: Config, result: "lp.experiment.Result") -> None:
    """The picture of who holds what, and what clients gain by tuning a copy for themselves."""
    import jax

    stream, labels = cohorts(config, recipe.dataset), lp.data.labels(recipe.dataset.train)
    if jax.process_index():
        return
    held = lp.federated.partition.held(stream.partition, labels, len(recipe.dataset.classes))
    lp.federated.chart.draw(result.directory / "clients.png", held, recipe.dataset.classes, config.partition)
    print(f"clients    {result.directory / 'clients.png'}", flush=True)
    if config.personalize:
        gradient, optimizer = local(config, recipe.around(lp.supervised(recipe.model, recipe.criterion)))
        alone = lp.federated.local(lp.descend(gradient, optimizer), optimizer)
        state = result.state
        stats = {name: entry for name, entry in state.stats.items() if name == "model"}
        key, params = lp.keys.named(state.key, "personal"), state.stats.get("ema", state.params)
        gain = lp.federated.personal.gained(recipe.model, alone, params, stats, stream, recipe.dataset.test, key)
        record = {name: getattr(gain, name).tolist() for name in gain._fields}
        lp.runs.write(result.directory / "personal.json", record)
        means = f"{gain.before.mean():.4f} -> {gain.after.mean():.4f}"
        print(f"personal   {means}  accuracy on a client's own classes, mean of clients", flush=True)


if __name__ == "__main__":
    lp.cli.run(main, Config, PRESETS)
