"""Who holds what, who is asked, who answers: pure functions of the seed, and the stream of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats as scipy_stats

import lepton_jax as lp
from lepton_jax import data, federated
from lepton_jax.federated import chart, partition, sampling

LABELS = np.random.default_rng(0).integers(0, 10, 600).astype(np.int32)

KINDS = {
    "iid": lambda seed: partition.iid(600, 20, seed),
    "dirichlet": lambda seed: partition.dirichlet(LABELS, 20, 0.3, seed),
    "uneven": lambda seed: partition.dirichlet(LABELS, 4, 0.02, seed),
    "shards": lambda seed: partition.shards(LABELS, 20, 2, seed),
    "natural": lambda seed: partition.natural(np.array(list("dbca"))[(np.arange(600) * 7 + seed) % 4]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_has_one_owner(kind):
    parts = KINDS[kind](3)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(600))
    assert all(len(part) and np.all(np.diff(part) > 0) for part in parts)
    assert all(np.array_equal(a, b) for a, b in zip(parts, KINDS[kind](3), strict=True))
    other = KINDS[kind](4)
    assert not all(len(a) == len(b) and np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_partitions_are_as_uneven_as_they_say():
    def classes(parts, labels=LABELS):
        return np.mean(np.count_nonzero(partition.held(parts, labels, 10), axis=1))

    even, uneven, very = (classes(partition.dirichlet(LABELS, 10, c, 0)) for c in (100.0, 1.0, 0.1))
    assert even == 10 > uneven > 9 > very
    assert 3 < very < 7
    assert max(map(len, KINDS["iid"](0))) - min(map(len, KINDS["iid"](0))) <= 1
    assert np.count_nonzero(partition.held(KINDS["shards"](0), LABELS, 10), axis=1).max() <= 4
    sorted_ = np.repeat(np.arange(10), 60)
    assert classes(partition.shards(sorted_, 30, 1, 0), sorted_) == 1


@pytest.mark.parametrize("concentration", [0.01, 0.5, 3.0])
def test_dirichlet_shares_are_dirichlet(concentration):
    """The first of four shares is a beta variate; where it is tiny its logarithm is still right."""
    rng = np.random.default_rng(1)
    shares = np.array([partition._dirichlet(rng.random(4), concentration) for _ in range(4000)])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    expected = scipy_stats.beta(concentration, 3 * concentration)
    assert abs(shares[:, 0].mean() - 0.25) < 0.03
    assert abs(np.mean(shares[:, 0] > 0.5) - expected.sf(0.5)) < 0.03
    assert abs(np.mean(shares[:, 0] > 0.05) - expected.sf(0.05)) < 0.03


def test_cohorts_are_drawn_evenly_and_each_round_anew():
    asked = sampling.fixed_size(50, 10, 7)
    rounds = [asked(round)[0] for round in range(200)]
    assert all(len(set(cohort)) == 10 and np.all(np.diff(cohort) > 0) for cohort in rounds)
    counts = np.bincount(np.concatenate(rounds), minlength=50)
    assert scipy_stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(rounds[3], sampling.fixed_size(50, 10, 7)(3)[0])
    assert not np.array_equal(rounds[3], sampling.fixed_size(50, 10, 8)(3)[0])


def test_poisson_cohorts_have_one_shape_and_binomial_sizes():
    asked = sampling.poisson(100, 10, 3, 16)
    rounds = [asked(round) for round in range(300)]
    assert all(len(clients) == len(there) == 16 for clients, there in rounds)
    assert all(np.array_equal(clients == 100, there == 0) for clients, there in rounds)
    sizes = [int(there.sum()) for _, there in rounds]
    assert abs(np.mean(sizes) - np.mean(np.minimum(scipy_stats.binom(100, 0.1).rvs(9999, random_state=0), 16))) < 0.7
    assert max(sizes) == 16
    roomy, narrow = sampling.poisson(100, 10, 3, 104)(5), sampling.poisson(100, 10, 3, 64)(5)
    np.testing.assert_array_equal(roomy[0][:64], narrow[0])  # rows beyond the last client are as empty as others
    assert not roomy[1][64:].any()
    assert all(len(set(c[t > 0])) == t.sum() for c, t in rounds)


def test_deadline_and_quorum():
    seconds = np.array([1.0, 5.0, np.inf, 2.0])
    np.testing.assert_array_equal(sampling.closed(seconds, np.inf, 0.5), [1, 1, 0, 1])
    np.testing.assert_array_equal(sampling.closed(seconds, 2.0, 0.5), [1, 0, 0, 1])
    np.testing.assert_array_equal(sampling.closed(seconds, 2.0, 0.51), 0)


def test_dropouts_and_stragglers():
    clients, steps = np.arange(2000), np.full(2000, 10)
    seconds = federated.Availability(dropout=0.2, spread=0.5).seconds(0, 1, clients, steps)
    assert abs(np.mean(np.isinf(seconds)) - 0.2) < 0.03
    times = np.log(seconds[np.isfinite(seconds)] / 10)
    assert abs(times.mean()) < 0.05
    assert abs(times.std() - 0.5) < 0.05
    later = federated.Availability(spread=0.5).seconds(0, 2, clients, steps)
    first = federated.Availability(spread=0.5).seconds(0, 1, clients, steps)
    assert abs(np.corrcoef(np.log(first), np.log(later))[0, 1] - 0.5) < 0.06  # a slow client stays rather slow
    late = federated.Availability(deadline=10.0, spread=0.5).participation(0, 1, clients, steps)
    np.testing.assert_array_equal(late, first <= 10.0)


def stream(seed: int = 0, **options) -> federated.Cohorts:
    source = data.Arrays({"input": np.arange(600, dtype=np.float32)[:, None], "label": LABELS})
    parts = partition.dirichlet(LABELS, 20, 0.3, 0)
    return federated.Cohorts(source, parts, sampling.fixed_size(20, 8, seed), 8, 10, 2, seed, **options)


def test_a_cohort_trains_on_its_own_examples_and_on_each_as_often_as_it_should():
    cohorts = stream()
    assert isinstance(cohorts, data.Batches)
    seen = [cohorts.batch(round) for round in range(3)]
    assert len({tuple(batch["input"].shape) for batch in seen}) == 1
    for batch in seen:
        for client, index, weight in zip(batch["client"], batch["index"], batch["weight"], strict=True):
            own = cohorts.partition[client]
            trained = index[weight > 0]
            np.testing.assert_array_equal(np.sort(trained), np.repeat(own, 2))
            np.testing.assert_array_equal(np.sort(trained[: len(own)]), own)  # one epoch after the other
            assert set(index.ravel()) <= set(own)
        np.testing.assert_array_equal(batch["input"][..., 0], batch["index"])
    again = stream().batch(2)
    jax.tree.map(np.testing.assert_array_equal, again, seen[2])


def test_an_epoch_asks_as_many_clients_as_there_are():
    assert stream().steps_per_epoch == 3  # 20 / 8
    assert stream().steps(2) == 5
    assert stream().examples == 20


def test_processes_read_their_parts_of_the_same_rounds():
    whole = stream().batch(1)
    parts = [stream().part(number, 2).batch(1) for number in range(2)]
    jax.tree.map(lambda x, *rows: np.testing.assert_array_equal(np.concatenate(rows), x), whole, *parts)


def test_rounds_are_left_out_by_number():
    left = stream().without([1])
    for step, round in ((0, 0), (1, 2), (2, 3)):
        jax.tree.map(np.testing.assert_array_equal, left.batch(step), stream().batch(round))
    with_threads = list(left.batches(0, 3))
    jax.tree.map(np.testing.assert_array_equal, with_threads[1], left.batch(1))


def test_who_does_not_answer_has_no_weight():
    batch = stream(availability=federated.Availability(dropout=0.5)).batch(0)
    assert 0 < batch["participation"].sum() < 8
    np.testing.assert_array_equal(batch["weight"].any(axis=(1, 2)), batch["participation"] > 0)
    none = stream(availability=federated.Availability(dropout=0.5, quorum=1.0)).batch(0)
    assert not none["weight"].any()
    assert not none["participation"].any()


def test_cohorts_that_are_not_full_train_who_is_there():
    cohorts = stream()
    loose = federated.Cohorts(cohorts.source, cohorts.partition, sampling.poisson(20, 5, 0, 8), 8, 10, 2, 0)
    batch = next(b for b in map(loose.batch, range(50)) if 0 < b["participation"].sum() < 8)
    assert np.all((batch["client"] == 20) == (batch["participation"] == 0))

    # a quorum is of those who were asked, and not of what fills the cohort up
    half = dataclasses.replace(loose, availability=federated.Availability(dropout=0.4, quorum=0.5))
    for round in range(20):
        whole, some = (s.batch(round)["participation"] for s in (loose, half))
        assert some.sum() == 0 or some.sum() >= 0.5 * whole.sum()
        assert np.all(some <= whole)

    def loss(params, stats, batch, key):
        return lp.Mean(jnp.sum(batch["weight"] * params["w"]), jnp.sum(batch["weight"])), lp.Aux(stats, {})

    sgd = optax.sgd(1.0)
    client = federated.local(lp.descend(lp.plain(loss), sgd), sgd)
    mean, _ = jax.jit(federated.federated(client))({"w": jnp.float32(0)}, {}, batch, jax.random.key(0))
    assert mean.weight == 2 * sum(len(loose.partition[c]) for c in batch["client"] if c < 20)


def test_the_picture_of_who_holds_what(tmp_path):
    held = partition.held(KINDS["dirichlet"](0), LABELS, 10)
    np.testing.assert_array_equal(held.sum(axis=0), np.bincount(LABELS, minlength=10))
    chart.draw(tmp_path / "held.svg", held, [f"class {n}" for n in range(10)], "Dirichlet 0.3")
    text = (tmp_path / "held.svg").read_text()
    assert text.count("<path") > 100


def test_partitions_by_name():
    assert partition.field("natural:writer") == "writer"
    assert partition.field("dirichlet:0.3") is None
    for text, parts in (("iid", KINDS["iid"]), ("dirichlet:0.3", KINDS["dirichlet"]), ("shards:2", KINDS["shards"])):
        built = partition.build(text, LABELS, 20, 3)
        assert all(np.array_equal(a, b) for a, b in zip(built, parts(3), strict=True))


BAD = [
    (lambda: partition.dirichlet(LABELS, 20, 0, 0), "concentration 0 of the Dirichlet"),
    (lambda: partition.dirichlet(LABELS, 200, 0.01, 0), "a hundred draws"),
    (lambda: partition.dirichlet(LABELS, 601, 1.0, 0), "600 examples are too few for 601 clients"),
    (lambda: partition.iid(5, 6, 0), "5 examples are too few for 6 clients"),
    (lambda: partition.iid(5, 0, 0), "among 0 clients"),
    (lambda: partition.shards(LABELS, 20, 0, 0), "0 shards for each"),
    (lambda: partition.natural([]), "too few"),
    (lambda: partition.build("dirichlet:x", LABELS, 20, 0), "'dirichlet:x' does not parse"),
    (lambda: partition.build("iid:3", LABELS, 20, 0), "'iid:3' does not parse"),
    (lambda: partition.field("natural"), "'natural' names no field"),
    (lambda: data.owners(stream().source), "do not say whose they are"),
    (lambda: partition.build("shards:1.5", LABELS, 20, 0), "does not parse"),
    (lambda: partition.build("diriclet:1", LABELS, 20, 0), "unknown partition 'diriclet'"),
    (lambda: sampling.fixed_size(10, 11, 0), "a cohort of 11 is more than the 10 clients"),
    (lambda: sampling.fixed_size(10, 0, 0), "a cohort of 0"),
    (lambda: sampling.fixed_size(10, 5, -1), "the seed -1"),
    (lambda: sampling.poisson(10, 6, 0, 5), "6 expected clients"),
    (lambda: federated.Availability(quorum=1.5), r"a quorum of 1.5 is outside \[0, 1\]"),
    (lambda: federated.Availability(dropout=-0.1), "a dropout of -0.1"),
    (lambda: federated.Availability(deadline=0), "a deadline of 0"),
    (lambda: federated.Availability(spread=-1), "a spread of -1"),
    (lambda: stream().part(0, 3), "a cohort of 8 does not divide over 3 processes"),
    (lambda: federated.Cohorts(stream().source, stream().partition, stream().asked, 8, 0, 1, 0), "batch size of 0"),
]


@pytest.mark.parametrize(("make", "problem"), BAD)
def test_what_cannot_be_is_refused_in_two_lines(make, problem):
    with pytest.raises(lp.InputError, match=problem) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 2
