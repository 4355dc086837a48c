"""Secure sums: exact for whoever stays, nothing to be seen before, and parties that answer only what they may."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lepton_jax.errors import InputError
from lepton_jax.federation import fixed, masks, shamir
from lepton_jax.federation.masks import Party, ProtocolError

SESSION = b"a sum of its own"


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.data())
def test_any_shares_of_the_threshold_give_the_secret_and_fewer_do_not(secret, count, data):
    threshold = data.draw(st.integers(1, count))
    shares = shamir.split(secret, range(1, count + 1), threshold)
    assert all(len(share) == shamir.BYTES for share in shares.values())
    for chosen in itertools.combinations(shares, threshold):
        assert shamir.joined({place: shares[place] for place in chosen}) == secret
    if threshold > 1:
        with pytest.raises(ValueError, match="do not belong together"):
            shamir.joined(dict(list(shares.items())[: threshold - 1]))


def test_shares_below_the_threshold_are_compatible_with_every_secret():
    """Two of three: for a share there is, for any other secret, a share that makes it so."""
    share = shamir.split(bytes(31) + b"\1", range(1, 4), 2)[1]
    value = int.from_bytes(share)
    for other in (0, 7, 2**255):
        slope = (value - other) % shamir.PRIME
        second = ((other + 2 * slope) % shamir.PRIME).to_bytes(shamir.BYTES)
        assert int.from_bytes(shamir.joined({1: share, 2: second})) == other


@pytest.mark.parametrize(("secret", "count", "threshold"), [(b"short", 3, 2), (bytes(32), 3, 4), (bytes(32), 3, 0)])
def test_what_cannot_be_shared_is_refused(secret, count, threshold):
    with pytest.raises(ValueError, match="cannot be shared"):
        shamir.split(secret, range(1, count + 1), threshold)


floats = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=5))
def test_sums_of_fixed_points_are_exact_to_their_step(rows):
    like = {"b": np.zeros(2, np.float64), "a": np.zeros((), np.float64)}
    vectors = [fixed.encoded({"a": row[0], "b": row[1:]}, len(rows)) for row in rows]
    found = fixed.decoded(np.sum(np.stack(vectors), axis=0, dtype=np.uint64), like)
    expected = np.sum(np.asarray(rows, np.float64), axis=0)
    np.testing.assert_allclose([found["a"], *found["b"]], expected, rtol=0, atol=len(rows) * 2.0**-33 + 1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, fixed.LIMIT / 3, -fixed.LIMIT])
def test_what_a_sum_cannot_hold_is_refused(value):
    with pytest.raises(InputError, match="w has a number"):
        fixed.encoded({"w": [1.0, value]}, 3)


class Sum:
    """Parties and a coordinator that only passes on, with dropouts where a test wants them."""

    def __init__(self, count, threshold, length=16):
        rng = np.random.default_rng(count)
        names = [f"n{number}" for number in range(count)]
        self.vectors = {name: rng.integers(0, 2**64, length, np.uint64) for name in names}
        self.parties = {name: Party(name, threshold, SESSION) for name in names}
        self.threshold = threshold

    def share(self, with_keys, sharers):
        self.roster = {name: self.parties[name].keys() for name in with_keys}
        self.sharers = sharers
        self.given = {name: self.parties[name].shares(self.roster) for name in sharers}

    def mask(self, senders):
        self.masked = {
            name: self.parties[name].masked(
                self.vectors[name], {other: self.given[other][name] for other in self.sharers if other != name}
            )
            for name in senders
        }

    def total(self, revealers):
        revealed = {name: self.parties[name].revealed(self.masked) for name in revealers}
        return masks.total(masks.Round(self.roster, self.sharers, self.threshold, SESSION), self.masked, revealed)

    def expected(self):
        return np.sum(np.stack([self.vectors[name] for name in self.masked]), axis=0, dtype=np.uint64)


def subsets(names, least):
    return [chosen for size in range(least, len(names) + 1) for chosen in itertools.combinations(names, size)]


@pytest.mark.parametrize(("count", "threshold"), [(2, 2), (3, 2), (4, 3), (5, 3)])
def test_the_sum_is_exact_for_every_dropout_set_at_or_above_the_quorum(count, threshold):
    """All subsets at all four stages, each within the one before."""
    everyone, cases = list(Sum(count, threshold).parties), 0
    for with_keys in subsets(everyone, threshold):
        for sharers in subsets(with_keys, threshold):
            for senders in subsets(sharers, threshold):
                for revealers in subsets(senders, threshold):
                    case = Sum(count, threshold)
                    case.share(with_keys, sharers)
                    case.mask(senders)
                    np.testing.assert_array_equal(case.total(revealers), case.expected())
                    cases += 1
    # whoever drops out does so before one of four stages
    assert cases == sum(math.comb(count, stay) * 4 ** (count - stay) for stay in range(threshold, count + 1))


@pytest.mark.parametrize("senders", subsets([f"n{number}" for number in range(6)], 4), ids="".join)
def test_the_sum_is_exact_for_six_when_up_to_two_drop_out_before_they_send(senders):
    case = Sum(6, 4)
    case.share(case.parties, list(case.parties))
    case.mask(senders)
    for revealers in subsets(senders, 4):
        np.testing.assert_array_equal(case.total(revealers), case.expected())


def p_value(vector):
    """Of the hypothesis that all bytes are equally frequent: chi-square."""
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue


def test_what_the_coordinator_sees_of_an_update_is_uniform_and_the_update_is_not():
    update = {"w": np.random.default_rng(0).normal(0, 0.01, 40_000)}
    vector = fixed.encoded(update, 3)
    case = Sum(3, 2, len(vector))
    case.vectors = dict.fromkeys(case.parties, vector)
    case.share(case.parties, list(case.parties))
    case.mask(case.parties)
    assert p_value(vector) < 1e-100
    for name, seen in case.masked.items():
        assert p_value(seen) > 1e-6, name
        assert p_value(seen - vector) > 1e-6, name  # and so is the mask, whatever it lies on
    first, second = itertools.islice(case.masked.values(), 2)
    assert p_value(first - second) > 1e-6  # nor do two with one update show that they are alike
    np.testing.assert_array_equal(case.total(case.parties), 3 * vector)
    assert p_value(case.total(case.parties)) < 1e-100


def test_without_any_one_mask_nothing_of_the_update_is_seen():
    """The pairs' masks and a party's own each hide it alone: neither kind of shares uncovers a vector."""
    case = Sum(3, 2, 5000)
    case.vectors = {name: np.zeros(5000, np.uint64) for name in case.parties}
    case.share(case.parties, list(case.parties))
    case.mask(case.parties)
    party = case.parties["n0"]
    own = masks.mask(masks._drawn(party._seed, SESSION, b"own"), 5000)
    pairs = case.masked["n0"] - own
    assert p_value(own) > 1e-6
    assert p_value(pairs) > 1e-6
    for other in ("n1", "n2"):
        masks.add_pair(pairs, other, "n0", case.parties[other]._mask_secret, party.keys()[:32], SESSION)
    assert not pairs.any()  # and these are all that there were


def begun(count=3, threshold=2):
    case = Sum(count, threshold)
    case.share(case.parties, list(case.parties))
    return case


def test_a_party_answers_one_question_only_and_only_a_proper_one():
    case = begun()
    with pytest.raises(ProtocolError, match="no vector was given"):
        case.parties["n0"].revealed(case.parties)
    case.mask(case.parties)
    party = case.parties["n0"]
    for survivors in (["n0"], ["n1", "n2"], ["n0", "n1", "stranger"]):
        with pytest.raises(ProtocolError, match="the survivors are"):
            party.revealed(survivors)
    first = party.revealed(["n0", "n1"])
    assert party.revealed(["n1", "n0"]) == first
    with pytest.raises(ProtocolError, match="named before"):
        party.revealed(["n0", "n1", "n2"])
    with pytest.raises(ProtocolError, match="given before"):
        case.mask(["n0"])
    with pytest.raises(ProtocolError, match="given before"):
        party.shares(case.roster)


def test_a_party_takes_no_part_where_too_few_could_take_off_its_masks_or_half_of_them():
    party = Party("n0", 2, SESSION)
    others = {f"n{number}": Party(f"n{number}", 2, SESSION).keys() for number in range(1, 4)}
    with pytest.raises(ProtocolError, match="more than half"):
        party.shares({"n0": party.keys(), **others})
    with pytest.raises(ProtocolError, match="more than half"):
        party.shares({"n0": party.keys()})
    with pytest.raises(ProtocolError, match="has not this party's keys"):
        party.shares(others)
    case = Sum(3, 2)
    case.share(case.parties, ["n0"])
    with pytest.raises(ProtocolError, match="too few have given shares"):
        case.mask(["n0"])


def test_shares_that_were_changed_or_are_another_ones_are_noticed():
    for change in (lambda given: {"n1": given["n1"][:-1] + bytes([given["n1"][-1] ^ 1])}, lambda given: {"n1": b""}):
        case = begun()
        given = {"n1": case.given["n1"]["n0"], "n2": case.given["n2"]["n0"]}
        with pytest.raises(ProtocolError, match="the shares of n1 are not as they were sent"):
            case.parties["n0"].masked(case.vectors["n0"], {**given, **change(given)})
    case = begun()
    with pytest.raises(ProtocolError, match="the shares of n1 are not"):
        case.parties["n0"].masked(case.vectors["n0"], {"n1": case.given["n1"]["n2"], "n2": case.given["n2"]["n0"]})


def test_below_the_threshold_there_is_no_sum():
    case = begun()
    case.mask(["n0", "n1"])
    revealed = {"n0": case.parties["n0"].revealed(case.masked)}
    known = masks.Round(case.roster, case.sharers, case.threshold, SESSION)
    with pytest.raises(ProtocolError, match="below the threshold"):
        masks.total(known, case.masked, revealed)
    revealed["n1"] = {**case.parties["n1"].revealed(case.masked), "n2": bytes(shamir.BYTES)}
    with pytest.raises(ProtocolError, match="the shares of n2"):
        masks.total(known, case.masked, revealed)
