"""The laws of the training stream, and evaluation in order with padding."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.data import Arrays, Stream, evaluation_batches
from lepton_jax.data.stream import permutation
from lepton_jax.errors import InputError

sizes = st.integers(1, 23)
seeds = st.integers(0, 2**64 - 1)


def numbered(examples):
    return Arrays({"input": np.arange(examples, dtype=np.float32)[:, None] * 10, "label": np.arange(examples) % 3})


def philox(key, counter):
    """Philox 4x64-10 in plain integers, as Salmon et al. 2011 give it."""
    mask, (a, b) = 2**64 - 1, key
    x = list(counter)
    for _ in range(10):
        p, q = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [(q >> 64) ^ x[1] ^ a, q & mask, (p >> 64) ^ x[3] ^ b, p & mask]
        a, b = (a + 0x9E3779B97F4A7C15) & mask, (b + 0xBB67AE8584CAA73B) & mask
    return x


@pytest.mark.parametrize(("examples", "seed", "epoch"), [(1, 0, 0), (10, 7, 2), (13, 2**64 - 1, 5)])
def test_the_order_is_the_published_generators(examples, seed, epoch):
    numbers = [n for block in range(1, 5) for n in philox((seed, epoch), (block, 0, 0, 0))][:examples]
    order = permutation(examples, seed, epoch)
    np.testing.assert_array_equal(order, sorted(range(examples), key=numbers.__getitem__))
    assert order.dtype == np.int32


@settings(max_examples=40, deadline=None)
@given(examples=sizes, batch_size=sizes, seed=seeds)
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(examples, batch_size, seed):
    stream = Stream(numbered(examples), batch_size, seed)
    seen = np.concatenate([stream.indices(step) for step in range(stream.steps(3))])
    assert 3 * examples <= len(seen) < 3 * examples + batch_size
    for epoch in range(3):
        mine = seen[epoch * examples : (epoch + 1) * examples]
        np.testing.assert_array_equal(np.sort(mine), np.arange(examples))
        np.testing.assert_array_equal(mine, permutation(examples, seed, epoch))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_favors_no_place():
    """Every example comes first about equally often: chi-squared with 9 degrees of freedom, 99.9 % point 27.9."""
    first = np.bincount([permutation(10, seed, 0)[0] for seed in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


@settings(max_examples=25, deadline=None)
@given(examples=sizes, batch_size=sizes, seed=seeds, start=st.integers(0, 40), threads=st.integers(0, 3))
def test_batches_from_any_step_on_any_threads_are_the_batches(examples, batch_size, seed, start, threads):
    fresh = Stream(numbered(examples), batch_size, seed)
    read = list(Stream(numbered(examples), batch_size, seed, threads=threads).batches(start, start + 6))
    assert len(read) == 6
    for step, batch in reversed(list(enumerate(read, start))):  # asked for in another order, too
        wanted = fresh.batch(step)
        assert set(batch) == {"input", "label", "index"}
        for name in wanted:
            np.testing.assert_array_equal(batch[name], wanted[name])
            assert batch[name].dtype == wanted[name].dtype


def test_a_batch_holds_the_rows_that_its_index_names():
    stream = Stream(numbered(10), 4, seed=1)
    batch = stream.batch(2)  # crosses into the second epoch
    expected = np.concatenate([permutation(10, 1, 0)[8:], permutation(10, 1, 1)[:2]])
    np.testing.assert_array_equal(batch["index"], expected)
    np.testing.assert_array_equal(batch["input"][:, 0], expected * 10)
    np.testing.assert_array_equal(batch["label"], expected % 3)
    assert batch["index"].dtype == np.int32


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_processes_rows_together_are_the_batch(processes):
    whole = Stream(numbered(11), 8, seed=5).batch(3)
    parts = [Stream(numbered(11), 8, seed=5, shard=(p, processes)).batch(3) for p in range(processes)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_steps_are_rounded_up_once():
    stream = Stream(numbered(10), 4, seed=0)
    assert stream.steps_per_epoch == 3
    assert stream.steps(2) == 5
    assert [stream.steps(epochs) for epochs in (0, 0.1, 0.4, 0.8, 1.2)] == [0, 1, 1, 2, 3]
    assert Stream(numbered(3), 8, seed=0).steps_per_epoch == 1


class Slow:
    """A source that notes how many threads read it, and fails at one place."""

    def __init__(self, bad=None):
        self.bad, self.reads, self.threads = bad, 0, set()

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if i == self.bad:
            raise InputError("example 9 is broken", "repair it")
        self.reads += 1
        self.threads.add(threading.get_ident())
        time.sleep(0.001)
        return {"input": np.full(2, i), "label": 0}


def test_an_error_comes_through_where_its_batch_would_have_come():
    batches = Stream(Slow(bad=permutation(64, 0, 0)[21]), 4, seed=0, threads=2).batches(0, 16)
    assert len([next(batches) for _ in range(5)]) == 5
    with pytest.raises(InputError, match="example 9 is broken"):
        next(batches)


def test_closing_early_stops_the_reading():
    source = Slow()
    batches = Stream(source, 2, seed=0, threads=2).batches(0, 10_000)
    next(batches)
    batches.close()
    time.sleep(0.2)
    assert source.reads < 40  # of 20,000, at some thousand a second
    assert threading.get_ident() not in source.threads


def test_no_steps_give_no_batches():
    assert list(Stream(numbered(4), 2, seed=0).batches(3, 3)) == []


@pytest.mark.parametrize("batch_size", [1, 4, 8, 32])
@pytest.mark.parametrize("examples", range(1, 18))
def test_evaluation_sees_every_example_once(examples, batch_size):
    source = numbered(examples)
    batches = list(evaluation_batches(source, batch_size, threads=examples % 3))
    assert len(batches) == -(-examples // batch_size)
    assert {batch["input"].shape for batch in batches} == {(batch_size, 1)}
    assert {(batch["weight"].dtype.name, batch["index"].dtype.name) for batch in batches} == {("float32", "int32")}
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_array_equal(rows["weight"], np.arange(len(rows["weight"])) < examples)
    np.testing.assert_array_equal(rows["index"][:examples], np.arange(examples))
    np.testing.assert_array_equal(rows["input"][:, 0], rows["index"] * 10)
    mean = np.average(rows["input"][:, 0], weights=rows["weight"])
    np.testing.assert_allclose(mean, source.columns["input"].mean(), rtol=1e-6)


def test_evaluation_keeps_the_sources_weights():
    source = Arrays({"input": np.zeros((3, 1)), "weight": [0.5, 0, 2]})
    (batch,) = evaluation_batches(source, 5)
    np.testing.assert_array_equal(batch["weight"], [0.5, 0, 2, 0, 0])


def test_evaluation_by_process():
    whole = list(evaluation_batches(numbered(7), 4))
    parts = [list(evaluation_batches(numbered(7), 4, shard=(p, 2))) for p in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), batch[name])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stream(numbered(0), 2, 0), "no examples"),
        (lambda: Stream(numbered(2), 0, 0), "batch size 0 is below 1"),
        (lambda: Stream(numbered(2), 3, 0, shard=(0, 2)), "batch size 3 is not divisible by the 2 processes"),
        (lambda: Stream(numbered(2), 2, -1), "seed -1"),
        (lambda: evaluation_batches(numbered(0), 2), "no examples"),
        (lambda: evaluation_batches(numbered(2), -4), "batch size -4"),
    ],
)
def test_what_no_batches_can_be_made_of_is_refused_at_once(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step -1 is negative"):
        Stream(numbered(2), 2, 0).batch(-1)
