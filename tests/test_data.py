"""Sources, gathering, statistics, fingerprints, checks and the catalog."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.data import Arrays, Dataset, as_source, check, fingerprint, gather, load, mapped, mapping, statistics
from lepton_jax.data import sources as sources_module
from lepton_jax.data.sources import decoded
from lepton_jax.errors import InputError


class Lazy:
    """A user's own source: nothing but length and item."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return {"input": self.inputs[i], "label": self.labels[i]}


def images(examples, seed=0, shape=(4, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, (examples, *shape), np.uint8)


def dataset(train=None, test=None, classes=3, shape=(4, 5, 3)):
    train = Arrays({"input": images(9), "label": np.arange(9) % classes}) if train is None else train
    test = Arrays({"input": images(4), "label": np.zeros(4, int)}) if test is None else test
    return Dataset("made", train, test, tuple("abcdefghij"[:classes]), shape)


def test_gather_is_the_same_for_every_kind_of_source():
    inputs, labels = images(7), np.arange(7)
    wanted = np.array([5, 0, 0, 3])
    items = [{"input": inputs[i], "label": int(i)} for i in range(7)]
    kinds = [Arrays({"input": inputs, "label": labels}), Lazy(inputs, labels), items]
    for source in map(as_source, kinds):
        batch = gather(source, wanted)
        np.testing.assert_array_equal(batch["input"], inputs[wanted])
        np.testing.assert_array_equal(batch["label"], wanted)
        assert batch["input"].dtype == np.uint8
        assert batch["label"].dtype == np.int32


def test_as_source_takes_the_usual_forms():
    inputs, labels = images(6), np.arange(6)
    forms = [
        (inputs, labels),
        (inputs, labels[:, None]),
        {"input": inputs, "label": labels},
        (jnp.array(inputs), labels),
    ]
    for form in forms:
        source = as_source(form)
        assert len(source) == 6
        np.testing.assert_array_equal(gather(source, range(6))["label"], labels)
    assert set(as_source(inputs)[0]) == {"input"}
    made = as_source({"input": np.zeros((2, 3)), "label": [True, False], "weight": [1, 0]})
    assert {name: column.dtype for name, column in gather(made, [0, 1]).items()} == {
        "input": np.float32,
        "label": np.int32,
        "weight": np.float32,
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "int is not a source"),
        ("text", "str is not a source"),
        ([1, 2], "list is not a source"),
        ({"image": np.zeros(3)}, "no column 'input'"),
        ({"input": np.zeros((3, 2)), "label": np.zeros(4, int)}, "input 3, label 4"),
        ({"input": np.zeros((1, 2)), "label": ["cat"]}, "'label' holds values of type <U3"),
        ({"input": np.array([None, {}])}, "type object"),
        ({"input": np.zeros((1, 2)), "label": np.array([2**40])}, "beyond 32 bits"),
        ({"input": np.float32(1)}, "single value"),
    ],
)
def test_data_that_is_no_source_is_refused(data, words):
    with pytest.raises(InputError, match=words):
        as_source(data)


def test_examples_of_different_shapes_are_named():
    source = Lazy([np.zeros((2, 2)), np.zeros((2, 3))], [0, 1])
    with pytest.raises(InputError, match=r"example 1 has shape \(2, 3\).*example 0 has shape \(2, 2\)"):
        gather(source, [0, 1])
    with pytest.raises(InputError, match="example 1 has shape"):
        decoded(source)
    with pytest.raises(InputError, match="example 1 has no such column for 'label'"):
        gather([{"input": np.zeros(2), "label": 0}, {"input": np.zeros(2)}], [0, 1])


def test_decoded_holds_small_sets_in_memory_and_leaves_large_ones(monkeypatch):
    source = Lazy(images(150), np.arange(150))
    held = decoded(source)
    assert isinstance(held, Arrays)
    np.testing.assert_array_equal(held.columns["input"], source.inputs)
    np.testing.assert_array_equal(held.columns["label"], source.labels)
    monkeypatch.setattr(sources_module, "IN_MEMORY_BYTES", 150 * 60)  # the labels no longer fit
    assert decoded(source) is source


def test_statistics_are_numpys():
    pixels = images(300)
    scaled = pixels / 255
    for source in (as_source(pixels), Lazy(pixels, np.zeros(300, int))):
        mean, deviation = statistics(source)
        np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(deviation, scaled.std((0, 1, 2)), rtol=1e-6)
    features = np.random.default_rng(1).normal(1000, [1, 2], (700, 2)).astype(np.float32)
    mean, deviation = statistics(as_source(features))
    np.testing.assert_allclose(deviation, features.astype(np.float64).std(0), rtol=1e-5)
    spread = np.linspace(0, 699, 10).astype(int)
    np.testing.assert_allclose(statistics(as_source(features), 10)[0], features[spread].mean(0), rtol=1e-6)


def test_statistics_of_a_constant_channel_can_be_divided_by():
    pixels = images(20)
    pixels[..., 1] = 77
    mean, deviation = statistics(as_source(pixels))
    assert deviation[1] == 1
    np.testing.assert_allclose(mean[1], 77 / 255, rtol=1e-6)


def test_statistics_leave_out_what_has_no_weight():
    pixels = images(20)
    weight = np.arange(20) % 2
    weighted = Arrays({"input": pixels, "weight": weight})
    np.testing.assert_allclose(statistics(weighted), statistics(as_source(pixels[1::2])), rtol=1e-6)
    with pytest.raises(InputError, match="no example"):
        statistics(Arrays({"input": pixels, "weight": np.zeros(20)}))


def test_fingerprint_notices_other_data_and_not_another_reader():
    inputs, labels = images(40), np.arange(40)
    base = fingerprint(as_source((inputs, labels)))
    assert base == fingerprint(Lazy(inputs, labels))
    digest = hashlib.sha256(b"40")
    rows = np.linspace(0, 39, 16).astype(np.int64)
    for name, column in (("input", inputs[rows]), ("label", labels[rows].astype(np.int32))):
        digest.update(f"{name} {column.shape} {column.dtype.str}".encode() + column.tobytes())
    assert base == digest.hexdigest()[:16]
    others = [
        (inputs[:-1], labels[:-1]),
        (inputs[::-1], labels),
        (inputs, labels + 1),
        (inputs / 255, labels),
        (inputs.reshape(40, 5, 4, 3), labels),
    ]
    assert base not in {fingerprint(as_source(other)) for other in others}


def test_good_data_passes_the_checks():
    made = dataset()
    assert check(made) is made
    lazy = dataset(train=Lazy(images(2000), np.arange(2000) % 3))
    assert check(lazy) is lazy
    assert list(made.splits) == ["train", "test"]
    assert list(made._replace(validation=made.test).splits) == ["train", "test", "validation"]


def inputs_with(value, index):
    inputs = np.zeros((5000, 2, 2, 1), np.float32)
    inputs[index, 1, 0, 0] = value
    return Arrays({"input": inputs, "label": np.zeros(5000, int)})


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            dataset(test=Arrays({"input": images(2), "label": np.array([0, 3])})),
            "test label at index 1 is 3, outside 0..2",
        ),
        (dataset(train=Arrays({"input": images(2), "label": np.array([-1, 0])})), "train label at index 0 is -1"),
        (dataset(train=Arrays({"input": images(2), "label": np.zeros(2, np.float32)})), "train labels are float32"),
        (
            dataset(train=Arrays({"input": images(2), "label": np.zeros((2, 3), int)})),
            "train labels are int32 of shape",
        ),
        (dataset(test=Arrays({"input": images(2)})), "test split has no labels"),
        (
            dataset(test=as_source((images(2, shape=(4, 4, 3)), np.zeros(2, int)))),
            r"test inputs have shape \(4, 4, 3\)",
        ),
        (
            dataset(test=as_source((images(2) / 255, np.zeros(2, int)))),
            "test inputs are float32 and train inputs are uint8",
        ),
        (dataset(train=as_source((images(0), np.zeros(0, int)))), "train split has no examples"),
        (dataset(train=inputs_with(np.nan, 4321), shape=(2, 2, 1)), "train input at index 4321 has the value nan"),
        (dataset(train=inputs_with(-np.inf, 17), shape=(2, 2, 1)), "train input at index 17 has the value -inf"),
        (dataset(train=Lazy(images(3), [0, 1, 9])), "train label at index 2 is 9"),
    ],
)
def test_bad_data_is_refused_by_split_index_and_value(made, words):
    with pytest.raises(InputError, match=words):
        check(made)


def test_digits_are_scikit_learns_split_evenly():
    from sklearn.datasets import load_digits

    made = load("digits", seed=3)
    assert (len(made.train), len(made.test), made.input_shape) == (1437, 360, (8, 8, 1))
    both = [gather(source, range(len(source))) for source in (made.train, made.test)]
    pixels = np.concatenate([part["input"] for part in both])
    labels = np.concatenate([part["label"] for part in both])
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    truth, truth_labels = load_digits(return_X_y=True)
    ours = np.column_stack([np.round(pixels.reshape(-1, 64) / 255 * 16), labels])
    theirs = np.column_stack([truth, truth_labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    share = np.bincount(both[1]["label"]) / np.bincount(labels)
    np.testing.assert_allclose(share, 0.2, atol=0.01)


def test_digits_are_split_by_the_seed_alone():
    first, again, other = (load("digits", seed=seed) for seed in (0, 0, 1))
    assert fingerprint(first.test) == fingerprint(again.test) != fingerprint(other.test)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "cifar"}, "unknown data set 'cifar'\ndid you mean 'cifar10'"),
        ({"name": "digits:3"}, "unknown data set"),
        ({"name": "folder"}, "'folder' reads files, and no directory is given\npass --data-dir"),
        ({"name": "cifar10"}, "no directory is given"),
        ({"name": "npz"}, "no directory is given"),
        ({"name": "tfds:mnist"}, "'tfds:mnist' reads files, and no directory is given"),
        (
            {"name": "folder", "directory": "not/there"},
            "data directory 'not/there' does not exist\nexpected there: train/CLASS",
        ),
        ({"name": "digits", "image_size": 32}, "fixed size"),
        ({"name": "folder", "image_size": 0}, "image size 0 is below 1"),
        ({"name": "folder", "on_bad_image": "ignore"}, "unknown choice for bad images 'ignore'"),
    ],
)
def test_load_refuses(arguments, words):
    with pytest.raises(InputError, match=words):
        load(**arguments)


@pytest.mark.parametrize("name", ["cifar10", "folder", "npz", "tfds:mnist"])
def test_an_empty_directory_is_named_as_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="'here' is empty\nexpected there: "):
        load(name, "here")
    (tmp_path / "here" / "notes.txt").write_text("nothing of use")
    with pytest.raises(InputError, match="'here'"):
        load(name, "here")


@pytest.mark.parametrize("examples", [1, 256, 300])
def test_what_is_mapped_is_the_function_of_every_input(examples, monkeypatch):
    inputs = images(examples)
    source = Lazy(inputs, np.arange(examples))
    found = mapped(source, lambda x: jnp.sum(x, axis=(1, 2)) / 2)
    assert found is not None
    assert len(found) == examples
    np.testing.assert_array_equal(found.columns["input"], inputs.sum((1, 2), np.int64) / 2)
    np.testing.assert_array_equal(found.labels, np.arange(examples))
    monkeypatch.setattr(mapping, "IN_MEMORY_BYTES", 12 * examples - 1)
    assert mapped(source, lambda x: jnp.sum(x, axis=(1, 2)) / 2) is None
