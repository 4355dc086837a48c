"""The readers, each against files that the test writes, and every way in which files can be wrong."""

import codecs
import io
import os
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lepton_jax.data import Arrays, Stream, evaluation_batches, gather, load, pickles
from lepton_jax.data import sources as sources_module
from lepton_jax.data.cifar import CLASSES
from lepton_jax.data.folder import Folder
from lepton_jax.errors import InputError


def rows_of(source):
    return gather(source, range(len(source)))


# CIFAR-10


def records(examples, seed):
    """Labels [n] and pixels [n, 3, 32, 32], channel first as the files hold them."""
    random = np.random.default_rng(seed)
    return random.integers(0, 10, examples, np.uint8), random.integers(0, 256, (examples, 3, 32, 32), np.uint8)


def write_cifar(place, kind, protocol=2):
    place.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, examples, seed in (("data_batch_1", 4, 1), ("data_batch_2", 3, 2), ("test_batch", 2, 3)):
        labels, pixels = written[name] = records(examples, seed)
        flat = pixels.reshape(examples, -1)
        if kind == "binary":
            (place / f"{name}.bin").write_bytes(np.column_stack([labels, flat]).tobytes())
        else:
            content = {b"data": flat, b"labels": labels.tolist(), b"batch_label": b"one"}
            (place / name).write_bytes(pickle.dumps(content, protocol))
    train = [np.concatenate(pair) for pair in zip(written["data_batch_1"], written["data_batch_2"], strict=True)]
    return train, written["test_batch"]


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-"])
@pytest.mark.parametrize("kind", ["binary", 0, 2, 4, 5])
def test_cifar10_reads_the_official_files(tmp_path, kind, inside):
    suffix = {"binary": "bin"}.get(kind, "py")
    place = tmp_path / f"{inside}{suffix}" if inside else tmp_path
    protocol = 2 if kind == "binary" else kind
    train, test = write_cifar(place, "binary" if kind == "binary" else "python", protocol)
    made = load("cifar10", tmp_path)
    assert (made.classes, made.input_shape) == (CLASSES, (32, 32, 3))
    for source, (labels, pixels) in ((made.train, train), (made.test, test)):
        rows = rows_of(source)
        np.testing.assert_array_equal(rows["label"], labels)
        np.testing.assert_array_equal(rows["input"], np.moveaxis(pixels, 1, -1))
        assert rows["input"].dtype == np.uint8


def test_cifar10_reads_what_python_2_and_numpy_1_wrote(tmp_path):
    """The official files in their own opcodes: byte strings, and the names that numpy has since moved."""
    (train_labels, train_pixels), _ = write_cifar(tmp_path, "python")
    pixels, labels = train_pixels[:1].tobytes(), int(train_labels[0])
    old = b"".join(
        [
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff",
            b"\xff\xffK\x00tb\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb",
            b"U\x06labels](K" + bytes([labels]) + b"eu.",
        ]
    )
    for name in ("data_batch_1", "data_batch_2"):
        (tmp_path / name).write_bytes(old)
    rows = rows_of(load("cifar10", tmp_path).train)
    np.testing.assert_array_equal(rows["input"][1], np.moveaxis(train_pixels[0], 0, -1))
    np.testing.assert_array_equal(rows["label"], [labels, labels])


class Evil:
    """A pickle that runs a command when it is read."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, io.open])
def test_cifar10_runs_nothing_that_a_pickle_asks_for(tmp_path, function):
    write_cifar(tmp_path, "python")
    witness = tmp_path / "witness"
    argument = f"open({str(witness)!r}, 'w')" if function is eval else f"touch {witness}"
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil(function, argument)}))
    with pytest.raises(InputError, match=r"data_batch_1' is not a CIFAR-10 batch: it asks for .* refused"):
        load("cifar10", tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        np.array([{}], object),
        np.zeros(3),
        np.dtype("O"),
        Evil(codecs.encode, "a", "rot13"),
        Evil(np.ndarray, (2,), "O"),
        len,
    ],
)
def test_the_unpickler_admits_arrays_of_integers_only(content):
    with pytest.raises((pickle.UnpicklingError, TypeError), match=r"refused|not callable"):
        pickles.loads(pickle.dumps(content, 2))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4"])
def test_the_unpickler_reads_integers_of_any_layout(protocol, dtype):
    array = np.arange(300, 312).astype(dtype).reshape(3, 4)
    for layout in (array, np.asfortranarray(array)):
        np.testing.assert_array_equal(np.asarray(pickles.loads(pickle.dumps(layout, protocol))), array)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]})],
)
def test_cifar10_names_a_broken_python_batch(tmp_path, content):
    write_cifar(tmp_path, "python")
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match="test_batch' is not a CIFAR-10 batch"):
        load("cifar10", tmp_path)


def test_cifar10_names_what_is_wrong_with_binary_files(tmp_path):
    write_cifar(tmp_path, "binary")
    second = tmp_path / "data_batch_2.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=r"data_batch_2.bin' has 9212 bytes.*cut short"):
        load("cifar10", tmp_path)
    second.write_bytes(bytes([11]) + whole[1:])
    with pytest.raises(InputError, match=r"train label at index 4 is 11, outside 0..9"):
        load("cifar10", tmp_path)
    second.rename(tmp_path / "data_batch_3.bin")
    with pytest.raises(InputError, match=r"has no data_batch_2.bin"):
        load("cifar10", tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(InputError, match=r"has no test_batch.bin"):
        load("cifar10", tmp_path)


# npz


def arrays_for(image, label, images, labels):
    return {
        image.format("train"): images,
        label.format("train"): labels,
        **{
            name.format(split): values[:2]
            for split in ("test", "val")
            for name, values in ((image, images), (label, labels))
        },
    }


@pytest.mark.parametrize(("image", "label"), [("{}_images", "{}_labels"), ("x_{}", "y_{}")])
def test_npz_reads_both_sets_of_names(tmp_path, image, label):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    labels = np.arange(6)[:, None] % 3
    np.savez_compressed(tmp_path / "scans.npz", **arrays_for(image, label, pixels, labels))
    for place in (tmp_path, tmp_path / "scans.npz"):
        made = load("npz", place)
        assert (made.name, made.classes, made.input_shape) == ("scans", ("0", "1", "2"), (5, 4, 1))
        np.testing.assert_array_equal(rows_of(made.train)["input"][..., 0], pixels)
        np.testing.assert_array_equal(rows_of(made.train)["label"], labels[:, 0])
        assert made.validation is not None
        assert len(made.validation) == 2


def test_npz_takes_floats_wide_integers_and_named_classes(tmp_path):
    names = ("{}_images", "{}_labels")
    for pixels, dtype in ((np.full((4, 3, 3, 3), 0.5), np.float32), (np.full((4, 3, 3, 3), 200), np.uint8)):
        arrays = arrays_for(*names, pixels, np.array([0, 1, 0, 1]))
        np.savez(tmp_path / "a.npz", classes=np.array(["cat", "dog"]), **arrays)
        made = load("npz", tmp_path)
        assert made.classes == ("cat", "dog")
        assert made.train[0]["input"].dtype == dtype
        assert made.train[0]["input"].max() == pixels.max()


IMAGES = np.zeros((4, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_labels": None}, "has no array 'test_labels'"),
        ({"train_images": None}, "has no array 'train_images'"),
        ({"train_images": np.zeros((4, 9, 9, 9, 1))}, "not a set of images"),
        ({"train_images": np.zeros((4, 9, 9, 9))}, "not a set of images"),
        ({"train_images": np.full((4, 3, 3), 4000)}, "integers 4000..4000, outside 0..255"),
        ({"train_labels": np.zeros((4, 14), int)}, "one integer per example"),
        ({"train_labels": np.zeros(4)}, "one integer per example"),
        ({"train_labels": np.zeros(3, int)}, "different numbers of examples"),
        ({"train_images": np.array([None] * 4)}, "cannot be read.*allow_pickle"),
        ({"test_images": np.zeros((4, 2, 2), np.uint8)}, r"test inputs have shape \(2, 2, 1\)"),
        ({"train_images": np.full((4, 3, 3), np.nan)}, "train input at index 0 has the value nan"),
        ({"classes": np.array(["one"]), "test_labels": np.ones(4, int)}, "label at index 0 is 1, outside 0..0"),
    ],
)
def test_npz_names_what_is_wrong(tmp_path, changes, words):
    arrays = {"train_images": IMAGES, "test_images": IMAGES}
    arrays |= {"train_labels": np.zeros(4, int), "test_labels": np.zeros(4, int), **changes}
    given: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(InputError, match=words):
        load("npz", tmp_path)


def test_npz_names_files_that_are_none(tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"", b"PK\x03\x04 and then nothing", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a.npz' cannot be read"):
            load("npz", path)
    np.savez_compressed(path, train_images=np.random.default_rng(0).integers(0, 256, (40, 9, 9), np.uint8))
    whole = path.read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for content in (whole[:-30], whole[:90] + bytes([whole[90] ^ 255]) + whole[91:], single.getvalue()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a.npz' cannot be read"):
            load("npz", path)
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds 2 .npz files"):
        load("npz", tmp_path)


# Folders of images


def pixels_of(seed, size=(6, 5), channels=3):
    shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_folder(root, splits=("train", "test"), classes=("cat", "dog"), per_class=3, **options):
    written = {}
    for split in splits:
        for name in classes:
            for i in range(per_class):
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                written[path] = pixels_of(len(written), **options)
                Image.fromarray(written[path]).save(path)
    return written


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_reads_every_class_in_order(tmp_path, channels):
    written = write_folder(tmp_path, splits=("train", "test", "val"), channels=channels)
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    made = load("folder", tmp_path)
    assert (made.classes, made.input_shape, made.name) == (("cat", "dog"), (5, 6, channels), tmp_path.name)
    for split, source in (("train", made.train), ("test", made.test), ("val", made.validation)):
        rows = rows_of(source)
        expected = [pixels.reshape(5, 6, channels) for path, pixels in written.items() if path.parts[-3] == split]
        np.testing.assert_array_equal(rows["input"], expected)
        np.testing.assert_array_equal(rows["label"], [0, 0, 0, 1, 1, 1])
        assert "weight" not in rows


def test_folder_reads_every_mode_of_pixels(tmp_path):
    """One data set of files whose pixels mean the same in many encodings."""
    write_folder(tmp_path, per_class=1)
    place = tmp_path / "train" / "cat"
    gray = pixels_of(0, channels=1)
    Image.fromarray(gray).save(place / "l.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(place / "sixteen.png")
    Image.fromarray(np.dstack([gray] * 3)).convert("RGBA").save(place / "rgba.png")
    Image.fromarray(gray).convert("P").save(place / "palette.png", transparency=b"\x10\x20")
    Image.fromarray(gray).convert("LA").save(place / "la.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(gray)).save(place / "turned.png", exif=turned)
    made = load("folder", tmp_path)
    assert made.input_shape == (5, 6, 3)
    names = sorted(path.name for path in place.iterdir())
    for name, image in zip(names[1:], rows_of(made.train)["input"][1:], strict=False):
        np.testing.assert_array_equal(image, np.dstack([gray] * 3), err_msg=name)


def test_folder_resizes_and_cuts_out_the_center(tmp_path):
    for split in ("train", "test"):
        for i, size in enumerate([(40, 30), (30, 50), (20, 20)]):
            path = tmp_path / split / "only" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_of(i, size)).save(path, quality=95)
    made = load("folder", tmp_path, image_size=20)
    rows = rows_of(made.train)["input"]
    assert rows.shape == (3, 20, 20, 3)
    first = Image.open(tmp_path / "train/only/0.jpg").resize((27, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(rows[0], np.asarray(first.crop((3, 0, 23, 20))))
    np.testing.assert_array_equal(rows[2], np.asarray(Image.open(tmp_path / "train/only/2.jpg")))
    with pytest.raises(InputError, match=r"1.jpg' is 30x50 and the first one 40x30\n.*--image-size"):
        load("folder", tmp_path)


def test_folder_reads_large_sets_while_training(tmp_path, monkeypatch):
    write_folder(tmp_path)
    held = load("folder", tmp_path)
    monkeypatch.setattr(sources_module, "IN_MEMORY_BYTES", 100)
    lazy = load("folder", tmp_path)
    assert isinstance(held.train, Arrays)
    assert isinstance(lazy.train, Folder)
    for one, two in zip(Stream(held.train, 4, 0).batches(0, 4), Stream(lazy.train, 4, 0).batches(0, 4), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def break_files(root):
    """A file of each kind of damage; returns their paths."""
    cut, text, empty = (root / "train" / "cat" / f"{i}.png" for i in range(3))
    cut.write_bytes(cut.read_bytes()[:-60])
    text.write_text("this is no image")
    empty.write_bytes(b"")
    return [str(path) for path in (cut, text, empty)]


@pytest.mark.parametrize("limit", [2**31, 10])
def test_a_broken_image_stops_or_has_no_weight(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(sources_module, "IN_MEMORY_BYTES", limit)
    written = write_folder(tmp_path)
    broken = break_files(tmp_path)
    with pytest.raises(InputError, match=r"cat/0.png' cannot be read: .*\n.*--on-bad-image skip"):
        rows_of(load("folder", tmp_path).train)
    made = load("folder", tmp_path, on_bad_image="skip")
    rows = rows_of(made.train)
    np.testing.assert_array_equal(rows["weight"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(rows["input"][:3], 0)
    np.testing.assert_array_equal(rows["input"][3:], list(written.values())[3:6])
    assert made.bad == tuple(broken)
    (batch,) = evaluation_batches(made.train, 8)
    np.testing.assert_array_equal(batch["weight"], [0, 0, 0, 1, 1, 1, 0, 0])


def test_no_readable_image_is_an_error(tmp_path):
    write_folder(tmp_path, classes=("cat",))
    break_files(tmp_path)
    with pytest.raises(InputError, match="none of the 3 training images can be read"):
        load("folder", tmp_path, on_bad_image="skip")


def test_folder_names_classes_that_differ(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(InputError, match=r"train and test differ: dog \(only in train\), wolf \(only in test\)"):
        load("folder", tmp_path)


def test_folder_names_what_is_missing(tmp_path):
    write_folder(tmp_path, splits=("train",))
    with pytest.raises(InputError, match=r"no folder data in .*\nexpected there: train/CLASS"):
        load("folder", tmp_path)
    write_folder(tmp_path, splits=("test",))
    for path in (tmp_path / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="class 'dog' has no training images"):
        load("folder", tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).rename(tmp_path / name)
    with pytest.raises(InputError, match="has no class folders"):
        load("folder", tmp_path)
