"""What a coordinator answers while a round is open: which updates it takes, whom it refuses, and what never starts."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import federation
from lepton_jax.errors import InputError
from lepton_jax.federation import commands, frames, job, wire
from lepton_jax.federation.frames import Frame, Kind
from tests import federated_job
from tests.federated_job import CONFIG, TERMS, Events


class Opened:
    """A coordinator with a round that is open, and its task for n0."""

    def __init__(self, terms=TERMS):
        self.job, self.events = federated_job.job(CONFIG), Events()
        self.made = federation.Coordinator(self.job, self.job.state(), terms._replace(heartbeat=0.05), self.events)
        self.hello = {"job": job.fingerprint(self.job, self.job.state()), "steps": None}
        for name in self.job.clients:
            assert self.ask(Kind.POLL, name=name).kind == Kind.WAIT
        with self.made._changed:
            self.made._open(0, self.job.clients, time.monotonic())
        self.task = self.ask(Kind.POLL)
        assert self.task.kind == Kind.TASK
        self.like = job.sent_like(self.job, self.job.state())
        self.good = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), self.like)

    def ask(self, kind, body=b"", name="n0", **head):
        token = {"token": self.task.head["token"]} if hasattr(self, "task") else {}
        return self.made.answer(name, Frame(kind, {**(self.hello if kind == Kind.POLL else token), **head}, body))

    def refused(self):
        return [event["why"] for event in self.events.of("refused")]


def changed(tree, name, array):
    return {**wire.arrays(tree), name: array}


BAD = {
    "no arrays": (lambda good: b"x" * 100, "holds no arrays"),
    "another shape": (lambda good: changed(good, "update/total/b", np.ones(4, np.float32)), "shape"),
    "another type": (lambda good: changed(good, "update/total/b", np.ones(3, np.float64)), "type"),
    "a stranger": (lambda good: changed(good, "x", np.ones(3, np.float32)), "x is not expected"),
    "one too few": (lambda good: {"update/weight": np.float32(1)}, "is missing"),
    "NaN": (lambda good: changed(good, "update/total/b", np.full(3, np.nan, np.float32)), "not finite"),
    "a negative weight": (lambda good: changed(good, "update/weight", np.array(-1, np.float32)), "negative"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_update_that_is_none_is_logged_and_left_out(what):
    make, why = BAD[what]
    case = Opened()
    body = make(case.good)
    assert case.ask(Kind.UPDATE, body if isinstance(body, bytes) else frames.packed(body)).kind == Kind.GONE
    assert why in case.refused()[0]
    good = frames.packed(wire.arrays(case.good))
    assert case.ask(Kind.UPDATE, good).kind == Kind.GONE  # it is out of this round
    for name in ("n1", "n2"):
        assert case.ask(Kind.UPDATE, good, name).kind == Kind.OK
    assert case.made._round.complete
    assert case.made._stepped(case.made._round) is not None
    assert case.events.of("closed")[0]["clients"] == ["n1", "n2"]


def test_what_is_asked_twice_is_answered_alike_and_what_is_late_is_gone():
    case = Opened()
    good = frames.packed(wire.arrays(case.good))
    assert case.ask(Kind.ALIVE).kind == Kind.OK
    assert case.ask(Kind.POLL).kind == Kind.TASK  # a client that was started again gets its task again
    assert case.ask(Kind.UPDATE, good).kind == case.ask(Kind.UPDATE, good).kind == case.ask(Kind.UPDATE).kind == Kind.OK
    assert case.ask(Kind.UPDATE, good, "n1", token="another").kind == Kind.GONE
    assert case.ask(Kind.KEYS, good, "n1").kind == Kind.GONE
    assert case.ask(Kind.UPDATE, good, "n1").kind == Kind.OK
    case.made._round.advance(case.made._round.begun + TERMS.deadline, [])
    assert case.ask(Kind.UPDATE, good, "n2").kind == Kind.GONE
    assert case.ask(Kind.ALIVE, name="n2").kind == Kind.GONE
    assert case.made._round.complete
    with case.made._changed:
        case.made._open(0, case.job.clients, time.monotonic())
    assert case.ask(Kind.UPDATE).kind == Kind.OK  # it was taken, and only the answer got lost
    assert case.ask(Kind.UPDATE, name="n2").kind == case.ask(Kind.ALIVE).kind == Kind.GONE


@pytest.mark.parametrize(
    ("name", "kind", "head", "why"),
    [
        ("stranger", Kind.POLL, {}, "none of this job's clients"),
        ("n0", Kind.POLL, {"job": "another"}, "another job"),
        ("n0", Kind.POLL, {"steps": -1}, "a capacity of -1 steps"),
        ("n0", Kind.POLL, {"steps": True}, "a capacity of True steps"),
        ("n0", Kind.TASK, {}, "TASK is no question"),
    ],
)
def test_who_cannot_take_part_is_told_why(name, kind, head, why):
    case = Opened()
    reply = case.ask(kind, name=name, **head)
    assert reply.kind == Kind.REFUSED
    assert why in reply.head["why"]
    assert why in case.refused()[0]


def test_a_refused_client_ends_with_the_reason():
    case = Opened()
    other = federated_job.job(dataclasses.replace(CONFIG, rounds=9))
    with pytest.raises(InputError, match="the coordinator refuses n0: it has another job"):
        federation.Participant(other, "n0", federation.InProcess(case.made.answer, "n0")).run()


def test_flags_that_decide_the_run_are_agreed_on_and_others_are_not():
    prints = {}
    for name, value in (("seed", 0), ("learning_rate", 0.2), ("seed", 1), ("data_dir", "elsewhere"), ("keep", 9)):
        config = dataclasses.replace(CONFIG, **{name: value})
        the_job = commands.agreed(federated_job.job(config), config)
        prints[name, value] = job.fingerprint(the_job, the_job.state())
    first, rate, seed, *neutral = prints.values()
    assert len({first, rate, seed}) == 3
    assert set(neutral) == {first}


def test_refusals_do_not_fill_the_disk():
    case = Opened()
    for _ in range(1000):
        case.made.refused("?", "no handshake")
    counts = [event["count"] for event in case.events.of("refused")]
    assert counts == [*range(1, 101), 128, 256, 512]


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ({"quorum": 4}, "--quorum 4 is not between 1 and the 3"),
        ({"quorum": 0}, "--quorum 0"),
        ({"cohort": 4}, "--cohort 4"),
        ({"deadline": 0}, "--deadline 0"),
        ({"heartbeat": float("nan")}, "--heartbeat nan"),
        ({"quorum": 1, "secure": True}, "not more than half of the 3"),
    ],
)
def test_terms_that_no_round_can_meet_are_refused(terms, problem):
    the_job = federated_job.job(CONFIG)
    with pytest.raises(InputError, match=problem):
        federation.Coordinator(the_job, the_job.state(), TERMS._replace(**terms), Events())


def test_jobs_and_clients_that_cannot_be_are_refused():
    the_job = federated_job.job(CONFIG)
    for change, problem in (({"rounds": 0}, "0 rounds"), ({"clients": ("a", "a")}, "named twice")):
        with pytest.raises(InputError, match=problem):
            federation.Coordinator(the_job._replace(**change), the_job.state(), TERMS, Events())
    combining = the_job._replace(combine=lambda updates, weights: None)
    with pytest.raises(InputError, match="shows no single update"):
        federation.Coordinator(combining, the_job.state(), TERMS._replace(secure=True), Events())
    for name, steps, problem in (("z", None, "z is none of"), ("n0", 0, "--steps 0")):
        with pytest.raises(InputError, match=problem):
            federation.Participant(the_job, name, federation.InProcess(lambda name, frame: frame, name), steps)


def test_updates_can_be_combined_one_by_one():
    """The median: a client that sends a thousand times too much moves nothing."""

    def median(updates, weights):
        return lp.Mean(jax.tree.map(lambda x: jnp.median(x, axis=0), updates), jnp.float32(1))

    case = Opened()
    made = federation.Coordinator(case.job._replace(combine=median), case.job.state(), TERMS, Events())
    like = case.good
    answers = [
        like,
        jax.tree.map(lambda x: 1000 * x, like)._replace(
            update=lp.Mean(jax.tree.map(lambda x: 1000 * x, like.update.total), np.float32(1))
        ),
        like,
    ]
    found = job.folded(made._job, answers).update.value()
    jax.tree.map(np.testing.assert_array_equal, found, like.update.total)
