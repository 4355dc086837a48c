"""What privacy costs a step: time and memory of each engine beside the plain gradient, and accuracy at an epsilon.

    python -m benchmarks.privacy
    python -m benchmarks.privacy --accuracy-seeds 3
    python -m benchmarks.privacy --opacus OPACUS/bin/python

All programs compute the gradient of the 28x28 CNN for a batch of 256 and run in turn; the ratio is the median over the
rounds. So does Opacus, in a process of its own, where an interpreter with opacus and torch is given. Memory is XLA's
peak of temporaries, with the batch in 4 microbatches, beside the plain gradient of a whole one. The value is the worst
ratio to its bar: 2.2 times the plain step's time for vmap and 2.0 for the others, each whole or in microbatches,
whichever is faster; 1.2 times its memory; the points of accuracy lost to 3, where they are measured; and on a GPU the
fastest engine's time to the faster of Opacus's.
"""

import contextlib
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

BATCH, MICROBATCHES = 256, 4
TIME = {"vmapped": 2.2, "two pass": 2.0, "ghost": 2.0}  # times the plain gradient's
MEMORY = 1.2  # times the plain gradient's
POINTS = 3.0  # of accuracy on digits, at epsilon 3
CLIPPING = ("opacus", "opacus, ghost")  # of benchmarks.opacused
PEERS = ("torch, plain", *CLIPPING)
REMEDY = "give an interpreter with opacus and torch, or leave it out"


def engines() -> dict[str, Any]:
    """Those that the library has."""
    return {"vmapped": lp.privacy.vmapped, "two pass": lp.privacy.two_pass, "ghost": lp.privacy.ghost}


def programs() -> tuple[dict[str, Any], tuple[Any, Any]]:
    """(compiled gradients by name, their arguments): plain, and each engine on a whole batch and in microbatches."""
    import jax
    import jax.numpy as jnp

    model = lp.models.cnn(10)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.random((BATCH, 28, 28, 1)), jnp.float32)
    batch = {"input": images, "label": jnp.asarray(random.integers(0, 10, BATCH))}
    params = model.init(jax.random.key(0), images[:1])["params"]
    loss, key = lp.supervised(model, lp.cross_entropy()), jax.random.key(1)
    gradients = {"plain": lp.plain(loss)}
    for name, engine in engines().items():
        clipped = lp.privacy.clipped(loss, 1.0, engine)
        gradients[name] = clipped
        gradients[f"{name}, {MICROBATCHES} parts"] = lp.accumulate(clipped, MICROBATCHES)

    def compiled(gradient: Any) -> Any:
        return jax.jit(lambda params, batch: gradient(params, {}, batch, key)[0]).lower(params, batch).compile()

    return {name: compiled(gradient) for name, gradient in gradients.items()}, (params, batch)


@contextlib.contextmanager
def beside(interpreter: str | None) -> Iterator[dict[str, Callable[[], None]]]:
    """Opacus's gradients by their names, while its process runs; none without an interpreter."""
    if interpreter is None:
        yield {}
        return
    command = [interpreter, "-c", "import opacused; opacused.main()", str(BATCH)]
    with tempfile.TemporaryFile("w+") as said:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "text": True}
        try:
            process = subprocess.Popen(command, cwd=pathlib.Path(__file__).parent, **pipes)
        except OSError as error:
            raise lp.InputError(f"--opacus {interpreter} does not run: {error.strerror}", REMEDY) from error

        def run(name: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                print(name, file=process.stdin, flush=True)
            if not process.stdout.readline():
                said.seek(0)
                last = (said.read().strip().splitlines() or ["no word"])[-1]
                raise lp.InputError(f"--opacus {interpreter} failed: {last}", REMEDY)

        try:
            yield {name: functools.partial(run, name) for name in PEERS}
        finally:
            process.kill()
            process.communicate()


def costs(rounds: int, interpreter: str | None) -> tuple[list[list[Any]], list[float]]:
    """(rows of the table, each figure over its bar)."""
    import jax

    made, arguments = programs()
    runs: dict[str, Callable[[], Any]] = {
        name: (lambda program=program: jax.block_until_ready(program(*arguments))) for name, program in made.items()
    }
    with beside(interpreter) as peers:
        seconds = record.interleaved(runs | peers, rounds)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in made.items()}
    shares = {name: size / memory["plain"] for name, size in memory.items()}
    rows, ratios = [], {}
    for name, times in seconds.items():
        ratios[name], quartiles = record.spread(times / seconds["plain"])
        sizes = [memory[name] / 2**20, shares[name]] if name in made else ["", ""]
        rows.append([name, float(np.median(times)) * 1e3, ratios[name], quartiles, *sizes])
    over = []
    for engine in engines():
        in_parts = f"{engine}, {MICROBATCHES} parts"
        over += [min(ratios[engine], ratios[in_parts]) / TIME[engine], shares[in_parts] / MEMORY]
    if peers and jax.default_backend() != "cpu":
        over.append(min(ratios[name] for name in made if name != "plain") / min(ratios[name] for name in CLIPPING))
    return rows, over


def accuracy(seeds: int) -> tuple[list[list[Any]], list[float]]:
    """The same of the points of accuracy that digits lose at epsilon 3, over so many seeds."""
    rows, over = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            run = pathlib.Path(place) / "run"
            command = [sys.executable, "-m", "experiments.private", "--epsilon", "3", "--seed", str(seed)]
            subprocess.run([*command, "--run", str(run)], check=True, stdout=subprocess.DEVNULL)
            metrics = json.loads((run / "result.json").read_text())["metrics"]
        private, plain = metrics["test/accuracy"], metrics["baseline/test/accuracy"]
        rows.append([f"digits, epsilon {metrics['epsilon']:.3f}, seed {seed}", private, plain, "", "", ""])
        over.append(100 * (plain - private) / POINTS)
    return rows, [float(np.mean(over))] if over else []


def main(rounds: int = 15, accuracy_seeds: int = 0, opacus: str | None = None) -> None:
    """Measure what privacy costs.

    Args:
        rounds: Runs of every program; the figures are medians.
        accuracy_seeds: Runs of experiments.private on digits; their rows have the accuracy with privacy and without.
        opacus: An interpreter with opacus and torch, to be measured beside.
    """
    rows, over = costs(rounds, opacus)
    more, lost = accuracy(accuracy_seeds)
    head = ["gradient", "ms", "ratio", "quartiles", "temporaries, MiB", "ratio"]
    worst = max(over + lost)
    record.tell("privacy", head, rows + more, worst, 1.0, worst <= 1)


if __name__ == "__main__":
    lp.cli.command(main)
