"""The algorithms by name: what each puts around the local gradient, the client, the round, and the server."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from lepton_jax.errors import InputError, unknown
from lepton_jax.federated import nova, scaffold
from lepton_jax.federated import server as servers
from lepton_jax.federated.local import Client, equal, local
from lepton_jax.federated.proximal import proximal
from lepton_jax.federated.rounds import CLIENTS, kept
from lepton_jax.federated.server import Rate
from lepton_jax.step import descend
from lepton_jax.types import GradFn, Params

Starts = dict[str, Callable[[Params], Any]]
"""Entries of the stats, each with the function of the parameters that gives its start."""


def same(arrow: Any) -> Any:
    """What an algorithm puts around an arrow that it leaves alone."""
    return arrow


class Algorithm(NamedTuple):
    """A federated algorithm as what it changes, from the inside out.

    gradient: the local gradient. client: what clients send. round: what the server makes of it. server: the optimizer
    of a learning rate. shared and own: what it starts from in the stats of all, and in what each client keeps.
    """

    gradient: Callable[[GradFn], GradFn] = same
    client: Callable[[Client], Client] = same
    round: Callable[[GradFn], GradFn] = same
    server: Callable[[Rate], optax.GradientTransformation] = servers.averaging
    shared: Starts = {}  # noqa: RUF012  nobody writes to it
    own: Starts = {}  # noqa: RUF012

    def stats(self, clients: int, **own: Callable[[Params], Any]) -> Starts:
        """What the stats start from, `step.initial(..., **algorithm.stats(clients))`. own: what others keep too."""
        entries = {**self.own, **own}
        if not entries:
            return self.shared
        return {
            **self.shared,
            CLIENTS: lambda params: kept({name: start(params) for name, start in entries.items()}, clients),
        }


NAMES: tuple[str, ...] = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedprox", "scaffold", "fednova")
EXACT = ("scaffold", "fednova")  # these read off the way how long plain local SGD went


def build(name: str, *, learning_rate: float, clients: int, strength: float = 0.01) -> Algorithm:
    """The algorithm of that name.

    learning_rate: of the local SGD, of which SCAFFOLD needs to know. clients: of all, in the cohort or not. strength:
    FedProx's. Raises InputError for another name, and for numbers that cannot be.
    """
    if name not in NAMES:
        raise unknown("algorithm", name, NAMES)
    if clients < 1:
        raise InputError(f"{clients} clients cannot train", "give at least 1")
    if name == "fedprox":
        return Algorithm(gradient=lambda gradient: proximal(gradient, strength))
    if name == "scaffold":
        return Algorithm(
            gradient=scaffold.corrected,
            client=lambda client: scaffold.informed(equal(client), learning_rate),
            round=lambda gradient: scaffold.controlled(gradient, clients),
            shared={scaffold.NAME: scaffold.started},
            own={scaffold.NAME: scaffold.started},
        )
    if name == "fednova":
        return Algorithm(client=nova.normalized, round=nova.rescaled)
    return Algorithm(server=BY[name])


BY: dict[str, Callable[..., optax.GradientTransformation]] = {
    "fedavg": servers.averaging,
    "fedavgm": servers.momentum,
    "fedadagrad": servers.adagrad,
    "fedadam": servers.adam,
    "fedyogi": servers.yogi,
}
ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
RATES: dict[str, float] = {name: 0.03 if name in ADAPTIVE else 1.0 for name in NAMES}
"""Usual learning rates of the server."""


def client(
    algorithm: Algorithm,
    gradient: GradFn,
    optimizer: optax.GradientTransformation,
    around: Callable[[Client], Client] = same,
) -> Client:
    """A client of the algorithm. around: what is put around local training, such as `compressed` updates."""
    return algorithm.client(around(local(descend(algorithm.gradient(gradient), optimizer), optimizer)))
