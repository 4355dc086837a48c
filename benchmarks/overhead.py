"""What Lepton's loop costs over one written by hand: the same model and optimizer, flax and optax and nothing else.

    python -m benchmarks.overhead

Both loops run in one process, in turn: a segment of Lepton's, as `train.fit` runs it with its journal and event files,
then as many steps by hand, which print the loss as often. The value is the least ratio of examples/s over the models,
each the median over the rounds. Both are built anew several times: where a program's buffers happen to lie in memory is
worth several percent, and lasts as long as they do. Beside it: how long Lepton's loop waits for input, and what a slow
screen costs it.
"""

import contextlib
import io
import pathlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import lepton_jax as lp
from benchmarks import record

MEAN, STD = 0.5, 0.25
BAR = 0.97  # of the rate by hand
IDLE = 0.05  # of the time, for input
LOG_EVERY = 20  # steps


class Case(NamedTuple):
    """A model, what goes into it, and how many steps a segment has."""

    module: Any
    shape: tuple[int, ...]
    batch_size: int
    steps: int


class Timed(NamedTuple):
    """Seconds of each segment, by loop, and the share of Lepton's that was spent waiting for input."""

    lepton: np.ndarray
    by_hand: np.ndarray
    idle: float


def cases() -> dict[str, Case]:
    """A small network, a deep one, and one of so many small arrays that handing them over dominates."""
    import jax

    from lepton_jax.models import resnet
    from lepton_jax.models.cnn import CNN
    from lepton_jax.models.mlp import MLP

    deep = resnet.ResNet(partial(resnet.Stem, 16), resnet.Basic, (3, 3, 3), 16, 10)
    return {
        "cnn": Case(CNN(10, (32, 64), 128, 0.0, jax.nn.relu), (28, 28, 1), 128, 40),
        "resnet20": Case(deep, (32, 32, 3), 128, 4),
        "mlp, 300 leaves": Case(MLP((16,) * 149, 10, 0.0, jax.nn.relu), (8, 8, 1), 64, 400),
    }


def examples(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """As many as a segment reads, so that a segment is an epoch."""
    random = np.random.default_rng(0)
    count = case.batch_size * case.steps
    return random.integers(0, 256, (count, *case.shape), np.uint8), random.integers(0, 10, count, np.int32)


def by_hand(case: Case, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """A segment of a loop as one writes it with flax and optax; returns when its last step is done."""
    import jax
    import jax.numpy as jnp
    import optax

    module, optimizer = case.module, optax.sgd(0.01, momentum=0.9, nesterov=True)
    variables = module.init(jax.random.key(0), jnp.zeros((1, *case.shape)), False)
    params, moving = variables["params"], {name: part for name, part in variables.items() if name != "params"}

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, images: Any, labels: Any) -> Any:
        params, moving, opt_state = state

        def loss(params: Any) -> Any:
            inputs = (images.astype(jnp.float32) / 255 - MEAN) / STD
            logits, moved = module.apply({"params": params, **moving}, inputs, True, mutable=list(moving))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moved

        (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), moved, opt_state), value

    state = (params, moving, optimizer.init(params))
    random = np.random.default_rng(1)

    def segment() -> None:
        nonlocal state
        order = random.permutation(len(images))
        for step in range(case.steps):
            rows = order[step * case.batch_size : (step + 1) * case.batch_size]
            state, loss = update(state, images[rows], labels[rows])
            if (step + 1) % LOG_EVERY == 0:
                print(f"step {step + 1} loss {loss:.4f}")
        jax.block_until_ready(state)

    return segment


class Screen(lp.report.Reporter):
    """Remembers how long each row's window waited for input, and takes its time over the rows that it is told to."""

    def __init__(self):
        self.idle: list[float] = []
        self.seconds: Callable[[int], float] = lambda step: 0.0

    def train(self, row: Any) -> None:
        self.idle.append(row["train/input_idle"])
        time.sleep(self.seconds(row["step"]))


def train(case: Case, data: Any, rounds: int, between: Callable[[], Any], screen: Screen, log_every: int) -> np.ndarray:
    """Seconds of each segment of Lepton's loop, [rounds]; `between` is called after each, and not counted."""
    model = lp.models.normalized(lp.models.linen(case.module), MEAN, STD)
    optimizer = lp.optimizers.build("sgd", 0.01)
    step = lp.descend(lp.plain(lp.supervised(model, lp.cross_entropy())), optimizer)
    stream = lp.data.Stream(lp.data.Arrays(dict(zip(("input", "label"), data, strict=True))), case.batch_size, 0)
    state = lp.step.initial(model, optimizer, lp.keys.seeded(0), stream.batch(0)["input"])
    seconds, begun = [], time.perf_counter()

    def after_a_segment(_: Any) -> dict[str, float]:
        nonlocal begun
        seconds.append(time.perf_counter() - begun)
        between()
        begun = time.perf_counter()
        return {"segments": len(seconds)}

    with tempfile.TemporaryDirectory() as place:
        directory = pathlib.Path(place)
        reporters = [screen, lp.report.Lines(), lp.report.Journal(directory), lp.report.Events(directory)]
        with lp.report.Together(reporters) as reporter, contextlib.redirect_stdout(io.StringIO()):
            job = lp.train.Job(
                step,
                stream,
                lp.mesh.make("1x1"),
                (rounds + 1) * case.steps,
                log_every=log_every,
                eval_every=1,
                evaluate=after_a_segment,
                reporter=reporter,
            )
            lp.train.fit(job, state)
    return np.array(seconds[1:])  # the first one compiles


def compared(case: Case, rounds: int) -> Timed:
    """Both loops, segment by segment."""
    data = examples(case)
    segment, seconds, screen = by_hand(case, *data), [], Screen()

    def between() -> None:
        before = time.perf_counter()
        segment()
        seconds.append(time.perf_counter() - before)

    lepton = train(case, data, rounds, between, screen, LOG_EVERY)
    return Timed(lepton, np.array(seconds[1:]), float(np.median(screen.idle)))


def slowed(case: Case, rounds: int) -> np.ndarray:
    """The rate beside a screen that takes as long as five steps for each of two rows a segment, over that beside a
    quick one, [rounds]. A device that waited for it would do four fifths."""
    screen, log_every = Screen(), case.steps // 4
    quick = float(np.median(train(case, examples(case), 4, lambda: None, screen, log_every))) / case.steps
    is_slow = False

    def exchange() -> None:
        nonlocal is_slow
        is_slow = not is_slow

    # the rows in the middle: those at a segment's end are told while it is waited for anyway
    screen.seconds = lambda step: 5 * quick * is_slow * (step % case.steps in (log_every, 2 * log_every))
    seconds = train(case, examples(case), 2 * rounds, exchange, screen, log_every)
    return seconds[1::2] / seconds[::2]


def repeated(case: Case, builds: int, rounds: int) -> Timed:
    """All rounds of several builds."""
    every = [compared(case, rounds) for _ in range(builds)]
    lepton, hand, idle = zip(*every, strict=True)
    return Timed(np.concatenate(lepton), np.concatenate(hand), max(idle))


def main(builds: int = 5, rounds: int = 8) -> None:
    """Compare the loops on three models.

    Args:
        builds: How often both loops are built.
        rounds: Segments of each loop; the figures are medians over those of all builds.
    """
    rows, ratios, idle = [], [], []
    for name, case in cases().items():
        timed, number = repeated(case, builds, rounds), case.batch_size * case.steps
        ratio, quartiles = record.spread(timed.by_hand / timed.lepton)
        rates = [number / float(np.median(seconds)) for seconds in (timed.lepton, timed.by_hand)]
        rows.append([name, *rates, ratio, quartiles, timed.idle])
        ratios.append(ratio)
        idle.append(timed.idle)
    ratio, quartiles = record.spread(slowed(cases()["cnn"], 2 * rounds))
    rows.append(["cnn, slow screen", "", "", ratio, quartiles, ""])
    holds = min(*ratios, ratio) >= BAR and max(idle) < IDLE
    head = ["model", "examples/s", "by hand", "ratio", "quartiles", "waits for input"]
    record.tell("overhead", head, rows, min(ratios), BAR, holds)


if __name__ == "__main__":
    lp.cli.command(main)
