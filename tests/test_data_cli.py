"""describe, preview and expand: what they say, draw and write, and that they write nothing where something is wrong."""

import importlib
import json
import subprocess
import sys
from collections import namedtuple

import jax
import numpy as np
import pytest
from PIL import Image

from lepton_jax import augment, cli, keys
from lepton_jax.augment.catalog import PUBLISHED, policies, policy
from lepton_jax.data import Arrays, Dataset, describe, fingerprint, gather, load
from lepton_jax.data import __main__ as program
from lepton_jax.data.expansion import expand
from lepton_jax.data.sheet import drawing, picture, sheet
from lepton_jax.errors import InputError

SIZE = 12


def called(*words):
    """The exit code of python -m lepton_jax.data."""
    functions = (program.describe, program.preview, program.expand)
    return cli.guarded(lambda: cli.call(*functions, arguments=list(map(str, words))))


def listing(place):
    return {path: path.lstat().st_mtime_ns for path in place.rglob("*")}


def pixels(seed, channels=3):
    shape = (SIZE, SIZE, 3) if channels == 3 else (SIZE, SIZE)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def pets(tmp_path):
    """Three training and two held-out images of each of two classes."""
    for split, count in (("train", 3), ("test", 2), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / "pets" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(10 * label + i + 100 * len(split))).save(place / f"{i}.png")
    return tmp_path / "pets"


@pytest.fixture
def scans(tmp_path):
    """A .npz file of five gray training images."""
    images = np.stack([pixels(i, channels=1) for i in range(9)])
    labels = np.arange(9)[:, None] % 3
    np.savez(
        tmp_path / "scans.npz",
        **{"train_images": images[:5], "train_labels": labels[:5]},
        **{"test_images": images[5:], "test_labels": labels[5:]},
    )
    return tmp_path / "scans.npz"


# describe


def test_a_description_counts_what_is_there():
    inputs = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 3), np.uint8)
    inputs[4], inputs[7] = inputs[1], inputs[1]  # twice more in train
    test = np.stack([inputs[2], inputs[0] // 2, inputs[1]])
    train = Arrays({"input": inputs, "label": np.arange(10) % 3})
    found = describe(Dataset("made", train, Arrays({"input": test, "label": [0, 2, 2]}), ("a", "b", "c"), (2, 2, 3)))
    assert found.parts["train"].counts == (4, 3, 3)
    assert found.parts["test"].counts == (1, 0, 2)
    assert [(one.first, one.again) for one in found.duplicates] == [
        (("train", 1), ("train", 4)),
        (("train", 1), ("train", 7)),
        (("train", 2), ("test", 0)),
        (("train", 1), ("test", 2)),
    ]
    assert (found.repeated("train", "train"), found.repeated("train", "test"), found.repeated("test", "test")) == (
        2,
        2,
        0,
    )
    np.testing.assert_allclose(found.parts["train"].mean, (inputs / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.parts["train"].deviation, (inputs / 255).std((0, 1, 2)), rtol=1e-6)
    told = str(found).splitlines()
    assert "duplicates  2 in test that train has too" in told
    assert "duplicates  2 within train" in told
    assert [line.split() for line in told if line.startswith("b ")] == [["b", "3", "0"]]


def test_describe_names_broken_files(pets, capsys):
    for name in ("0.png", "1.png"):
        (pets / "train" / "dog" / name).write_bytes(b"no image")
    assert called("describe", "folder", "--data-dir", pets) == 0
    told = capsys.readouterr().out
    assert "broken      2 files" in told
    assert str(pets / "train" / "dog" / "1.png") in told
    assert "duplicates  none" in told  # though both are black
    assert [line.split() for line in told.splitlines() if line.startswith("dog")] == [["dog", "3", "2", "1"]]


def test_describe_takes_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("abcdefgh" * 10)
    assert called("describe", "text:8", "--data-dir", tmp_path / "a.txt") == 0
    told = capsys.readouterr().out
    assert "int32" in told
    assert "class " not in told


def test_a_long_description_is_cut(tmp_path):
    inputs = np.repeat(np.arange(300, dtype=np.float32)[:, None] * np.ones(6, np.float32), 2, axis=0)
    source = Arrays({"input": inputs, "label": np.arange(600) // 2})
    found = describe(Dataset("many", source, source, tuple(map(str, range(300))), (6,), None))
    told = str(found)
    assert len(found.duplicates) == 900
    for words in ("and 250 more classes", "and 890 more", "and 2 more"):
        assert words in told


# preview


def test_a_sheet_shows_examples_before_and_after(pets):
    dataset = load("folder", pets)
    flip = augment.random_horizontal_flip(1.0)
    drawn = np.asarray(sheet(dataset, flip, "title", count=2))
    stored = gather(dataset.train, [0, 5])["input"]
    times = 96 // SIZE
    large = stored.repeat(times, 1).repeat(times, 2)
    left, top = 8, 18 + 2 * 8 + 18
    assert drawn.shape == (18 + 16 + 2 * (96 + 18 + 8), 8 + 2 * 96 + 24, 3)
    for row in range(2):
        at = top + row * (96 + 18 + 8)
        np.testing.assert_array_equal(drawn[at : at + 96, left : left + 96], large[row])
        np.testing.assert_array_equal(drawn[at : at + 96, left + 104 : left + 200], large[row][:, ::-1])
        assert drawn[at - 18 : at].min() < 255  # the name of the class


def test_pictures_are_of_a_size_to_look_at():
    assert picture(np.zeros((8, 8, 1), np.uint8)).size == (96, 96)
    assert picture(np.zeros((500, 400, 3), np.uint8)).size == (205, 256)
    assert picture(np.zeros((4, 400, 3), np.uint8)).size == (256, 3)
    np.testing.assert_array_equal(np.asarray(picture(np.full((96, 96, 1), 0.5, np.float32)))[0, 0], [128] * 3)
    drawn = drawing(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8), ["猫" * 90], "t" * 900)
    assert drawn.size == (8 + 2 * 96 + 24, 18 + 16 + 96 + 18 + 8)


def test_preview_writes_a_png_once(pets, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = ("preview", "folder", "--data-dir", pets, "--out", out, "--count", 4)
    assert called(*words) == 0
    assert "4 examples" in capsys.readouterr().out
    with Image.open(out) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    before = listing(tmp_path)
    assert called(*words) == 2
    assert f"--out '{out}' exists" in capsys.readouterr().err
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("digits --out a.jpg", "--out 'a.jpg' is not a new .png file"),
        ("digits --out absent/a.png", "is not a new .png file"),
        ("digits --out a.png --count 0", "--count 0 is outside"),
        ("digits --out a.png --policy bassic", "unknown policy 'bassic'"),
        ("digits --out a.png --seed -1", "seed -1"),
        ("text --data-dir a.txt --out a.png", "are not gray or RGB images"),
        ("digit --out a.png", "unknown data set 'digit'"),
    ],
)
def test_preview_refuses(words, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text" * 100)
    before = listing(tmp_path)
    assert called("preview", *words.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert fault in lines[0]
    assert listing(tmp_path) == before


# expand


def one_by_one(images, name, seed, copy):
    """What a copy is by definition: image i from the key of (seed, copy, i), alone."""
    transform = policy(name, images[0].shape)
    key = jax.random.fold_in(keys.named(keys.seeded(seed), "expand"), copy)
    several = jax.jit(transform)
    return [np.asarray(several(jax.random.fold_in(key, i), image)) for i, image in enumerate(images)]


def test_a_folder_is_expanded(pets, tmp_path, capsys):
    made = tmp_path / "more"
    assert called("expand", pets, made, "--copies", 2, "--policy", "basic", "--seed", 7) == 0
    assert str(made) in capsys.readouterr().out
    before, after = load("folder", pets), load("folder", made)
    assert (len(after.train), len(after.test), len(after.validation or ())) == (18, 4, 2)
    assert after.classes == before.classes
    for path in pets.rglob("*.png"):
        assert (made / path.relative_to(pets)).read_bytes() == path.read_bytes()
    stored = gather(before.train, np.arange(6))["input"]
    for copy in (1, 2):
        for i, image in enumerate(one_by_one(stored, "basic", 7, copy)):
            name = f"train/{('cat', 'dog')[i // 3]}/{i % 3}.png.{copy}.png"
            with Image.open(made / name) as written:
                np.testing.assert_array_equal(np.asarray(written), image)
    record = json.loads((made / "provenance.json").read_text())
    assert (record["policy"], record["copies"], record["seed"]) == ("basic", 2, 7)
    assert record["fingerprint"] == fingerprint(before.train)
    assert set(record["versions"]) == {"python", "lepton-jax", "jax", "numpy", "pillow"}
    files = {path.relative_to(made).as_posix() for path in made.rglob("*.png")}
    assert set(record["files"]) == files
    for name, origin in record["files"].items():
        assert (pets / origin["origin"]).is_file()
        assert (origin["copy"] == 0) == (name == origin["origin"])


def test_an_archive_is_expanded(scans, tmp_path):
    made = expand(scans, tmp_path / "more", "basic", 3, seed=1)
    assert {path.name for path in made.iterdir()} == {"scans.npz", "provenance.json"}
    before, after = load("npz", scans), load("npz", made)
    rows, stored = gather(after.train, np.arange(20)), gather(before.train, np.arange(5))
    np.testing.assert_array_equal(rows["input"][:5], stored["input"])
    np.testing.assert_array_equal(rows["label"], np.tile(stored["label"], 4))
    for copy in (1, 2, 3):
        wanted = one_by_one(stored["input"], "basic", 1, copy)
        np.testing.assert_array_equal(rows["input"][5 * copy : 5 * copy + 5], wanted)
    assert fingerprint(after.test) == fingerprint(before.test)
    rule = json.loads((made / "provenance.json").read_text())["files"]["scans.npz"]
    assert rule == {"origin of training image p": "p % 5", "its copy, 0 for the original": "p // 5"}


def test_an_expansion_is_a_function_of_its_arguments(pets, scans, tmp_path):
    for source in (pets, scans):
        one, two = (expand(source, tmp_path / f"{source.stem}{i}", "basic", 1, seed=3) for i in range(2))
        for path in (path for path in one.rglob("*") if path.is_file() and path.suffix != ".npz"):
            assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
        kind = "folder" if source.is_dir() else "npz"
        assert fingerprint(load(kind, one).train) == fingerprint(load(kind, two).train)


def test_images_of_several_sizes_need_one(pets, tmp_path):
    Image.fromarray(np.zeros((9, 15, 3), np.uint8)).save(pets / "train" / "cat" / "0.png")
    with pytest.raises(InputError, match="--image-size"):
        expand(pets, tmp_path / "more", "basic", 1)
    assert not list(tmp_path.glob("more*"))
    made = expand(pets, tmp_path / "more", "none", 1, image_size=8)
    for name, size in (("0.png", (15, 9)), ("0.png.1.png", (8, 8))):
        with Image.open(made / "train" / "cat" / name) as image:
            assert image.size == size


EXPANSIONS = {
    "pets more --copies 0": "--copies 0 is below 1",
    "pets more --copies 1 --policy bsic": "unknown policy 'bsic'",
    "pets more --copies 1 --seed -1": "seed -1",
    "pets scans.npz --copies 1": "'scans.npz' exists",
    "pets pets --copies 1": "'pets' exists",
    "pets pets/more --copies 1": "lies in the data that it is made from",
    "pets more.npz --copies 1": "would be a directory",
    "pets scans.npz/more --copies 1": "'scans.npz/more' cannot be written: Not a directory",
    "pets absent/more --copies 1": "'absent/more' cannot be written: No such file",
    "absent more --copies 1": "'absent' does not exist",
    "scans.npz more --copies 1 --image-size 9": "fixed size",
    "pets more": "--copies",
}


@pytest.mark.parametrize("words", EXPANSIONS)
def test_expand_refuses_and_writes_nothing(words, pets, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    assert called("expand", *words.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert EXPANSIONS[words] in lines[0]
    assert listing(tmp_path) == before


def test_expand_is_complete_or_not_there(pets, tmp_path, monkeypatch):
    """It fails at the last image; and one that was killed has left its part behind."""
    (pets / "train" / "dog" / "2.png").write_bytes(b"no image")
    monkeypatch.setattr("lepton_jax.data.checks.SAMPLE", 2)
    monkeypatch.setattr("lepton_jax.data.summary.spread", lambda *_: np.array([0]))
    monkeypatch.setattr("lepton_jax.data.checks.spread", lambda *_: np.array([0]))
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"dog/2.png' cannot be read"):
        expand(pets, tmp_path / "more", "basic", 1)
    assert set(listing(tmp_path)) == set(before)
    (tmp_path / "more.part").mkdir()
    with pytest.raises(InputError, match=r"more.part' is there: another expansion writes it, or one was stopped"):
        expand(pets, tmp_path / "more", "basic", 1)


@pytest.mark.parametrize("name", ["pets", "scans.npz"])
def test_expand_sees_a_full_disk_before_it_writes(name, pets, scans, tmp_path, monkeypatch, capsys):
    """It asks for no less than it is going to write, and leaves nothing where that is not free."""
    monkeypatch.chdir(tmp_path)
    assert called("expand", name, "whole", "--copies", 2, "--policy", "none") == 0
    written = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, written - 1))
    before = listing(tmp_path)
    capsys.readouterr()
    assert called("expand", name, "more", "--copies", 2, "--policy", "none") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "'more' cannot be written: disk full: it needs up to 0." in lines[0]
    assert "with room" in lines[1]
    assert listing(tmp_path) == before


def test_a_name_that_a_copy_would_get_is_not_overwritten(pets, tmp_path):
    Image.fromarray(pixels(0)).save(pets / "train" / "cat" / "0.png.1.png")
    with pytest.raises(InputError, match=r"0.png.1.png' has the name that a copy would get"):
        expand(pets, tmp_path / "more", "basic", 1)
    assert not list(tmp_path.glob("more*"))


# Policies, and the program itself


@pytest.mark.parametrize("channels", [1, 3])
def test_every_policy_keeps_shape_and_type(channels):
    assert {"none", "basic"} <= set(policies()) <= {"none", "basic", *PUBLISHED}
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, channels), np.uint8)
    drawn = jax.vmap(jax.random.fold_in, (None, 0))(keys.seeded(0), np.arange(3))
    for name in policies():
        made = augment.batched(policy(name, images.shape[1:]))(drawn, images)
        assert (made.shape, made.dtype) == (images.shape, images.dtype), name


def test_help_does_not_wait_for_jax():
    code = "import sys; from lepton_jax.data import __main__; print(*{'jax', 'flax', 'grain'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert importlib.import_module("lepton_jax.data").describe is describe
