"""Bad input, as a person gives it: two lines on standard error, exit code 2, no traceback, the disk as it was."""

import dataclasses
import gzip
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
from collections import namedtuple
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import lepton_jax as lp
from experiments import resnet
from lepton_jax import cli

QUICK = ("--preset", "smoke", "--model", "mlp", "--epochs", "1", "--mesh", "1x1")


def outcome(*arguments: str) -> int:
    """What `python -m experiments.resnet` would exit with."""
    return cli.outcome(resnet.main, resnet.Config, resnet.PRESETS, [*QUICK, *arguments])


def listing(place: pathlib.Path) -> dict[str, Any]:
    """Every path with its size and times."""
    found = {path: path.lstat() for path in place.rglob("*")}
    return {str(path): (at.st_size, at.st_mtime_ns, at.st_mode) for path, at in found.items()}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Relative paths, the default `runs/` too, lie where the test can see them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], arguments: str, problem: str, remedy: str) -> None:
    """The whole contract of bad input, in this process."""
    place = pathlib.Path.cwd()
    before = listing(place)
    capsys.readouterr()
    assert outcome(*arguments.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("error: ")
    assert problem in lines[0]
    assert remedy in lines[1]
    assert listing(place) == before


FLAGS = {
    "--mesh 2y2": ("'2y2' does not parse", "8x1"),
    "--mesh data=2,data=2": ("names an axis twice", "once"),
    "--mesh data=2,expert=2": ("unknown axis 'expert'", "data, fsdp, model"),
    "--mesh 0x1": ("size 0", "at least 1"),
    "--mesh 3x1": ("batch of 128 does not divide over the mesh (data 3)", "126 or 129"),
    "--mesh data=2,fsdp=4 --batch-size 36": ("(data 2 x fsdp 4)", "32 or 40"),
    "--mesh 4x1 --microbatches 4 --batch-size 8": ("4 microbatch(es)", "multiple of 16: 16"),
    "--coordinator node1:1": ("--process-id and --processes is not known", "LEPTON_PROCESS_ID and LEPTON_PROCESSES"),
    "--process-id 2 --processes 2 --coordinator node1:1": (
        "--process-id 2 and --processes 2 contradict",
        "from 0 to 1",
    ),
    "--process-id 0 --processes 2 --coordinator [::1]:1": ("1 device(s) cannot be split over 2 processes", "2 devices"),
    "--microbatches 3": ("--microbatches 3 does not divide --batch-size 128", "129"),
    "--bitwise 6": ("--bitwise 6 is not a power of two", "8 serves"),
    "--bitwise 8 --batch-size 36": ("does not divide --batch-size 36", "32"),
    "--bitwise 8 --microbatches 4 --batch-size 80": ("--bitwise 8, in 4 microbatch(es) each", "64"),
    "--bitwise 8 --precision float16": ("each virtual shard by itself", "bfloat16"),
    "--bitwise 8 --mesh 4x2": ("not on the mesh data=4,model=2", "as in 8x1"),
    "--bitwise 8 --mesh fsdp=2": ("not on the mesh fsdp=2", "as in 2x1"),
    "--bitwise 4 --mesh 8x1": ("4 virtual shards do not divide over 8 devices", "at least 8"),
    "--batch-size 0": ("--batch-size 0 is not positive", "more than 0"),
    "--batch-size many": ("--batch-size", "--help"),
    "--examples 0": ("--examples 0 is not positive", "more than 0"),
    "--examples 5000": ("--examples 5000 are more than the 1437", "at most 1437"),
    "--epochs -1": ("--epochs -1.0 is not positive", "more than 0"),
    "--seed -1": ("seed -1", "from 0 up"),
    f"--seed {2**32}": (f"seed {2**32}", "from 0 up"),
    "--learning-rate -0.1": ("--learning-rate -0.1", "0.1 is usual"),
    "--learning-rate nan": ("--learning-rate nan", "0.1 is usual"),
    "--warmup-epochs 2": ("warm-up", "or a longer run"),
    "--weight-decay -1": ("weight decay -1.0", "5e-4"),
    "--clip 0": ("clipping norm 0.0", "1.0"),
    "--gamma 0.5": ("--gamma has no meaning for --schedule cosine", "step or exponential"),
    "--schedule step --gamma nan": ("gamma = nan", "0.1"),
    "--seeds 0": ("--seeds 0 is not positive", "more than 0"),
    f"--seeds 2 --seed {2**32 - 1}": (f"--seeds 2 from --seed {2**32 - 1} on", "from 0 up"),
    "--seeds 2 --find-learning-rate": ("--seeds 2 makes several runs", "leave one of them out"),
    "--seeds 2 --optimizer adam": ("unknown optimizer 'adam'", "did you mean 'adamw'"),
    "--rollbacks -1": ("--rollbacks -1 is negative", "0 gives up"),
    "--spike 1": ("--spike 1.0 is not above 1", "10 is a loss of ten times"),
    "--checkpoints ftp://host/run": ("not ftp://", "mount the bucket"),
    "--patience 0": ("--patience 0.0 is not a finite number above 0", "train to the end"),
    "--patience 2 --eval-every inf": ("--patience 2.0 waits for evaluations", "--eval-every a number"),
    "--monitor acuracy": ("unknown --monitor 'acuracy'", "did you mean 'accuracy'"),
    "--restore bset": ("unknown --restore 'bset'", "did you mean 'best'"),
    "--undecayed positions": ("'positions' matches no leaf", "leaves are named like"),
    "--undecayed [": ("'[' is not a regular expression", "weights' paths"),
    "--layer-decay 0": ("--layer-decay 0.0 is not above 0", "0.75 is usual"),
    "--layer-decay 0.5 --layers conv": ("the layer 'conv' holds no leaf", "leaves are named like"),
    "--sharpness -1": ("--sharpness -1.0", "0.05 is usual"),
    "--preset smoek": ("unknown preset 'smoek'", "did you mean 'smoke'"),
    "--optimizer adam": ("unknown optimizer 'adam'", "did you mean 'adamw'"),
    "--schedule cosin": ("unknown schedule 'cosin'", "did you mean 'cosine'"),
    "--precision float15": ("unknown precision 'float15'", "did you mean 'float16'"),
    "--remat dots_savable": ("unknown rematerialization policy 'dots_savable'", "did you mean 'dots_saveable'"),
    "--model resnet9": ("unknown model 'resnet9'", "did you mean 'resnet"),
    "--data cifar": ("unknown data set 'cifar'", "did you mean 'cifar10'"),
    "--on-bad-image skipp": ("'skipp'", "did you mean 'skip'"),
    "--crop-padding -1": ("padding -1", "give one"),
    "--rotation nan": ("degrees nan", "d >= 0"),
    "--jitter -1": ("jitter of -1.0", "0 or more"),
    "--epohcs 3": ("'--epohcs'", "--epochs"),
    "--data folder": ("no directory is given", "--data-dir PATH"),
    "--data folder --data-dir absent": ("'absent' does not exist", "train/CLASS"),
    "--data cifar10 --data-dir absent": ("'absent' does not exist", "data_batch_1"),
    "--data npz --data-dir absent.npz": ("'absent.npz' does not exist", "train_images"),
    "--data tfds:mnist --data-dir absent": ("'absent' does not exist", "prepared by TFDS"),
    "--data csv": ("no directory is given", "--data-dir PATH"),
    "--data csv --data-dir absent.csv": ("'absent.csv' does not exist", "train.csv and test.csv"),
    "--data jsonl --data-dir absent.jsonl": ("'absent.jsonl' does not exist", "train.jsonl and test.jsonl"),
    "--data idx --data-dir absent": ("'absent' does not exist", "train-images-idx3-ubyte"),
    "--data text --data-dir absent.txt": ("'absent.txt' does not exist", "train.txt and test.txt"),
    "--data lines --data-dir absent.txt": ("'absent.txt' does not exist", "train.txt and test.txt"),
    "--data text:0 --data-dir absent.txt": ("'0' in 'text:0' is not a length", "text:128"),
    "--data idx:mnist --data-dir absent": ("unknown data set 'idx:mnist'", "did you mean"),
    "--data csv --data-dir absent.csv --image-size 8": ("the inputs of 'csv' have a fixed size", "folder, jsonl, tfds"),
    "--data digits --image-size 16": ("--image-size 16", "leave --image-size out"),
    "--data-dir absent": ("--data-dir 'absent'", "leave it out"),
}


@pytest.mark.parametrize("arguments", FLAGS)
def test_flags(arguments, capsys):
    refused(capsys, arguments, *FLAGS[arguments])


def test_more_devices_than_accelerators(capsys, monkeypatch):
    """Simulated CPUs always suffice, so one GPU is pretended."""
    gpu = namedtuple("Device", "platform device_kind")("gpu", "NVIDIA H200")
    monkeypatch.setattr(jax, "devices", lambda *_: [gpu])
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    refused(capsys, "--mesh 8x1", "needs 8 devices and this machine has 1 (GPU)", "JAX_PLATFORMS=cpu")


# Data


def picture(path: pathlib.Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(here):
    """Two classes of six and four small images."""
    for split, count in (("train", 6), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                picture(here / "pets" / split / name / f"{number}.png", 100 * label + number)
    return here / "pets"


def spoil(folder: pathlib.Path) -> None:
    """One file that is no image, one that ends early."""
    (folder / "train" / "cat" / "2.png").write_bytes(b"not an image")
    whole = folder / "train" / "dog" / "3.png"
    whole.write_bytes(whole.read_bytes()[:-60])


PETS = "--data folder --data-dir pets --batch-size 8"


@pytest.mark.parametrize("name", ["folder", "npz", "cifar10", "idx", "csv", "jsonl", "text", "lines", "tfds:mnist"])
def test_an_empty_data_directory(name, here, capsys):
    (here / "empty").mkdir()
    refused(capsys, f"--data {name} --data-dir empty", "'empty' is empty", "expected there")


@pytest.mark.parametrize("name", ["folder", "npz", "cifar10", "idx", "csv", "jsonl", "tfds:mnist"])
def test_a_directory_of_something_else(name, here, capsys):
    (here / "other").mkdir()
    (here / "other" / "notes.txt").write_text("precious")
    refused(capsys, f"--data {name} --data-dir other", "'other'", "")


@pytest.mark.parametrize("kind", ["unreadable", "truncated"])
def test_a_bad_image_stops_and_is_named(kind, folder, capsys):
    spoil(folder)
    bad, good = ("cat/2.png", "dog/3.png") if kind == "unreadable" else ("dog/3.png", "cat/2.png")
    picture(folder / "train" / good, 1)
    refused(capsys, PETS, f"train/{bad}' cannot be read", "--on-bad-image skip")


def test_bad_images_can_be_skipped_counted_and_named(folder, here, capsys):
    spoil(folder)
    assert outcome(*PETS.split(), "--on-bad-image", "skip", "--run", "run") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    words = " ".join(shown.out.split())
    bad = "2 unreadable image(s), which count nothing: pets/train/cat/2.png, pets/train/dog/3.png"
    assert words.count(bad) == 2  # where the run begins and where it ends
    assert json.loads((here / "run" / "result.json").read_text())["status"] == "complete"


def test_more_bad_images_than_fit_are_counted(folder):
    names = tuple(f"{number}.png" for number in range(12))
    source = lp.data.Arrays({"input": np.zeros((2, 1)), "label": [0, 1]}, bad=names)
    dataset = lp.data.Dataset("pets", source, source, ("cat", "dog"), (1,))
    told = lp.summary.skipped(dataset)["skipped"]
    assert told.startswith("24 unreadable")
    assert told.endswith("9.png and 14 more")


def test_classes_that_differ(folder, capsys):
    (folder / "test" / "dog").rename(folder / "test" / "dgo")
    refused(capsys, PETS, "dgo (only in test), dog (only in train)", "same class folders")


def test_images_of_several_sizes(folder, capsys):
    picture(folder / "train" / "dog" / "9.png", 1, (8, 9))
    refused(capsys, PETS, "9.png' is 9x8", "--image-size N")


def arrays(here: pathlib.Path, **changes: Any) -> None:
    """A data set of floats with something wrong in it."""
    random = np.random.default_rng(0)
    images, labels = random.random((32, 8, 8, 1), np.float32), np.arange(32) % 4
    right = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(here / "data.npz", **{**right, **changes})


def with_nan() -> np.ndarray:
    images = np.zeros((32, 8, 8, 1), np.float32)
    images[7, 2, 3] = np.nan
    return images


ARRAYS = {
    "labels below 0": ({"test_labels": np.full(32, -1)}, "test label at index 0 is -1", "from 0"),
    "labels past the classes": (
        {"classes": np.array(["a", "b", "c"])},
        "train label at index 3 is 3, outside 0..2",
        "3 classes",
    ),
    "labels that are not whole": ({"train_labels": np.linspace(0, 1, 32)}, "train_labels", "class numbers"),
    "NaN": ({"train_images": with_nan()}, "train input at index 7 has the value nan", "repair"),
    "infinity": ({"test_images": with_nan() + np.inf}, "test input at index 0", "repair"),
    "no test data": ({"test_images": np.zeros((0, 8, 8, 1)), "test_labels": np.zeros(0, int)}, "no examples", ""),
    "fewer labels": ({"train_labels": np.zeros(31, int)}, "input 32, label 31", "the same"),
    "other test shape": ({"test_images": np.zeros((32, 9, 9, 1))}, "test inputs have shape (9, 9, 1)", "same shape"),
    "no images": (
        {"train_images": np.zeros((32, 5)), "test_images": np.zeros((32, 5))},
        "cannot take inputs of float32 of shape (5,)",
        "--data",
    ),
    "images smaller than the crop": (
        {"train_images": np.zeros((32, 9, 2)), "test_images": np.zeros((32, 9, 2))},
        "a crop of 9x9 is larger than the image",
        "crop less",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case, here, capsys):
    changes, problem, remedy = ARRAYS[case]
    arrays(here, **changes)
    refused(capsys, "--data npz --data-dir data.npz --batch-size 8", problem, remedy)


def test_a_cut_npz_file(here, capsys):
    arrays(here)
    whole = (here / "data.npz").read_bytes()
    (here / "data.npz").write_bytes(whole[: len(whole) // 2])
    refused(capsys, "--data npz --data-dir data.npz", "'data.npz' cannot be read", "one .npz file")


def idx(*shape: int) -> bytes:
    """An idx file of zeros."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(math.prod(shape))


IDX, LABELS = "data/train-images-idx3-ubyte", "data/train-labels-idx1-ubyte"
GOOD_LINE = b'{"input": [1, 2], "label": "a"}\n'
FILES = {
    "csv, a ragged row": (
        "csv",
        {"a.csv": b"a,b,label\n1,2,x\n3,y\n"},
        "line 3 of 'a.csv' has 2 values",
        "one value per",
    ),
    "csv, a word": ("csv", {"a.csv": b"a,b,label\n1,2,x\n3,many,y\n"}, "line 3 of 'a.csv' has 'many'", "give a number"),
    "csv, an infinity": (
        "csv",
        {"a.csv": b"a,label\ninf,x\n"},
        "'inf' for 'a', which is not a finite",
        "give a number",
    ),
    "csv, no labels": ("csv", {"a.csv": b"a,b\n1,2\n"}, "no label column 'label'", "a, b; name the labels' column"),
    "csv, an empty label": (
        "csv",
        {"a.csv": b"a,label\n1,\n"},
        "line 2 of 'a.csv': the label is empty",
        "name a class",
    ),
    "csv, other labels": ("csv:kind", {"a.csv": b"a,label\n1,x\n"}, "no label column 'kind'", "as in --data csv:NAME"),
    "csv, an open quote": (
        "csv",
        {"a.csv": b'a,label\n1,"x\n'},
        "line 2 of 'a.csv': unexpected end",
        "repair the line",
    ),
    "csv, no rows": ("csv", {"a.csv": b"a,label\n"}, "'a.csv' has no rows", "train.csv and test.csv"),
    "csv, empty": ("csv", {"a.csv": b""}, "'label': its first line is empty", "the first line names the columns"),
    "csv, binary": ("csv", {"a.csv": b"\x89PNG\xff"}, "line 1 of 'a.csv' is not UTF-8", "store the file as UTF-8"),
    "csv, numbers": ("csv", {"a.csv": b"a,label\n" + b"1,x\n2,y\n" * 9}, "inputs of float32 of shape (1,)", "--data"),
    "jsonl, a broken line": (
        "jsonl",
        {"a.jsonl": GOOD_LINE + b'{"input": [1,\n'},
        "line 2 of 'a.jsonl': Expecting value at character 14",
        "one object a line",
    ),
    "jsonl, no label": (
        "jsonl",
        {"a.jsonl": b'{"input": [1]}'},
        "line 1 of 'a.jsonl': it has no 'label'",
        '"label": "a"',
    ),
    "jsonl, ragged": (
        "jsonl",
        {"a.jsonl": GOOD_LINE + b'{"input": [1], "label": "a"}'},
        "line 2 of 'a.jsonl' has an 'input' of shape (1,)",
        "the same shape",
    ),
    "jsonl, empty": ("jsonl", {"a.jsonl": b"\n"}, "'a.jsonl' has no lines", "train.jsonl and test.jsonl"),
    "jsonl, absent images": (
        "jsonl",
        {"a.jsonl": b'{"image": "b.png", "label": 0}\n' * 9},
        "none of the 9 training images can be read, as 'b.png'",
        "check the files",
    ),
    "jsonl, an image outside": (
        "jsonl",
        {"a.jsonl": b'{"image": "../b.png", "label": 0}\n'},
        "names the image '../b.png', which leaves its directory",
        "inside it",
    ),
    "idx, images cut short": (
        "idx",
        {IDX: idx(9, 8, 8)[:-1], LABELS: idx(9)},
        f"'{IDX}' has 591 bytes",
        "get the file",
    ),
    "idx, labels cut short": (
        "idx",
        {IDX: idx(9, 8, 8), LABELS: idx(9)[:5]},
        f"'{LABELS}' has 5 bytes",
        "get the file",
    ),
    "idx, packed and cut short": (
        "idx",
        {f"{IDX}.gz": gzip.compress(idx(9, 8, 8))[:-9], LABELS: idx(9)},
        f"'{IDX}.gz' cannot be read: ",
        "get or pack the file again",
    ),
    "idx, empty": ("idx", {IDX: b"", LABELS: idx(9)}, f"'{IDX}' begins with nothing", "get the file again"),
    "idx, without labels": ("idx", {IDX: idx(9, 8, 8)}, "'data' has no train labels", "train-labels-idx1-ubyte"),
    "idx, fewer labels": ("idx", {IDX: idx(9, 8, 8), LABELS: idx(8)}, "input 9, label 8", "the same"),
    "text, empty": ("text", {"a.txt": b""}, "'a.txt' has fewer than two tokens", "train.txt and test.txt"),
    "text, not UTF-8": ("text", {"a.txt": b"caf\xe9"}, "line 1 of 'a.txt' is not UTF-8", "store the file as UTF-8"),
    "text, no images": ("text", {"a.txt": b"text" * 999}, "images are int32", "uint8"),
    "lines, empty": ("lines", {"a.txt": b"\n\n"}, "'a.txt' has fewer than two tokens", "train.txt and test.txt"),
    "lines, a single one": ("lines", {"a.txt": b"one\n"}, "a part of 0.2 of 1 examples is empty", "give more data"),
    "lines, not UTF-8": ("lines", {"a.txt": b"one\n\xff"}, "line 2 of 'a.txt' is not UTF-8", "store the file as UTF-8"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_tables_lines_and_text(case, here, capsys):
    name, files, problem, remedy = FILES[case]
    for path, content in files.items():
        (here / path).parent.mkdir(exist_ok=True)
        (here / path).write_bytes(content)
    refused(capsys, f"--data {name} --data-dir {next(iter(files)).split('/')[0]} --batch-size 8", problem, remedy)


# The model, in the library


def recipe(classes: int) -> "lp.experiment.Recipe":
    dataset = lp.data.load("digits")
    stream = lp.data.Stream(dataset.train, 16, 0)
    model, criterion = lp.models.normalized(lp.models.mlp((8,), classes), 0.5, 0.5), lp.cross_entropy()
    optimizer = lp.optimizers.build("sgd", 0.1)
    step = lp.descend(lp.plain(lp.supervised(model, criterion)), optimizer)
    return lp.experiment.Recipe(
        "test", dataset, stream, model, criterion, optimizer, lambda count: 0.1, step, lambda loss: loss
    )


def test_a_model_with_other_outputs_than_classes(here):
    config = resnet.Config(batch_size=16, mesh="1x1")
    with pytest.raises(lp.InputError, match=r"outputs \(16, 7\) for a batch of 16 with 10 classes"):
        lp.experiment.run(recipe(7), config)
    assert not any(here.iterdir())
    state = lp.preparation.prepared(recipe(10), config, lp.mesh.make("1x1"))
    assert int(state.step) == 0


def test_the_trainer_says_the_same():
    images, labels = np.zeros((16, 4), np.float32), np.arange(16) % 4
    trainer = lp.Trainer(mesh="1x1", verbose=False)
    with pytest.raises(lp.InputError, match=r"train label at index 3 is 3, outside 0\.\.2"):
        trainer.fit(lp.models.mlp((8,), 3), (images, labels), (images, labels), batch_size=8, epochs=1)


def test_a_loss_that_is_not_finite_stops_the_run(here, capsys):
    """The directory stays, with what led there."""
    assert outcome("--learning-rate", "1e30", "--epochs", "3", "--log-every", "2", "--run", "run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "the gradient norm is nan at step 2, after going back 3 time(s)" in lines[0]
    assert "--learning-rate" in lines[1]
    assert not (here / "run" / "result.json").exists()
    assert (here / "run" / "config.json").exists()


# The run directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory of this recipe."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert outcome("--run", str(directory)) == 0
    return directory


def test_a_directory_of_another_experiment(finished, here, capsys):
    run = here / "run"
    run.mkdir()
    record = json.loads((finished / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "experiment": "vit"}))
    refused(capsys, "--run run", "belongs to the experiment 'vit', not 'resnet'", "--run of its own")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--model cnn", "model = 'mlp', not 'cnn'"),
        ("--seed 1", "seed = 0, not 1"),
        ("--learning-rate 0.2", "learning_rate = 0.1, not 0.2"),
        ("--batch-size 64", "batch_size = 128, not 64"),
    ],
)
def test_a_directory_of_another_run(flags, problem, finished, capsys):
    before = listing(finished)
    refused(capsys, f"--run {finished} {flags}", problem, "another --run")
    assert listing(finished) == before


def test_run_paths_that_hold_something_else(here, capsys):
    (here / "file").write_text("precious")
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter").write_text("precious")
    (here / "thesis" / "code").mkdir()
    (here / "thesis" / "code" / "config.json").write_text("{}")
    refused(capsys, "--run file", "--run file exists and is not a run directory", "new or empty")
    refused(capsys, "--run thesis", "--run thesis exists and is not a run directory", "new or empty")
    refused(capsys, "--run thesis/code", "config.json is not a run's", "new or empty")


def test_run_paths_that_cannot_be_written(here, capsys):
    (here / "file").write_text("precious")
    refused(capsys, "--run file/run", "cannot be written: Not a directory", "another --run")
    if os.path.isdir("/proc"):
        refused(capsys, "--run /proc/run", "--run /proc/run cannot be written", "another --run")


def test_a_full_disk_is_seen_before_the_run(here, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    refused(capsys, "--run deep/run", "disk full", "another --run")
    (here / "empty").mkdir()
    refused(capsys, "--run empty", "disk full", "another --run")


def test_a_disk_that_fills_during_the_run(here, capsys, monkeypatch):
    """Known before a checkpoint is begun, so what was saved before stays whole."""
    usage = namedtuple("usage", "total used free")
    left = iter([10**9, 10**9, 1000])
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, next(left)))
    assert outcome("--epochs", "2", "--run", "run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "a checkpoint cannot be written" in lines[0]
    assert "same command" in lines[1]
    saved = [path.name for path in (here / "run" / "checkpoints").iterdir()]
    assert saved == ["12"]


@pytest.mark.parametrize(
    ("limit", "problem"),
    [(1_800, "the run cannot be written to"), (30_000, "a checkpoint cannot be written under")],
)
def test_writes_that_fail_in_a_real_process(limit, problem, here):
    """A limit on the size of files stands for a full disk: metrics.jsonl meets it first, or a checkpoint."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY));"
        "import runpy, sys; sys.argv[0] = 'resnet'; runpy.run_module('experiments.resnet', run_name='__main__')"
    )
    arguments = [*QUICK, "--epochs", "2", "--log-every", "1", "--run", str(here / "run")]
    root = pathlib.Path(resnet.__file__).parent.parent
    # no cache of compiled programs: that is one more thing that would be written
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, 2), done.stderr
    assert lines[0].startswith("error: ")
    assert problem in lines[0]
    assert "File too large" in lines[0]
    assert "run the same command" in lines[1]
    assert not (here / "run" / "result.json").exists()
    assert not list((here / "run").glob("*.part"))


def test_every_flag_with_names_or_bounds_is_in_the_table():
    """A new flag of this kind needs its row."""
    known = " ".join([*FLAGS, "--run", PETS])
    free = {"debug", "explain_sharding", "flip", "step_size", "momentum", "label_smoothing", "ema", "image_size"}
    counted = {"eval_batch_size", "log_every", "eval_every", "checkpoint_every", "keep"}  # tests/test_cli.py
    names = {field.name for field in dataclasses.fields(resnet.Config)} - free - counted
    assert {name for name in names if cli.flag(name) not in known} == set()
