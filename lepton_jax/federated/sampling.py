"""Who is asked in a round, and who answers in time: pure functions of the seed and the round, on the host.

Numbers come from Philox 4x64-10 (`data.permutation`), keyed by the seed and what they are for, and counted by round
and client, so that no draw depends on another.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lepton_jax.data import Drawing
from lepton_jax.errors import InputError

Cohort = tuple[Int[np.ndarray, " cohort"], Float[np.ndarray, " cohort"]]
"""(the numbers of the clients, their participation: 0 for padding and for who does not answer, else 1)."""


@dataclass(frozen=True)
class Sampling:
    """Who is asked in a round: asked: round -> Cohort. drawing: how they are drawn of all clients, in which cohorts."""

    asked: Callable[[int], Cohort]
    drawing: Drawing

    def __call__(self, round: int) -> Cohort:
        """The clients that are asked in a round."""
        return self.asked(round)


def numbers(seed: int, purpose: str, round: int, client: int, count: int, part: int = 0) -> np.ndarray:
    """`count` random 64-bit numbers for one purpose, one round and one client; part: for its epochs, say."""
    key = np.array([seed, zlib.crc32(purpose.encode()) + 2**32], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, part, client, round], np.uint64)).random_raw(count)


def uniform(seed: int, purpose: str, round: int, client: int, count: int) -> Float[np.ndarray, " count"]:
    """The same as numbers in [0, 1)."""
    return (numbers(seed, purpose, round, client, count) >> np.uint64(11)) * 2.0**-53


def fixed_size(clients: int, cohort: int, seed: int) -> Sampling:
    """Another `cohort` of the clients in each round, drawn without replacement, in rising order of their numbers.

    Raises InputError for a cohort that is empty or larger than the number of clients.
    """
    _require(clients, cohort, seed)

    def asked(round: int) -> Cohort:
        order = np.argsort(numbers(seed, "cohort", round, 0, clients), kind="stable")
        return np.sort(order[:cohort]).astype(np.int32), np.ones(cohort, np.float32)

    return Sampling(asked, Drawing("fixed", clients, cohort, cohort))


def poisson(clients: int, expected: float, seed: int, most: int) -> Sampling:
    """Each client by itself with probability expected / clients, as privacy's accounting likes it; at most `most`.

    Cohorts have the fixed size `most`: unused places hold the number `clients`, which no client has, at participation
    0, and of more than `most` that many are taken. Raises InputError for numbers that cannot be.
    """
    _require(clients, min(most, clients), seed)
    if not 0 < expected <= most:
        problem = f"{expected} expected clients do not go into cohorts of {most}"
        raise InputError(problem, "leave room for the spread: expected + 5 * sqrt(expected)")

    def asked(round: int) -> Cohort:
        drawn = np.flatnonzero(uniform(seed, "cohort", round, 0, clients) < expected / clients)
        order = np.argsort(numbers(seed, "over-full", round, 0, len(drawn)), kind="stable") if len(drawn) else []
        drawn = np.sort(drawn[order[:most]]) if len(drawn) > most else drawn
        there = (np.arange(most) < len(drawn)).astype(np.float32)
        return np.append(drawn, [clients] * (most - len(drawn))).astype(np.int32), there

    return Sampling(asked, Drawing("poisson", clients, expected, most))


@dataclass(frozen=True)
class Availability:
    """Which of the asked clients answer in time, as a round on real devices would have it.

    dropout: the probability that a client is lost in a round. deadline: when the round closes, in units of the time
    that the median client takes for one local step. spread: the standard deviation of the logarithm of clients' times,
    half of the variance a client's own for good, the rest anew in each round. quorum: the share of a cohort below
    which a round moves nothing. Raises InputError for numbers that cannot be.
    """

    dropout: float = 0.0
    deadline: float = math.inf
    spread: float = 0.5
    quorum: float = 0.0

    def __post_init__(self):
        for name in ("dropout", "quorum"):
            if not 0 <= getattr(self, name) <= 1:
                problem = f"a {name} of {getattr(self, name)} is outside [0, 1]"
                raise InputError(problem, "give a share, such as 0.1")
        if not self.deadline > 0:
            raise InputError(f"a deadline of {self.deadline} is over before it begins", "give a time above 0")
        if not 0 <= self.spread < math.inf:
            raise InputError(f"a spread of {self.spread} is negative or not finite", "0.5 is usual; 0 is for none")

    def seconds(self, seed: int, round: int, clients: np.ndarray, steps: np.ndarray) -> Float[np.ndarray, " cohort"]:
        """When each client is done with its local steps; infinite for the lost. Times are log-normal."""
        lasting = np.array([_normal(seed, "speed", 0, client) for client in clients.tolist()])
        passing = np.array([_normal(seed, "speed", round + 1, client) for client in clients.tolist()])
        lost = np.array([uniform(seed, "dropout", round, client, 1)[0] < self.dropout for client in clients.tolist()])
        times = steps * np.exp(self.spread * math.sqrt(0.5) * (lasting + passing))
        return np.where(lost, math.inf, times)

    def participation(
        self, seed: int, round: int, clients: np.ndarray, steps: np.ndarray
    ) -> Float[np.ndarray, " cohort"]:
        """1 for each client that answers by the deadline; 0 for all where they are less than the quorum."""
        if self.dropout == 0 and math.isinf(self.deadline):
            return np.ones(len(clients), np.float32)
        return closed(self.seconds(seed, round, clients, steps), self.deadline, self.quorum)


def closed(seconds: np.ndarray, deadline: float, quorum: float) -> Float[np.ndarray, " cohort"]:
    """The participation of clients that answer after so many seconds: 1 by the deadline, 0 for all below the quorum.

    quorum: the least share of them that a round needs.
    """
    there = np.isfinite(seconds) & (seconds <= deadline)
    return (there * (there.sum() >= quorum * len(seconds))).astype(np.float32)


def _normal(seed: int, purpose: str, round: int, client: int) -> float:
    """A standard normal number, by Box and Muller's transform."""
    radius, angle = uniform(seed, purpose, round, client, 2)
    return math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)


def _require(clients: int, cohort: int, seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise InputError(f"the seed {seed} is outside 0..2**64-1", "use a seed from 0 up")
    if cohort < 1:
        raise InputError(f"a cohort of {cohort} clients trains nothing", "ask at least 1")
    if cohort > clients:
        raise InputError(f"a cohort of {cohort} is more than the {clients} clients", f"ask at most {clients}")
