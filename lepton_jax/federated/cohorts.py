"""The stream of a federated run on one machine: a cohort of clients for each round, a pure function of (seed, round).

Clients hold different numbers of examples. Each makes the local steps that its own examples take, and the batches of
all have the shape of the largest client's: what is not there has weight 0, and costs nothing where clients are
computed one after the other.
"""

import functools
from collections.abc import Collection, Generator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from lepton_jax.data import Drawing, Source, gather
from lepton_jax.data.prefetch import THREADS, ahead
from lepton_jax.data.stream import number, steps
from lepton_jax.errors import InputError
from lepton_jax.federated.partition import Partition
from lepton_jax.federated.sampling import Availability, Sampling, numbers

ALWAYS = Availability()


@dataclass(frozen=True)
class Cohorts:
    """Rounds of clients as batches, leaves [cohort, steps, batch, ...]; see `data.Batches`, whose examples are clients.

    source: all examples. partition: each client's. asked: who is asked in a round. cohort: how many, on average.
    local_batch_size, local_epochs: how a client goes through its own examples, in an order of its own in each round.
    availability: who answers in time. shard: (process, processes), of which this one reads its own clients only.
    skipped: rounds left out, by number. Raises InputError for numbers that cannot be.
    """

    source: Source
    partition: Partition
    asked: Sampling
    cohort: int
    local_batch_size: int
    local_epochs: int
    seed: int
    availability: Availability = ALWAYS
    shard: tuple[int, int] = (0, 1)
    skipped: tuple[int, ...] = ()

    def __post_init__(self):
        for name, value in (("batch size", self.local_batch_size), ("number of epochs", self.local_epochs)):
            if value < 1:
                raise InputError(f"a local {name} of {value} trains nothing", "give at least 1")
        if self.cohort % self.shard[1]:
            problem = f"a cohort of {self.cohort} does not divide over {self.shard[1]} processes"
            raise InputError(problem, f"use a multiple of {self.shard[1]}")

    @property
    def batch_size(self) -> int:
        """The clients of a round."""
        return self.cohort

    @property
    def examples(self) -> int:
        """The number of clients: an epoch is over when as many have been asked."""
        return len(self.partition)

    @property
    def drawing(self) -> Drawing:
        """How cohorts are drawn of all clients."""
        return self.asked.drawing

    @functools.cached_property
    def local_steps(self) -> int:
        """The local steps of the largest client."""
        return self._steps(max(map(len, self.partition)))

    @property
    def steps_per_epoch(self) -> int:
        """The rounds that ask as many clients as there are."""
        return self.steps(1)

    def steps(self, epochs: int | float) -> int:
        """The rounds that `epochs` take: ceil(epochs * clients / cohort)."""
        return steps(epochs, self.examples, self.cohort)

    def part(self, process: int, processes: int) -> "Cohorts":
        """The same rounds, of each the clients that one of so many processes holds."""
        return replace(self, shard=(process, processes))

    def without(self, numbers: Collection[int]) -> "Cohorts":
        """The same rounds but for those of these numbers."""
        return replace(self, skipped=tuple(sorted({*self.skipped, *numbers})))

    def number(self, step: int) -> int:
        """Which round a step has: the step's own number, but for those that are skipped."""
        return number(step, self.skipped)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The cohort of a step: the source's columns, "weight", "index", and "client" and "participation" [cohort].

        Who does not answer, and what fills the cohort up, has weight 0 too, so that nothing is trained for nothing.
        """
        round = self.number(step)
        clients, there = self.asked(round)
        real = np.flatnonzero(there)
        makes = np.array([self._steps(len(self.held(client))) for client in clients[real].tolist()])
        answered = self.availability.participation(self.seed, round, clients[real], makes)
        there = np.zeros(len(clients), np.float32)
        there[real] = answered
        process, processes = self.shard
        mine = slice(process * len(clients) // processes, (process + 1) * len(clients) // processes)
        clients, there = clients[mine], there[mine]
        index, weight = map(np.stack, zip(*(self.local(client, round) for client in clients.tolist()), strict=True))
        found = self._gathered(index, weight * (there[:, None, None] > 0))
        return {**found, "client": clients, "participation": there}

    def local(self, client: int, round: int) -> tuple[Int[np.ndarray, "steps batch"], Float[np.ndarray, "steps batch"]]:
        """(the examples of a client's local steps, as positions in the source, and their weights, 0 for padding)."""
        own = self.held(client)
        orders = [
            np.argsort(numbers(self.seed, "local order", round, client, len(own), part=epoch), kind="stable")
            for epoch in range(self.local_epochs)
        ]
        rows = own[np.concatenate(orders)]
        size = self.local_steps * self.local_batch_size
        filled = np.concatenate([rows, np.full(size - len(rows), rows[-1])]).astype(np.int32)
        weight = (np.arange(size) < len(rows)).astype(np.float32)
        return filled.reshape(-1, self.local_batch_size), weight.reshape(-1, self.local_batch_size)

    def of(self, client: int, round: int) -> dict[str, np.ndarray]:
        """One client's batches in a round, leaves [steps, batch, ...]: what it has where it is a machine of its own."""
        index, weight = self.local(client, round)
        return self._gathered(index, weight)

    def held(self, client: int) -> Int[np.ndarray, " examples"]:
        """The examples of a client; for a number that fills a cohort up, some client's."""
        return self.partition[min(client, self.examples - 1)]

    def batches(self, start: int, stop: int) -> Generator[dict[str, np.ndarray], None, None]:
        """`batch(start)` ... `batch(stop - 1)`, read ahead in a thread. Close it to stop early."""
        return ahead(self.batch, start, stop, min(THREADS, 2))

    def _gathered(self, index: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        columns = gather(self.source, index.ravel())
        columns = {name: x.reshape(*index.shape, *x.shape[1:]) for name, x in columns.items()}
        weight = weight * columns.get("weight", np.float32(1))
        return {**columns, "weight": weight.astype(np.float32), "index": index}

    def _steps(self, examples: int) -> int:
        return -(-self.local_epochs * examples // self.local_batch_size)
