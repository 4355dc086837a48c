"""Text as windows and as documents: every token once, static shapes, files that are wrong."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.data import Stream, fingerprint, gather, load
from lepton_jax.data.sources import in_memory
from lepton_jax.data.text import documents, encoded, lines, text, windows
from lepton_jax.errors import InputError


def rows_of(source):
    return gather(source, np.arange(len(source)))


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(2, 60), length=st.integers(1, 20))
def test_windows_have_every_token_as_a_label_once(tokens, length):
    ids = np.arange(100, 100 + tokens).astype(np.uint8)
    rows = rows_of(windows(ids, length))
    assert rows["input"].shape == rows["label"].shape == rows["mask"].shape == (-(-(tokens - 1) // length), length)
    np.testing.assert_array_equal(rows["label"][rows["mask"]], ids[1:])
    np.testing.assert_array_equal(rows["input"][rows["mask"]], ids[:-1])
    assert not rows["input"][~rows["mask"]].any()
    assert not rows["label"][~rows["mask"]].any()
    assert [rows[name].dtype for name in ("input", "label", "mask")] == [np.int32, np.int32, np.bool_]


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(st.lists(st.integers(1, 255), max_size=9), min_size=1, max_size=6), length=st.integers(1, 7))
def test_documents_are_padded_and_cut_one_by_one(pieces, length):
    source = documents([np.array(piece, np.uint8) for piece in pieces], length)
    kept = [piece for piece in pieces if len(piece) > 1]
    assert len(source) == len(kept)
    for i, piece in enumerate(kept):
        row, cut = source[i], piece[: length + 1]
        np.testing.assert_array_equal(row["mask"], np.arange(length) < len(cut) - 1)
        np.testing.assert_array_equal(row["input"][row["mask"]], cut[:-1])
        np.testing.assert_array_equal(row["label"][row["mask"]], cut[1:])


POEM = "Wer reitet so spät\ndurch Nacht und Wind?\n\nEs ist der Vater\n"


def test_text_is_the_bytes_of_its_files(tmp_path):
    (tmp_path / "train.txt").write_text(POEM * 10, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(POEM, encoding="utf-8")
    (tmp_path / "test.txt.gz").write_bytes(gzip.compress(POEM.encode()))
    made = load("text:16", tmp_path)
    assert (made.name, made.input_shape, len(made.classes)) == (tmp_path.name, (16,), 256)
    assert made.validation is not None
    for source, content in ((made.train, POEM * 10), (made.test, POEM), (made.validation, POEM)):
        rows = rows_of(source)
        assert bytes(rows["label"][rows["mask"]].tolist()) == content.encode()[1:]
        assert in_memory(source)
    batch = Stream(made.train, 4, seed=0).batch(0)
    assert {name: column.shape for name, column in batch.items()} == {
        "input": (4, 16),
        "label": (4, 16),
        "mask": (4, 16),
        "index": (4,),
    }


def test_lines_are_documents_that_end(tmp_path):
    (tmp_path / "a.txt").write_text(POEM * 5, encoding="utf-8")
    made = load("lines:40", tmp_path / "a.txt", seed=1)
    assert (made.name, made.input_shape) == ("a", (40,))
    texts = [
        bytes([row["input"][0], *row["label"][row["mask"]]]).decode()
        for source in (made.train, made.test)
        for row in (source[i] for i in range(len(source)))
    ]
    assert sorted(texts) == sorted(line for line in (POEM * 5).splitlines(keepends=True) if line != "\n")
    assert (len(made.train), len(made.test)) == (12, 3)


def test_the_seed_alone_splits_a_file(tmp_path):
    (tmp_path / "a.txt").write_text(POEM * 20, encoding="utf-8")
    first, again, other = (load("text:8", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert fingerprint(first.test) == fingerprint(again.test) != fingerprint(other.test)


def test_a_tokenizer_may_be_given(tmp_path):
    words = sorted(set(POEM.split()))

    def tokenize(content):
        return [words.index(word) for word in content.split()]

    (tmp_path / "train.txt").write_text(POEM, encoding="utf-8")
    (tmp_path / "test.txt").write_text(POEM, encoding="utf-8")
    rows = rows_of(text(tmp_path, 5, tokenize, len(words)).train)
    np.testing.assert_array_equal(rows["label"][rows["mask"]], tokenize(POEM)[1:])
    made = lines(tmp_path, 5, tokenize, len(words))
    assert len(made.classes) == len(words)
    first = made.train[0]
    assert [words[i] for i in first["label"][first["mask"]]] == ["reitet", "so", "spät"]
    with pytest.raises(InputError, match=rf"has token ids 0\.\.{len(words) - 1}, outside 0\.\.2"):
        text(tmp_path, 5, tokenize, 3)
    with pytest.raises(InputError, match=r"gave <U\d+ of shape \(1, 12\) for a text\n.*row of integers"):
        text(tmp_path, 5, lambda content: [content.split()], 3)


def test_bytes_are_ids():
    np.testing.assert_array_equal(encoded("aä"), [97, 195, 164])


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("text", {"a.txt": b"x"}, "a.txt' has fewer than two tokens"),
        ("lines", {"a.txt": b"x\n\n"}, "a part of 0.2 of 1 examples is empty"),
        ("text", {"a.txt": b"one\n\xff\xfe"}, r"line 2 of .*a.txt' is not UTF-8"),
        ("text", {"a.md": b"text"}, "no text data in"),
        ("text", {"a.txt": b"text", "b.txt": b"text"}, r"holds 2 files of text data.*\n.*train.txt and test.txt"),
        ("text", {"train.txt": b"text", "train.txt.gz": b""}, "are both train data"),
        ("text", {"a.txt.gz": gzip.compress(b"text" * 99)[:-9]}, r"a.txt.gz' cannot be read"),
        ("text", {"a.txt.gz": b"text"}, r"a.txt.gz' cannot be read"),
        ("text:0", {"a.txt": b"text"}, r"'0' in 'text:0' is not a length"),
        ("lines:many", {"a.txt": b"text"}, r"'many' in 'lines:many' is not a length"),
    ],
)
def test_files_that_are_wrong(tmp_path, name, files, words):
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=words):
        load(name, tmp_path)
