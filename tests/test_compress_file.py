"""The packed file: exact, small, and refused where it is not what was written."""

import hashlib
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax.compress import file, leaves
from lepton_jax.errors import InputError

RANDOM = np.random.default_rng(0)


def tree():
    """Every kind of leaf, nested ones too."""
    integers = RANDOM.integers(-8, 8, (6, 4)).astype(np.int8)
    four = leaves.Quantized(leaves.nibbles(integers), RANDOM.random((1, 4), np.float32), None, None, (6, 4), 4)
    eight = leaves.Quantized(integers, RANDOM.random((1, 4), np.float32), np.zeros((1, 1), np.float32), None, (6, 4), 8)
    float8 = leaves.Quantized(
        jnp.asarray(integers, jnp.float8_e4m3fn), np.ones((1, 1), np.float32), None, jnp.float32(0.5), (6, 4), 8
    )
    factored = leaves.Factored({"down": np.ones((6, 2), np.float32), "up": four_of((2, 5))}, (6, 5))
    mask = RANDOM.random((6, 4)) < 0.4
    return {
        "params": {
            "dense": {"kernel": four, "bias": np.arange(4, dtype=np.float32)},
            "a": {"kernel": eight},
            "b": {"kernel": float8},
            "c": {"kernel": factored},
            "d": {"kernel": leaves.sparse(eight, mask)},
            "e": {"kernel": leaves.sparse(np.asarray(RANDOM.random((6, 4)), np.float32), mask)},
        },
        "batch_stats": {"mean": np.asarray(RANDOM.random(3), np.float32), "half": jnp.ones(2, jnp.bfloat16)},
        "empty": {},
    }


def four_of(shape):
    integers = RANDOM.integers(-8, 8, shape).astype(np.int8)
    return leaves.Quantized(leaves.nibbles(integers), np.ones((1, 1), np.float32), None, None, shape, 4)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_is_loaded_is_what_was_saved(tmp_path):
    before, about = tree(), {"model": "mlp", "classes": ["a", "b"], "mean": 0.5}
    size = file.save(tmp_path / "m.lepton", before, about)
    assert size == (tmp_path / "m.lepton").stat().st_size
    after = file.load(tmp_path / "m.lepton")
    same(after.tree, before)
    assert after.about == about
    assert [path.name for path in tmp_path.iterdir()] == ["m.lepton"]


@pytest.mark.parametrize("axes", ["8x1", "2x4", "fsdp=4"])
def test_saved_from_a_mesh_it_loads_onto_another(axes, tmp_path):
    over, other = lp.mesh.make(axes), lp.mesh.make("4x2")
    params = {"kernel": jnp.asarray(RANDOM.random((8, 8)), jnp.float32)}
    placed = jax.device_put(params, lp.mesh.shardings(params, over))
    file.save(tmp_path / "m", placed)
    loaded = file.load(tmp_path / "m").tree
    same(jax.device_put(loaded, lp.mesh.shardings(loaded, other)), params)


@pytest.fixture(scope="module")
def content():
    return file.encoded(tree(), {"x": 1})


def refused(content, match):
    with pytest.raises(InputError, match=match) as error:
        file.decoded(content, "m.lepton")
    assert len(str(error.value).splitlines()) == 2


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_one_bit_anywhere_is_noticed(content, data):
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    altered = bytearray(content)
    altered[place // 8] ^= 1 << place % 8
    refused(bytes(altered), "m.lepton")


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_a_cut_file_is_noticed(content, data):
    refused(content[: data.draw(st.integers(0, len(content) - 1))], "m.lepton")
    refused(content + b"x", "cut or altered")


def forged(header, body=b"", length=None, version=file.VERSION):
    """A file whose digest is right and whose header is not."""
    packed = header if isinstance(header, bytes) else zlib.compress(json.dumps(header).encode())
    rest = packed + body
    fixed = file.FIXED.pack(
        file.MAGIC, version, len(packed) if length is None else length, hashlib.sha256(rest).digest()
    )
    return fixed + rest


EMPTY = {"about": {}, "arrays": [], "tree": {}}
LEAF = {"$": "Quantized", "fields": {"values": {"$": 0}, "scale": {"$": 1}, "zero": {"$": None}, "inputs": {"$": None}}}
TWO = {"about": {}, "arrays": [["int8", [4]], ["float32", [1]]]}
DEEP = b'{"a":' * 9000 + b"{}" + b"}" * 9000
LIES = {
    "no version": (forged(EMPTY, version=0), "version 0"),
    "newer": (forged(EMPTY, version=2), "version 2"),
    "no header": (forged(b"{}"), "damaged"),
    "a long header": (forged(EMPTY, length=2**60), "damaged"),
    "a bomb": (forged(zlib.compress(b" " * (2**24 + 1))), "no end"),
    "no JSON": (forged(zlib.compress(b"{")), "damaged"),
    "not a tree": (forged({**EMPTY, "tree": 3}), "damaged"),
    "a missing array": (forged({**EMPTY, "tree": {"a": {"$": 0}}}), "damaged"),
    "a negative array": (forged({**EMPTY, "arrays": [["int8", [1]]], "tree": {"a": {"$": -1}}}, b"x"), "array -1"),
    "too many bytes": (forged(EMPTY, b"12"), "lists 0 bytes of arrays and has 2"),
    "absurd bytes": (forged({**EMPTY, "arrays": [["float32", [2**40]]]}), "lists 4398046511104 bytes"),
    "a negative shape": (forged({**EMPTY, "arrays": [["float32", [-1]]]}), "lists an array"),
    "objects": (forged({**EMPTY, "arrays": [["object", [1]]]}, b"12345678"), "lists an array object"),
    "an unknown kind": (forged({**EMPTY, "tree": {"a": {"$": "system", "fields": {}}}}), "damaged"),
    "an absurd leaf": (
        forged({**TWO, "tree": {"a": {**LEAF, "shape": [2**20, 2**20], "bits": 8}}}, b"12345678"),
        "claims arrays",
    ),
    "a leaf of another shape": (
        forged({**TWO, "tree": {"a": {**LEAF, "shape": [5], "bits": 8}}}, b"12345678"),
        "holds",
    ),
    "deep": (
        forged(zlib.compress(b'{"about":{},"arrays":[],"tree":' + b'{"a":' * 9000 + b"{}" + b"}" * 9001)),
        "damaged",
    ),
    "something else": (b"PK\x03\x04" + bytes(100), "not a packed model"),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_forged_file_is_refused(lie):
    refused(*LIES[lie])


def test_unreadable_and_unwritable(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        file.load(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be written"):
        file.save(tmp_path / "absent" / "m", {"a": np.ones(2, np.float32)})
    with pytest.raises(InputError, match="complex64"):
        file.save(tmp_path / "m", {"a": np.ones(2, np.complex64)})
    with pytest.raises(InputError, match="cannot be stored"):
        file.save(tmp_path / "m", {"a/b": np.ones(2, np.float32)})
    assert not list(tmp_path.iterdir())


def test_the_fixed_part_is_as_documented(content):
    assert struct.unpack_from("<8sIQ", content)[:2] == (b"LEPTONPK", 1)
    assert file.FIXED.size == 52
