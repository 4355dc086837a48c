"""Text as integers of static shapes: a whole file in windows, or one document per line.

Tokens are UTF-8 bytes unless a tokenizer is given. Each example is for predicting the next token: "input" (int32
[length]), "label" (int32 [length], the tokens that follow), and "mask" (bool [length], false where the text has
ended; input and label are 0 there).
"""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from lepton_jax.data import packed
from lepton_jax.data.paths import existing, split_files, title
from lepton_jax.data.sources import Dataset, Source
from lepton_jax.data.splits import TRAIN_AND_TEST, split
from lepton_jax.errors import InputError

LAYOUT = "train.txt and test.txt, or one .txt file, which is then split by the seed"
LENGTH = 128  # tokens
BYTES = 256

Tokenizer = Callable[[str], Sequence[int]]


class Tokens:
    """Stretches of one long row of token ids as a source; reading pads them to `length`.

    Example i begins at `starts[i]` and has its last label before `ends[i]`.
    """

    in_memory = True

    def __init__(self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, length: int):
        self.ids, self.starts, self.ends, self.length = ids, starts, ends, length

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[0] for name, column in self.gather(np.array([i])).items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, in that order."""
        ids, inside = padded(self.ids, self.starts[indices], self.ends[indices], self.length + 1)
        mask = inside[:, 1:]
        return {"input": ids[:, :-1] * mask, "label": ids[:, 1:], "mask": mask}


def padded(
    ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, length: int
) -> tuple[Int[np.ndarray, "examples length"], Bool[np.ndarray, "examples length"]]:
    """The first `length` ids of each stretch, int32, and where they are; 0 elsewhere."""
    positions = starts[:, None] + np.arange(length)
    inside = positions < ends[:, None]
    return ids[np.minimum(positions, len(ids) - 1)].astype(np.int32) * inside, inside


def windows(ids: np.ndarray, length: int) -> Tokens:
    """Token ids [tokens] in windows of `length`, so that each but the first is a label once; the last may be padded."""
    starts = np.arange(0, max(0, len(ids) - 1), length)
    return Tokens(ids, starts, np.minimum(starts + length + 1, len(ids)), length)


def documents(pieces: Sequence[np.ndarray], length: int) -> Tokens:
    """Documents as token ids, an example each, cut after `length` + 1; those under two tokens are left out."""
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    ends = np.cumsum(sizes)
    kept = sizes > 1
    return Tokens(np.concatenate([np.zeros(0, np.uint8), *pieces]), (ends - sizes)[kept], ends[kept], length)


def text(
    directory: str | os.PathLike[str] | None,
    length: int = LENGTH,
    tokenizer: Tokenizer | None = None,
    vocabulary: int = BYTES,
    seed: int = 0,
) -> Dataset:
    """Text files in windows of `length` tokens, for language models; the classes are the `vocabulary` ids.

    `tokenizer` turns text into ids 0..vocabulary-1. Raises InputError for files that are missing, too short or not
    UTF-8, and for ids outside the vocabulary.
    """
    return _dataset("text", directory, lambda path: windows(_ids(path, tokenizer), length), length, vocabulary, seed)


def lines(
    directory: str | os.PathLike[str] | None,
    length: int = LENGTH,
    tokenizer: Tokenizer | None = None,
    vocabulary: int = BYTES,
    seed: int = 0,
) -> Dataset:
    """Text files with one document per line, cut or padded to `length` tokens; otherwise as `text`.

    A line keeps its end, the byte 10, by which a model can tell that a document is over.
    """

    def read(path: Path) -> Tokens:
        return documents([encoded(line, tokenizer) for line in io.StringIO(packed.text(path))], length)

    return _dataset("lines", directory, read, length, vocabulary, seed)


def encoded(content: str, tokenizer: Tokenizer | None = None) -> Integer[np.ndarray, " tokens"]:
    """The token ids of a text: its UTF-8 bytes (uint8), or what `tokenizer` gives (int32).

    Raises InputError where that is not a row of integers.
    """
    if tokenizer is None:
        return np.frombuffer(content.encode(), np.uint8)
    ids = np.asarray(tokenizer(content))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        problem = f"the tokenizer gave {ids.dtype} of shape {ids.shape} for a text"
        raise InputError(problem, "give a function from text to a row of integers")
    return ids.astype(np.int32)


def length_of(name: str, given: str) -> int:
    """The length in a data set's name, as in text:256. Raises InputError for what is not a length."""
    if not given:
        return LENGTH
    if not (given.isascii() and given.isdigit()) or not 0 < int(given) < 2**20:
        raise InputError(f"{given!r} in {name + ':' + given!r} is not a length in tokens", f"as in {name}:{LENGTH}")
    return int(given)


def _ids(path: Path, tokenizer: Tokenizer | None) -> np.ndarray:
    return encoded(packed.text(path), tokenizer)


def _dataset(
    name: str,
    directory: str | os.PathLike[str] | None,
    read: Callable[[Path], Tokens],
    length: int,
    vocabulary: int,
    seed: int,
) -> Dataset:
    root = existing(name, directory, LAYOUT)
    files = split_files(name, root, (".txt",), LAYOUT)
    found: dict[str, Source] = {}
    for part, path in files.items():
        source = read(path)
        if not len(source):
            raise InputError(f"{str(path)!r} has fewer than two tokens to learn from", f"expected: {LAYOUT}")
        if source.ids.min() < 0 or source.ids.max() >= vocabulary:
            problem = f"{str(path)!r} has token ids {source.ids.min()}..{source.ids.max()}, outside 0..{vocabulary - 1}"
            raise InputError(problem, "give the tokenizer's own vocabulary size")
        found[part] = source
    if "all" in found:
        found["train"], found["test"] = split(found["all"], TRAIN_AND_TEST, seed, stratify=False)
    classes = tuple(map(str, range(vocabulary)))
    return Dataset(title(root), found["train"], found["test"], classes, (length,), found.get("validation"))
