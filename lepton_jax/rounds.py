"""The flags that mean the same in every experiment over clients. Nothing here starts JAX."""

from dataclasses import dataclass

from lepton_jax import config

CENTRALIZED = "centralized"


@dataclass(frozen=True)
class Config(config.Config):
    """The flags of all experiments, and those that mean the same in every one over clients."""

    algorithm: str = "fedavg"
    """fedavg, fedavgm, fedadagrad, fedadam, fedyogi, fedprox, scaffold, fednova, or centralized: all data in one place,
    with as many passes over it."""
    partition: str = "dirichlet:0.1"
    """Who holds what: iid, dirichlet:CONCENTRATION (the smaller the more uneven), shards:EACH, or natural:FIELD, by the
    field of csv, jsonl or npz data that says whose an example is: a client for each, whatever --clients says; or
    even:FIELD, as many even clients."""
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
    client_quantile: float | None = None
    """Let that norm follow this quantile of the updates' norms from --client-clip on, by votes under the same noise."""
    epsilon: float | None = None
    """Privacy for whole clients within this budget: noise on the sum of clipped updates, as little as keeps to it. A
    round then asks each client by itself, --cohort of them on average, which is what epsilon is counted for."""
    client_noise: float | None = None
    """The same by its noise: the standard deviation over --client-clip. Epsilon is told at the end."""
    delta: float = 1e-5
    """The probability that epsilon may be passed with."""
    dropout: float = 0.0
    """The probability that a client is lost in a round."""
    deadline: float = float("inf")
    """When a round closes, in local steps of the median client; who is slower does not count."""
    quorum: float = 0.0
    """The share of a cohort below which a round moves nothing."""
    resident: bool = False
    """Hold all inputs on every device, at most 256 MiB, so that a round does not wait for the copying of its own."""

    @property
    def private(self) -> bool:
        """Whether privacy for whole clients is asked for."""
        return self.epsilon is not None or self.client_noise is not None
