"""The algorithms by name: what each puts around the local gradient, the client, the round, and the server."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from lepton_jax import tree
from lepton_jax.errors import InputError, named, unknown
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

    gradient: the local gradient. update: what becomes of the update that local training ends with. client: what
    clients send of it. round: what the server makes of their sum. server: the optimizer of a learning rate. shared and
    own: what it starts from in the stats of all, and in what each client keeps.
    """

    gradient: Callable[[GradFn], GradFn] = same
    update: Callable[[Client], Client] = same
    client: Callable[[Client], Client] = same
    round: Callable[[GradFn], GradFn] = same
    server: Callable[[Rate], optax.GradientTransformation] = servers.averaging
    shared: Starts = {}  # noqa: RUF012  nobody writes to it
    own: Starts = {}  # noqa: RUF012

    def sending(self, change: Callable[[Client], Client], **own: Callable[[Params], Any]) -> "Algorithm":
        """The same with a change of the update, such as `compressed`, after those it has; own: what that keeps."""
        return self._replace(update=lambda client: change(self.update(client)), own={**self.own, **own})

    def trained(self, gradient: GradFn, optimizer: optax.GradientTransformation) -> Client:
        """A client that trains by this gradient and optimizer, and sends what the algorithm has it send."""
        return self.client(self.update(local(descend(self.gradient(gradient), optimizer), optimizer)))

    def started(self, params: Params) -> Any:
        """What a client keeps before its first round, `stats["client"]`."""
        return {name: start(params) for name, start in self.own.items()}

    def stats(self, clients: int) -> Starts:
        """What the stats start from, `step.initial(..., **algorithm.stats(clients))`."""
        if not self.own:
            return self.shared
        return {**self.shared, CLIENTS: lambda params: kept(self.started(params), clients)}


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
            shared={scaffold.NAME: tree.zeros},
            own={scaffold.NAME: tree.zeros},
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


def rate(name: str, given: float | None = None) -> float:
    """The server's learning rate: the one given, or the algorithm's usual one.

    Raises InputError for one that is not positive, and for another algorithm.
    """
    usual = named("algorithm", name, RATES)
    if given is not None and not given > 0:
        raise InputError(f"the server's learning rate {given} is not positive", f"{usual:g} is usual for {name}")
    return usual if given is None else given
