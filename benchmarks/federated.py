"""Clients per second of a simulated federated run, and beside it Flower's simulation of the same job.

    python -m benchmarks.federated
    python -m benchmarks.federated --flower FLOWER/bin/python

The job: a hundred clients of 100 examples (28x28), each five steps of 20 by an MLP of 101,770 parameters, averaged.
Rounds are timed as a run makes them: the cohort is drawn, shuffled and gathered, trained and averaged, and the server
steps. Flower's clients train by the same jitted loop over the same arrays, in Ray's workers, one for each core; its
interpreter needs flwr[simulation], jax and optax, and without it that row says so. The value is Lepton's rate with a
simulated device for each core, which is what Flower's workers have too; the ratio to Flower's is in the last row.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

CLIENTS, EXAMPLES, BATCH, STEPS, WIDTH, CLASSES = 100, 100, 20, 5, 128, 10
BAR = 500.0  # clients/s on two cores
TIMES_FLOWER = 25.0
ROUNDS = 20


def lepton(axes: str) -> list[float]:
    """Clients/s of each round on a mesh."""
    import jax
    import optax

    import lepton_jax as lp

    mesh = lp.mesh.make(axes)
    rng = np.random.default_rng(0)
    count = CLIENTS * EXAMPLES
    source = lp.data.Arrays(
        {"input": rng.random((count, 28, 28, 1), np.float32), "label": rng.integers(0, CLASSES, count)}
    )
    held = lp.federated.partition.iid(count, CLIENTS, 0)
    asked = lp.federated.sampling.fixed_size(CLIENTS, CLIENTS, 0)
    stream = lp.federated.Cohorts(source, held, asked, CLIENTS, BATCH, 1, 0)
    model, sgd = lp.models.mlp((WIDTH,), CLASSES), optax.sgd(0.1)
    client = lp.federated.local(lp.descend(lp.plain(lp.supervised(model, lp.cross_entropy())), sgd), sgd)
    step = lp.descend(lp.federated.federated(client), optax.sgd(1.0))
    first = stream.batch(0)
    assert first["input"].shape[:3] == (CLIENTS, STEPS, BATCH)
    state = lp.step.place(lp.initial(model, optax.sgd(1.0), lp.keys.seeded(0), first["input"][0, 0]), mesh)
    assert lp.tree.count(state.params) == 101_770
    compiled = lp.step.compile(step, state, first, mesh)
    rates, begun = [], time.perf_counter()
    for round, batch in enumerate(stream.batches(0, ROUNDS + 2)):
        state, metrics = compiled(state, lp.mesh.fed(batch, mesh))
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        if round >= 2:  # the first rounds wait for what is read ahead
            rates.append(CLIENTS / (now - begun))
        begun = now
    return rates


def flower(interpreter: str | None, rounds: int) -> tuple[float | None, str]:
    """(clients/s of Flower's simulation, why there is none)."""
    if interpreter is None:
        return None, "skipped: no --flower PYTHON with flwr[simulation] and jax"
    place = pathlib.Path(__file__).parent.resolve()
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **quiet, "PYTHONPATH": str(place)}  # workers import it too
    sizes = [str(n) for n in (CLIENTS, EXAMPLES, BATCH, WIDTH, CLASSES, rounds)]
    command = [interpreter, "-c", "import flowered; flowered.main()", *sizes]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place)
    if ended.returncode:
        return None, "failed: " + (ended.stderr.strip().splitlines() or ["no word"])[-1][:90]
    return float(json.loads(ended.stdout.splitlines()[-1])["clients_per_second"]), ""


def main(arguments: list[str]) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flower", help="an interpreter with flwr[simulation], jax and optax")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of Flower's")
    given = parser.parse_args(arguments)
    from benchmarks import record

    rows: list[list[Any]] = []
    cores = min(os.cpu_count() or 1, CLIENTS)
    cores = max(n for n in range(1, cores + 1) if CLIENTS % n == 0)
    rates = lepton(f"{cores}x1")
    value = float(np.median(rates))
    rows.append([f"lepton, {cores} devices", value, f"{min(rates):.0f}-{max(rates):.0f}"])
    alone = lepton("1x1")
    rows.append(["lepton, one device", float(np.median(alone)), f"{min(alone):.0f}-{max(alone):.0f}"])
    other, why = flower(given.flower, given.rounds)
    rows.append(
        ["flower's simulation", "-" if other is None else other, why or f"{value / (other or 1):.0f} times slower"]
    )
    holds = value >= BAR and (other is None or value >= TIMES_FLOWER * other)
    record.tell("federated", ["simulation", "clients/s", "range of rounds"], rows, value, BAR, holds)


if __name__ == "__main__":
    main(sys.argv[1:])
