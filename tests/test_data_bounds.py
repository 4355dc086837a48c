"""Data that lies about its size, and data that leads out of its directory: refused before memory fills."""

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from lepton_jax.data import images, load, packed
from lepton_jax.errors import InputError


def npy(shape, content=b"", descr="|u1"):
    """A .npy member that claims `shape`."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def write_npz(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def test_the_limit_grows_with_the_file():
    assert packed.allowed(0) == packed.ALWAYS_BYTES == 2**30
    assert packed.allowed(2**30) == 100 * 2**30


def test_a_packed_file_far_larger_than_it_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "ALWAYS_BYTES", 100_000)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(bytes(3_000_000)))
    size = path.stat().st_size
    assert size < 4000
    with pytest.raises(InputError, match=rf"unpacks to more than {packed.allowed(size):,} bytes, the limit for its"):
        load("text", tmp_path)
    path.write_bytes(gzip.compress(b"text\n" * 20_000))  # 100,000 bytes: just within
    assert packed.content(path) == b"text\n" * 20_000


def test_an_archive_far_larger_than_it_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "ALWAYS_BYTES", 100_000)
    pixels = np.zeros((30, 64, 64), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train_images=pixels, test_images=pixels)
    with pytest.raises(InputError, match=r"a.npz' cannot be read: it unpacks to 246,\d+ bytes; the limit for its"):
        load("npz", tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="has no array 'train_labels'"):
        load("npz", tmp_path)


@pytest.mark.parametrize("shape", ["(1000000, 1000000)", "(1000000000, 64, 64)", "(5,)"])
def test_an_array_larger_than_its_member_is_refused(tmp_path, shape):
    """numpy would make room for it first."""
    write_npz(tmp_path / "a.npz", {"train_images": npy(shape, b"1234")})
    with pytest.raises(InputError, match=r"train_images.npy says that it has .* bytes, and \d+ are there"):
        load("npz", tmp_path)


def test_an_archive_that_is_odd_is_read_or_named(tmp_path):
    good = npy("(4,)", b"1234")
    write_npz(tmp_path / "a.npz", {"a": good})
    np.testing.assert_array_equal(packed.arrays(tmp_path / "a.npz")["a"], [49, 50, 51, 52])
    for member in (b"", b"text", b"\x93NUMPY\x03\x00" + good[8:], good[:30]):
        write_npz(tmp_path / "a.npz", {"train_images": member})
        with pytest.raises(InputError, match=r"a.npz' cannot be read"):
            load("npz", tmp_path)


def huge_png(width, height):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8193, 12_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused(tmp_path, side):
    """From our own limit on, past Pillow's warning, to Pillow's own refusal."""
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / split / "a" / "0.png")
        (tmp_path / split / "a" / "1.png").write_bytes(huge_png(side, side))
    with pytest.raises(InputError, match=rf"1.png' cannot be read: .*({side}x{side}|{side * side}) pixels"):
        load("folder", tmp_path)
    made = load("folder", tmp_path, on_bad_image="skip")
    assert len(made.bad) == 2


def test_images_within_the_limit_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 12)
    content = io.BytesIO()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(content, "png")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    assert images.read(tmp_path / "a.png", 1, None).shape == (3, 4, 1)
    monkeypatch.setattr(images, "PIXELS", 11)
    with pytest.raises(ValueError, match="4x3 pixels, and 11 is the limit"):
        images.read(tmp_path / "a.png", 1, None)


# Links


@pytest.fixture
def pets(tmp_path):
    """A data directory of one class, and files outside it."""
    for place in ("pets/train/cat", "pets/test/cat", "pets/elsewhere", "private/cat"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / place / "0.png")
    return tmp_path / "pets"


def replaced(path, target):
    if path.is_dir():
        path.joinpath("0.png").unlink(missing_ok=True)
        for child in path.iterdir():
            child.joinpath("0.png").unlink()
            child.rmdir()
        path.rmdir()
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("link", "target"),
    [("train/cat/1.png", "private/cat/0.png"), ("train/cat", "private/cat"), ("test", "private")],
)
@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_links_out_of_the_directory_are_refused(pets, link, target, on_bad_image):
    replaced(pets / link, pets.parent / target)
    with pytest.raises(InputError, match=rf"'{pets / link}' leads to '{pets.parent / target}', outside the data dir"):
        load("folder", pets, on_bad_image=on_bad_image)


def test_links_inside_the_directory_are_followed(pets):
    (pets / "train" / "cat" / "1.png").symlink_to("../../elsewhere/0.png")
    (pets / "train" / "dog").symlink_to("../elsewhere")
    (pets / "test" / "dog").symlink_to("../elsewhere")
    (pets.parent / "alias").symlink_to("pets")
    made = load("folder", pets.parent / "alias")
    assert (len(made.train), len(made.test), made.classes) == (3, 2, ("cat", "dog"))


@pytest.mark.parametrize(
    ("name", "suffix"), [("csv", ".csv"), ("jsonl", ".jsonl"), ("text", ".txt"), ("npz", ".npz"), ("lines", ".txt")]
)
def test_files_that_are_links_out_are_refused(tmp_path, name, suffix):
    (tmp_path / "private").write_text("a,label\n1,2\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"train{suffix}").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match="private', outside the data directory"):
        load(name, tmp_path / "data")


def test_idx_files_that_are_links_out_are_refused(tmp_path):
    (tmp_path / "private").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-images-idx3-ubyte").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match="private', outside the data directory"):
        load("idx", tmp_path / "data")
