"""Clients per second of a simulated federated run, and beside it Flower's simulation of the same job.

    python -m benchmarks.federated
    python -m benchmarks.federated --flower FLOWER/bin/python

The job: a hundred clients of 100 examples (28x28), each five steps of 20 by an MLP of 101,770 parameters, averaged.
Rounds are timed by a run's own log, in windows of twenty: the cohort is drawn, shuffled and gathered, trained and
averaged, and the server steps. With `data.Resident` the inputs lie on the devices from the start, as Flower's workers
hold theirs; without, each round copies them. Flower's clients train by the same jitted loop over the same arrays, in
Ray's workers, one for each core; its interpreter needs flwr[simulation], jax and optax, and without it that row says
so. The value is Lepton's rate with a simulated device for each core and resident inputs; the ratio to Flower's is in
the last row.
"""

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

CLIENTS, EXAMPLES, BATCH, STEPS, WIDTH, CLASSES = 100, 100, 20, 5, 128, 10
BAR = 500.0  # clients/s on two cores
TIMES_FLOWER = 25.0
ROUNDS = 20  # of a window
WINDOWS = 4


def lepton(axes: str, resident: bool) -> list[float]:
    """Clients/s of each window of rounds on a mesh; resident: with all inputs on every device."""
    import optax

    mesh = lp.mesh.make(axes)
    rng = np.random.default_rng(0)
    count = CLIENTS * EXAMPLES
    examples = {"input": rng.random((count, 28, 28, 1), np.float32), "label": rng.integers(0, CLASSES, count)}
    source = lp.data.Arrays(examples)
    loaded = lp.data.Resident(source)
    held = lp.federated.partition.iid(count, CLIENTS, 0)
    asked = lp.federated.sampling.fixed_size(CLIENTS, CLIENTS, 0)
    stream = lp.federated.Cohorts(loaded if resident else source, held, asked, CLIENTS, BATCH, 1, 0)
    assert stream.batch(0)["label"].shape == (CLIENTS, STEPS, BATCH)
    model, sgd = lp.models.mlp((WIDTH,), CLASSES), optax.sgd(0.1)
    loss = lp.supervised(model, lp.cross_entropy())
    if resident:
        loss = lp.resident(loss, loaded.inputs)
    client = lp.federated.local(lp.descend(lp.plain(loss), sgd), sgd)
    step = lp.descend(lp.federated.federated(client), optax.sgd(1.0))
    state = lp.initial(model, optax.sgd(1.0), lp.keys.seeded(0), examples["input"][:1])
    assert lp.tree.count(state.params) == 101_770
    history = lp.report.History()
    lp.train.fit(lp.train.Job(step, stream, mesh, ROUNDS * WINDOWS, log_every=ROUNDS, reporter=history), state)
    return [row["train/examples_per_second"] for row in history.rows][1:]  # the first one waits for what is read ahead


def peer(interpreter: str | None, rounds: int) -> tuple[float | None, str]:
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


def main(flower: str | None = None, rounds: int = 3, repeats: int = 3) -> None:
    """Measure and tell.

    Args:
        flower: An interpreter with flwr[simulation], jax and optax.
        rounds: Rounds of Flower's.
        repeats: How often each of Lepton's forms is timed.
    """
    if flower is not None and shutil.which(flower) is None:
        remedy = "give an interpreter with flwr[simulation], jax and optax, or leave it out"
        raise lp.InputError(f"--flower {flower} is no program", remedy)
    cores = max(n for n in range(1, min(os.cpu_count() or 1, CLIENTS) + 1) if CLIENTS % n == 0)
    forms = {
        f"lepton, {cores} devices, inputs held there": (f"{cores}x1", True),
        f"lepton, {cores} devices": (f"{cores}x1", False),
        "lepton, one device, inputs held there": ("1x1", True),
        "lepton, one device": ("1x1", False),
    }
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):  # in turn, so that a slow minute is everybody's
        for name, form in forms.items():
            rates[name] += lepton(*form)
    rows: list[list[Any]] = [
        [name, float(np.median(each)), f"{min(each):.0f}-{max(each):.0f}"] for name, each in rates.items()
    ]
    value = rows[0][1]
    other, why = peer(flower, rounds)
    rows.append(
        ["flower's simulation", "-" if other is None else other, why or f"{value / (other or 1):.1f} times slower"]
    )
    holds = value >= BAR and (flower is None or (other is not None and value >= TIMES_FLOWER * other))
    record.tell("federated", ["simulation", "clients/s", "range of windows"], rows, value, BAR, holds)


if __name__ == "__main__":
    lp.cli.command(main)
