"""What the training stream costs over reading and decoding alone, and how long a device waits for it.

    python -m benchmarks.loader [--data-dir FOLDER --image-size 224]

Both read the same images of a folder in the same order and with as many threads, in turn: the stream, batch by batch as
training takes them, and a thread pool that opens and decodes and does nothing else. The value is the median ratio of
their rates. Beside it: the share of its time that a short training on that folder waits for input. Without --data-dir
the folder is made of random JPEG files, 64x64.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import lepton_jax as lp
from benchmarks import record
from lepton_jax.data import folder, images
from lepton_jax.data.prefetch import THREADS

BAR = 0.90  # of the rate of decoding alone
IDLE = 0.05  # of the time, for input
BATCH = 64
SIDE = 64  # pixels
CLASSES = 10


class Waits(lp.report.Reporter):
    """Remembers how long each row's window waited for input."""

    def __init__(self):
        self.idle: list[float] = []

    def train(self, row: lp.report.Row) -> None:
        self.idle.append(row["train/input_idle"])


@contextlib.contextmanager
def random_folder(count: int) -> Iterator[pathlib.Path]:
    """A folder of `count` training images, as smooth as photographs, and one test image a class."""
    from PIL import Image

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        for number in range(count + CLASSES):
            split = "train" if number < count else "test"
            place = root / split / f"class{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE)).save(place / f"{number}.jpg", quality=90)
        yield root


def streamed(stream: lp.data.Stream, steps: int) -> Callable[[], None]:
    """An epoch as training reads it."""

    def read() -> None:
        for _ in stream.batches(0, steps):
            pass

    return read


def decoded(source: folder.Folder, stream: lp.data.Stream, steps: int, image_size: int | None) -> Callable[[], None]:
    """The same images, opened and decoded and dropped."""
    order = np.concatenate([stream.indices(step) for step in range(steps)])
    paths = [source.paths[position] for position in order]

    def read() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda path: images.read(path, source.shape[-1], image_size), paths):
                pass

    return read


def waited(dataset: lp.data.Dataset, stream: lp.data.Stream, steps: int, model_name: str) -> float:
    """The median share of the time that training waits for input, over its rows after the first."""
    network = lp.models.build(model_name, len(dataset.classes))
    model, optimizer = lp.models.normalized(network, 0.5, 0.25), lp.optimizers.build("sgd", 0.01)
    step = lp.descend(lp.plain(lp.supervised(model, lp.cross_entropy())), optimizer)
    state = lp.step.initial(model, optimizer, lp.keys.seeded(0), stream.batch(0)["input"])
    waits = Waits()
    job = lp.train.Job(step, stream, lp.mesh.make("1x1"), steps, log_every=4, reporter=waits)
    lp.train.fit(job, state)
    return float(np.median(waits.idle[1:]))  # the first row has the compilation


def main(
    rounds: int = 9,
    count: int = 2000,
    steps: int = 24,
    model: str = "resnet20",
    data_dir: pathlib.Path | None = None,
    image_size: int | None = None,
) -> None:
    """Compare the stream with decoding alone, and train for a moment.

    Args:
        rounds: Epochs of each; the figures are medians over them.
        count: Images of the made folder.
        steps: Steps of the training.
        model: What is trained.
        data_dir: A folder of images to read instead of a made one.
        image_size: Resize its images to this many pixels.
    """
    with contextlib.ExitStack() as stack:
        place = data_dir or stack.enter_context(random_folder(count))
        dataset = folder.opened(place, image_size)
        stream = lp.data.Stream(dataset.train, BATCH, seed=0)
        assert isinstance(dataset.train, folder.Folder)
        epoch = stream.steps_per_epoch
        alone = decoded(dataset.train, stream, epoch, image_size)
        seconds = record.interleaved({"stream": streamed(stream, epoch), "alone": alone}, rounds)
        idle = waited(dataset, stream, steps, model)
    ratio, quartiles = record.spread(seconds["alone"] / seconds["stream"])
    rates = {name: epoch * BATCH / float(np.median(times)) for name, times in seconds.items()}
    head = ["reading", "images/s", "ratio", "quartiles", "training waits"]
    rows = [
        [f"stream, {THREADS} threads", rates["stream"], ratio, quartiles, f"{idle:.2%}"],
        ["decoding alone", rates["alone"], "", "", ""],
    ]
    record.tell("loader", head, rows, ratio, BAR, ratio >= BAR and idle < IDLE)


if __name__ == "__main__":
    lp.cli.command(main)
