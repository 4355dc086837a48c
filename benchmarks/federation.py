"""A round over the network: two clients, a model of 4 MB, mutual TLS 1.3 on loopback; and what a secure sum adds.

    python -m benchmarks.federation

Coordinator and clients are processes of their own, started as a user starts them. A round is from the close of the
one before to its own: task out, one local step, updates in, the server's step, the checkpoint. The value is the median
round with plain updates; bar 1 s.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

BAR = 1.0  # seconds
WARM = 2  # rounds that are left out: the first compiles
PLACE = pathlib.Path(__file__).parent.parent


@dataclass(frozen=True)
class Config(lp.config.Config):
    """An MLP of 1.05 million numbers, and two clients with random images."""

    rounds: int = 12
    """Rounds."""
    hidden: int = 1320
    """Width of the hidden layer: with 28x28 inputs, 1,050,060 numbers in all."""


PRESETS = {"small": Config()}


def job(config: Config) -> Any:
    """The job, as `serve` and `join` compose it."""
    import jax
    import optax

    from lepton_jax import federated, federation, models

    names, local, server = ("a", "b"), optax.sgd(0.1), optax.sgd(1.0)
    model = models.mlp((config.hidden,), 10)
    loss = lp.supervised(model, lp.cross_entropy())

    def data(name: str, number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([names.index(name), number])
        images = rng.random((1, 20, 28, 28, 1), np.float32)
        return {"input": images, "label": rng.integers(0, 10, (1, 20)).astype(np.int32)}

    def state() -> lp.TrainState:
        return lp.initial(model, server, jax.random.key(config.seed), data("a", 0)["input"][0])

    return federation.Job(
        name="federation",
        state=state,
        client=federated.local(lp.descend(lp.plain(loss), local), local),
        step=lp.descend(federation.received, server),
        clients=names,
        rounds=config.rounds,
        batches=lp.step.shapes(data("a", 0)),
        data=data,
    )


def closed(place: pathlib.Path, rounds: int, *flags: str) -> np.ndarray:
    """When each round of a federation closed, in seconds."""
    from lepton_jax.launch.supervisor import free_port

    address, run = f"127.0.0.1:{free_port()}", place / "-".join(["run", *flags])
    shared = ["benchmarks.federation", "--certificates", str(place / "c"), "--rounds", str(rounds)]
    words = [["serve", *shared, "--listen", address, "--run", str(run), *flags]]
    words += [["join", *shared, "--to", address, "--name", name] for name in ("a", "b")]
    environment = {**os.environ, "PYTHONPATH": str(PLACE)}
    began = [sys.executable, "-m", "lepton_jax.federated"]
    with open(place / "log", "ab") as log:
        processes = [subprocess.Popen([*began, *each], env=environment, stdout=log, stderr=log) for each in words]
        try:
            codes = [process.wait(300) for process in processes]
        finally:
            for process in processes:
                process.kill()
    if any(codes):
        raise RuntimeError((place / "log").read_text())
    rows = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return np.array([row["time"] for row in rows if row["event"] == "closed"])


def main(rounds: int = 12, repeats: int = 3) -> None:
    """Measure rounds over the network.

    Args:
        rounds: Rounds of each run.
        repeats: Runs of each kind, in turn.
    """
    from lepton_jax.federation import certificates

    kinds: dict[str, tuple[str, ...]] = {"plain updates": (), "secure sum": ("--secure",)}
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, flags in kinds.items():
            with tempfile.TemporaryDirectory() as place:
                certificates.create(pathlib.Path(place) / "c", ["a", "b"], 1)
                found[kind].append(np.diff(closed(pathlib.Path(place), rounds, *flags))[WARM:])
    seconds = {kind: np.concatenate(each) for kind, each in found.items()}
    rows = [[kind, *(float(q) for q in np.quantile(each, (0.25, 0.5, 0.75)))] for kind, each in seconds.items()]
    value = float(np.median(seconds["plain updates"]))
    record.tell(
        "federation", ["round of 4 MB, 2 clients", "quartile", "median, s", "quartile"], rows, value, BAR, value <= BAR
    )


if __name__ == "__main__":
    lp.cli.command(main)
