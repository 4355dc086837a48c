"""CSV, JSON lines and idx files: what was written is what is read, and every way in which they can be wrong."""

import csv
import gzip
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_jax.data import gather, load
from lepton_jax.data import owners as owners_of
from lepton_jax.data.labeling import class_name, in_order
from lepton_jax.errors import InputError


def rows_of(source):
    return gather(source, np.arange(len(source)))


def sorted_rows(*parts):
    """All examples of the parts as rows (features, label), sorted."""
    rows = [rows_of(part) for part in parts]
    table = np.concatenate([np.column_stack([row["input"], row["label"]]) for row in rows])
    return table[np.lexsort(table.T)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "npz", "npz of Keras"])
def test_a_field_says_whose_an_example_is(kind, tmp_path):
    owners, inputs, labels = ["b", "10", "a", "b", "a", "10"], np.arange(12.0).reshape(6, 2) / 12, [0, 1, 0, 1, 1, 0]
    lines = list(zip(inputs.tolist(), owners, labels, strict=True))
    names = {"npz": "{}_images {}_labels {}_by", "npz of Keras": "x_{} y_{} by_{}"}
    for part in ("train", "test"):
        if kind == "csv":
            write_csv(tmp_path / f"{part}.csv", [["x", "by", "y", "label"], *([x, o, y, n] for (x, y), o, n in lines)])
        elif kind == "jsonl":
            records = [{"input": x, "label": n, "by": int(o) if o == "10" else o} for x, o, n in lines]
            (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, records)))
    if kind in names:
        columns = dict(zip(names[kind].split(), (inputs, np.array(labels), np.array(owners)), strict=True))
        arrays = {name.format(part): column for part in ("train", "test") for name, column in columns.items()}
        np.savez(tmp_path / "data.npz", **arrays)
    made = load(kind.split()[0], tmp_path, by="by")
    np.testing.assert_array_equal(owners_of(made.train), [2, 0, 1, 2, 1, 0])
    np.testing.assert_allclose(rows_of(made.train)["input"], inputs, rtol=1e-6)
    np.testing.assert_array_equal(rows_of(made.train)["label"], labels)
    assert "owner" not in rows_of(made.test)
    with pytest.raises(InputError, match="writer"):
        load(kind.split()[0], tmp_path, by="writer")


# CSV


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_csv_reads_a_table_by_its_columns(tmp_path):
    values = np.random.default_rng(0).normal(0, 1e3, (12, 3)).astype(np.float32)
    kinds = ["setosa", "virginica, the", "10", "9"] * 3
    head = ["length", "kind", "width", "height"]
    rows = [[repr(float(v[0])), kind, repr(float(v[1])), f" {v[2]!s}"] for v, kind in zip(values, kinds, strict=True)]
    for name, delimiter in (("train.csv", ","), ("test.tsv", "\t")):
        write_csv(tmp_path / name, [head, *rows], delimiter)
    made = load("csv:kind", tmp_path)
    assert made.classes == ("10", "9", "setosa", "virginica, the")
    assert made.input_shape == (3,)
    for source in (made.train, made.test):
        found = rows_of(source)
        np.testing.assert_array_equal(found["input"], values)
        assert [made.classes[label] for label in found["label"]] == kinds
        assert (found["input"].dtype, found["label"].dtype) == (np.float32, np.int32)


def test_csv_in_one_piece_is_split_by_seed_and_class(tmp_path):
    rows = [[i, i % 5 == 0] for i in range(50)]
    write_csv(tmp_path / "all.csv", [["x", "label"], *[[i, int(flag)] for i, flag in rows]])
    for place in (tmp_path, tmp_path / "all.csv"):
        made = load("csv", place, seed=3)
        assert made.classes == ("0", "1")
        assert [np.bincount(rows_of(part)["label"]).tolist() for part in (made.train, made.test)] == [[32, 8], [8, 2]]
        np.testing.assert_array_equal(
            sorted_rows(made.train, made.test),
            sorted_rows([{"input": np.array([float(i)]), "label": int(flag)} for i, flag in rows]),
        )


def test_csv_may_be_packed_and_have_empty_lines(tmp_path):
    content = b'x,label\r\n1,"a"\r\n\r\n2,b\r\n' * 1
    for name in ("train.csv.gz", "test.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(rows_of(load("csv", tmp_path).test)["input"], [[1], [2]])


CSV = {
    "a,label\n1,x\n2\n": r"line 3 of .*' has 1 values, and the first line 2",
    "a,label\n1,x,3\n": "line 2 of .*' has 3 values",
    'a,label\n1,x\n"2\n3",y\n': r"line 4 of .* has '2\\n3' for 'a', which is not a finite number",
    "a,b,label\n1,2,x\n3,many,y\n": "line 3 of .* has 'many' for 'b'",
    "a,label\n,x\n": "line 2 of .* has '' for 'a'",
    "a,label\nnan,x\n": "line 2 of .* has 'nan' for 'a'",
    "a,label\n1e39,x\n": "line 2 of .* has '1e39' for 'a'",
    "a,label\n1,\n": "line 2 of .*: the label is empty",
    "a,label\n1,0.5\n": "line 2 of .*: the label '0.5' is not a class",
    "a,lable\n1,x\n": "no label column 'label' in its first line\ndid you mean 'lable'",
    "label,a,label\nx,1,y\n": "has the column 'label' twice",
    "a,a,label\n1,1,y\n": "has the column 'a' twice",
    "label\nx\n": "has only the label column",
    "a,label\n": "has no rows under its first line",
    "": "no label column",
    'a,label\n1,"x\n': "line 2 of .*: unexpected end of data",
    "a,label\n1,x\n2,y\n": "a part of 0.2 of 2 examples is empty",
}


@pytest.mark.parametrize("content", CSV)
def test_csv_names_line_and_value(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=CSV[content]):
        load("csv", tmp_path)


def test_csv_files_must_agree(tmp_path):
    (tmp_path / "train.csv").write_text("a,label\n1,x\n2,y\n")
    for content, words in (
        ("a,label\n1,x\n2,z\n", r"unknown label 'z' in line 3 of .*test.csv'"),
        ("b,label\n1,x\n", "has the columns b, and .* a\n"),
    ):
        (tmp_path / "test.csv").write_text(content)
        with pytest.raises(InputError, match=words):
            load("csv", tmp_path)


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9))
def test_numbers_name_classes_as_whole_numbers(number):
    assert class_name(number) == class_name(float(number)) == class_name(f" {number}.0 ") == str(number)


def test_classes_are_in_the_order_of_numbers_or_of_text():
    assert in_order(["10", "9", "2", "9"]) == ("2", "9", "10")
    assert in_order(["b", "10", "a"]) == ("10", "a", "b")


# JSON lines


def write_lines(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")


def test_jsonl_reads_numbers(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    records = [{"input": v.tolist(), "label": "ab"[i % 2]} for i, v in enumerate(values)]
    write_lines(tmp_path / "train.jsonl", records)
    write_lines(tmp_path / "val.jsonl", records[:4])
    made = load("jsonl", tmp_path)
    assert (made.classes, made.input_shape, made.validation) == (("a", "b"), (2, 3), None)
    np.testing.assert_array_equal(rows_of(made.train)["input"], values)
    np.testing.assert_array_equal(rows_of(made.test)["label"], [0, 1, 0, 1])


def test_jsonl_reads_texts_as_bytes(tmp_path):
    texts = ["gut", "sehr schön", "", "schlecht"] * 5
    write_lines(tmp_path / "a.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(texts)])
    made = load("jsonl:8", tmp_path)
    assert (made.input_shape, made.classes, len(made.train), len(made.test)) == ((8,), ("0", "1"), 16, 4)
    found = []
    for row in (part[i] for part in (made.train, made.test) for i in range(len(part))):
        assert (row["input"].dtype, row["mask"].dtype) == (np.int32, np.bool_)
        assert not row["input"][~row["mask"]].any()
        found.append(bytes(row["input"][row["mask"]].tolist()))
    assert sorted(found) == sorted(text.encode()[:8] for text in texts)


def test_jsonl_reads_images_beside_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    (tmp_path / "deep").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "deep" / f"{i}.png")
    records = [{"image": f"deep/{i}.png", "label": i % 3} for i in range(6)]
    write_lines(tmp_path / "train.jsonl", records)
    write_lines(tmp_path / "test.jsonl", records[:3])
    made = load("jsonl", tmp_path)
    np.testing.assert_array_equal(rows_of(made.train)["input"], pixels)
    assert load("jsonl", tmp_path, image_size=3).input_shape == (3, 3, 3)
    (tmp_path / "deep" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1.png' cannot be read"):
        load("jsonl", tmp_path)
    made = load("jsonl", tmp_path, on_bad_image="skip")
    assert rows_of(made.train)["weight"].tolist() == [1, 0, 1, 1, 1, 1]
    assert made.bad == (str(tmp_path / "deep" / "1.png"),) * 2


GOOD = '{"input": [1, 2], "label": "a"}\n'
JSONL = {
    "[1]\n": "line 1 of .*: it is a list and not an object\nexpected: one object a line",
    GOOD + "{": "line 2 of .*: Expecting property name",
    GOOD + '{"input": [1], "label": "a"}': r"line 2 of .* has an 'input' of shape \(1,\), and line 1 one of \(2,\)",
    GOOD + '{"text": "b", "label": "a"}': "line 2 of .*: it has 'text', and line 1 has 'input'",
    '{"input": [1, [2]], "label": 0}': "line 1 of .*: setting an array element",
    '{"input": ["1"], "label": 0}': "not made of numbers alone",
    '{"input": [], "label": 0}': "not made of numbers alone",
    '{"input": [true], "label": 0}': "not made of numbers alone",
    '{"input": [NaN], "label": 0}': "NaN is not a finite number",
    '{"input": [1e999], "label": 0}': "float32 cannot hold",
    '{"input": [1e39], "label": 0}': "float32 cannot hold",
    '{"input": [1]}': "it has no 'label'",
    '{"input": [1], "label": null}': "its 'label' is null",
    '{"input": [1], "label": true}': "its 'label' is true",
    '{"input": [1], "label": 0.5}': "the label '0.5' is not a class",
    '{"input": [1], "label": 1, "label": 2}': "it has 'label' twice",
    '{"input": [1], "text": "a", "label": 1}': "it has 'input' and 'text' of",
    '{"label": 1}': "it has none of 'input', 'text', 'image'",
    '{"text": 1, "label": 1}': "its 'text' is not a text",
    "[" * 100_000: "line 1 of .*: maximum recursion depth",
    "\n": "has no lines",
    '{"image": "../a.png", "label": 1}': r"line 1 of .* names the image '../a.png', which leaves its directory",
    '{"image": "b/../../a.png", "label": 1}': "which leaves its directory",
    '{"image": "/etc/a.png", "label": 1}': "which leaves its directory",
    '{"image": "link.png", "label": 1}': r"link.png' leads to .*a.png', outside the data directory",
    '{"image": "a.png", "label": 1}': "none of the 1 training images can be read",
}


@pytest.mark.parametrize("content", JSONL, ids=range(len(JSONL)))
def test_jsonl_names_line_and_fault(tmp_path, content):
    (tmp_path / "data").mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "data" / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=JSONL[content]):
        load("jsonl", tmp_path / "data")


def test_jsonl_files_must_agree(tmp_path):
    (tmp_path / "train.jsonl").write_text(GOOD)
    (tmp_path / "test.jsonl").write_text('{"text": "b", "label": "a"}')
    with pytest.raises(InputError, match=r"test.jsonl' has 'text' and .*train.jsonl' 'input'"):
        load("jsonl", tmp_path)


# idx


def idx_bytes(array, kind=0x08):
    return struct.pack(">BBBB", 0, 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(place, examples=10, names=("train", "t10k"), prefix="", suffix="", seed=0):
    place.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in names:
        random = np.random.default_rng(seed + len(name))
        images, labels = random.integers(0, 256, (examples, 4, 3), np.uint8), np.arange(examples, dtype=np.uint8) % 3
        for kind, array, rank in (("images", images, 3), ("labels", labels, 1)):
            content = idx_bytes(array)
            path = place / f"{prefix}{name}-{kind}-idx{rank}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
        written[name] = images, labels
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("prefix", "inside"), [("", ""), ("emnist-letters-", ""), ("", "raw")])
def test_idx_reads_mnists_files(tmp_path, prefix, inside, suffix):
    written = write_idx(tmp_path / inside, names=("train", "t10k", "val"), prefix=prefix, suffix=suffix)
    made = load("idx", tmp_path)
    assert (made.classes, made.input_shape) == (("0", "1", "2"), (4, 3, 1))
    for source, name in ((made.train, "train"), (made.test, "t10k"), (made.validation, "val")):
        rows = rows_of(source)
        np.testing.assert_array_equal(rows["input"][..., 0], written[name][0])
        np.testing.assert_array_equal(rows["label"], written[name][1])


def test_idx_prefers_what_is_unpacked_and_splits_what_is_whole(tmp_path):
    written = write_idx(tmp_path, 15, names=("train",))
    write_idx(tmp_path, 15, names=("train",), suffix=".gz", seed=7)
    for place in (tmp_path, tmp_path / "train-images-idx3-ubyte"):
        made = load("idx", place, seed=1)
        assert [np.bincount(rows_of(part)["label"]).tolist() for part in (made.train, made.test)] == [[4] * 3, [1] * 3]
        found = np.concatenate([rows_of(part)["input"] for part in (made.train, made.test)])[..., 0].reshape(15, -1)
        whole = written["train"][0].reshape(15, -1)
        np.testing.assert_array_equal(found[np.lexsort(found.T)], whole[np.lexsort(whole.T)])


@pytest.mark.parametrize(("kind", "dtype"), [(0x08, ">u1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_reads_every_type(tmp_path, kind, dtype):
    write_idx(tmp_path, 6)
    values = np.linspace(0, 200, 72).reshape(6, 4, 3).astype(dtype)
    if values.dtype.kind == "f":
        values = values / 200
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(values.astype(dtype), kind))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(values.astype(dtype), kind))
    rows = rows_of(load("idx", tmp_path).train)["input"][..., 0]
    np.testing.assert_allclose(rows, values, rtol=1e-7)
    assert rows.dtype == (np.float32 if values.dtype.kind == "f" else np.uint8)


IMAGES = idx_bytes(np.zeros((10, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (IMAGES[:-1], r"has 135 bytes, its header \[10, 4, 3\] asks for 136: it is cut short"),
        (IMAGES + b"x", "it is too long"),
        (IMAGES[:9], r"has 9 bytes, its header .* it is cut short"),
        (b"", "begins with nothing"),
        (b"\x89PNG" + IMAGES, "begins with 89 50 4e 47, which no idx file does"),
        (b"\0\0\x07\x03" + IMAGES[4:], "begins with 00 00 07 03"),
        (b"\0\0\x08\x00", "begins with 00 00 08 00"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"x", r"asks for 79,228,162,4.*: it is cut short"),
        (idx_bytes(np.zeros((9, 4, 3), np.uint8)), "different numbers of examples"),
        (idx_bytes(np.zeros((10, 4, 3, 2, 2), np.uint8)), "not a set of images"),
        (idx_bytes(np.full((10, 4, 3), 300, ">i2"), 0x0B), r"integers 300..300, outside 0..255"),
    ],
)
def test_idx_names_files_that_are_none(tmp_path, content, words):
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=words):
        load("idx", tmp_path)


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ("t10k-labels-idx1-ubyte", "has no test labels"),
        ("train-images-idx3-ubyte", "has no train images"),
        ("train-*", "no idx data in"),
    ],
)
def test_idx_names_what_is_missing(tmp_path, without, words):
    write_idx(tmp_path)
    for path in tmp_path.glob(without):
        path.unlink()
    with pytest.raises(InputError, match=words):
        load("idx", tmp_path)


def test_idx_leaves_no_choice_open(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(InputError, match="not a file of images with its labels beside it"):
        load("idx", tmp_path / "t10k-labels-idx1-ubyte")
    write_idx(tmp_path, prefix="fashion-")
    with pytest.raises(InputError, match="are both test images\nkeep one data set"):
        load("idx", tmp_path)


def test_idx_packed_and_cut_is_named(tmp_path):
    write_idx(tmp_path, suffix=".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz' cannot be read"):
        load("idx", tmp_path)
