"""Rounds over a transport: what they come to, whoever is slow, away, wrong or back; everyone is a thread."""

import concurrent.futures
import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from experiments import federated as experiment
from lepton_jax import federated, federation
from lepton_jax.errors import InputError
from lepton_jax.federation import commands, coordinator, frames, health, job, masks, wire
from lepton_jax.federation.frames import Frame, Kind
from tests import federated_job

CONFIG = federated_job.Config(rounds=3)
TERMS = federation.Terms(quorum=2, deadline=20, gather=20, heartbeat=0.5)


class Events(list):
    """Events, as a log keeps them."""

    def write(self, event, **fields):
        self.append({"event": event, **fields})

    def of(self, kind):
        return [event for event in self if event["event"] == kind]


class Mortal:
    """A client's way that is cut for good in place of its first message of a kind."""

    def __init__(self, transport, last):
        self.transport, self.last, self.dead = transport, last, False

    def exchange(self, request):
        self.dead |= request.kind == self.last
        if self.dead:
            raise ConnectionError("dead")
        return self.transport.exchange(request)

    def close(self):
        self.transport.close()


def run(
    terms=TERMS, config=CONFIG, change=lambda job: job, dead=None, steps=None, state=None, leave=lambda number: False
):
    """(state, events, metrics by round, clients) of a run in threads. dead: {name: instead of sending what it dies}."""
    the_job = change(federated_job.job(config))
    events, saved = Events(), []
    made = federation.Coordinator(the_job, state or the_job.state(), terms, events)

    def client(name):
        way = Mortal(federation.InProcess(made.answer, name), (dead or {}).get(name))
        participant = federation.Participant(the_job, name, way, (steps or {}).get(name))
        try:
            participant.run()
        except ConnectionError:
            assert name in (dead or {})
        return participant

    with concurrent.futures.ThreadPoolExecutor(len(the_job.clients)) as pool:
        clients = [pool.submit(client, name) for name in the_job.clients]
        made.run(lambda state, lost, metrics: saved.append(metrics), leave)
        participants = [each.result() for each in clients]
    return made.state, events, saved, participants


def simulated(config, rounds, members=lambda number: range(CONFIG.clients), change=lambda batches: batches):
    """The same by `federated.federated`, without a transport."""
    local, server = optax.sgd(config.learning_rate), optax.sgd(1.0, momentum=0.5)
    client = federated.local(lp.descend(lp.plain(federated_job.loss), local), local)
    step = jax.jit(lp.descend(federated.federated(client), server))
    state = federated_job.state(config, server)
    for number in range(rounds):
        there = list(members(number))
        each = [change(federated_job.batches(client, number)) for client in there]
        batch = jax.tree.map(lambda *x: np.stack(x), *each)
        state, _ = step(state, {**batch, "client": np.array(there)})
    return state


def test_rounds_over_a_transport_are_those_of_the_simulation():
    state, events, saved, participants = run()
    expected = simulated(CONFIG, 3)
    assert lp.tree.distance(state.params, expected.params) < 1e-6
    assert lp.tree.distance(state.opt_state, expected.opt_state) < 1e-6
    assert int(state.step) == len(saved) == 3
    assert [participant.rounds for participant in participants] == [{0, 1, 2}] * 3
    assert all(event["clients"] == ["n0", "n1", "n2"] for event in events.of("closed"))
    assert not events.of("refused")


@pytest.mark.parametrize(
    "change", [{"algorithm": "scaffold"}, {"client_clip": 1.0, "client_quantile": 0.5}], ids=["scaffold", "quantile"]
)
def test_an_experiment_between_machines_is_its_simulation(change):
    """Of SCAFFOLD, whose clients keep something, and whose server looks into what they send; with votes beside it."""
    options = {"clients": 3, "cohort": 3, "epochs": 2, "batch_size": 32, "examples": 300, **change}
    config = dataclasses.replace(experiment.PRESETS["smoke"], **options)
    recipe = experiment.compose(config)
    the_job = experiment.job(config)
    inputs = recipe.stream.batch(0)["input"][0, 0]
    expected = lp.initial(recipe.model, recipe.optimizer, lp.keys.seeded(0), inputs, **recipe.stats)
    step = jax.jit(recipe.step)
    for number in range(2):
        expected, _ = step(expected, recipe.stream.batch(number))
    state, *_ = run(change=lambda _: the_job)
    shared = {name: entry for name, entry in expected.stats.items() if name != "clients"}
    assert lp.tree.distance((state.params, state.stats), (expected.params, shared)) < 1e-6
    measured = the_job.evaluate(state)
    assert 0.1 < measured["test/accuracy"] <= 1


def test_arrival_does_not_matter_to_the_last_bit():
    """Clients that hand in in another order: each waits for its turn, another one in each of the runs."""
    ends = []
    for order in (("n0", "n1", "n2"), ("n2", "n0", "n1")):

        def paced(the_job, order=order):
            def data(name, number):
                time.sleep(0.15 * order.index(name))
                return the_job.data(name, number)

            return the_job._replace(data=data)

        state, events, *_ = run(change=paced)
        arrived = [event["client"] for event in events.of("update")]
        assert arrived[-3:] == list(order)
        ends.append(state)
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)


@pytest.mark.parametrize(
    ("secure", "instead"),
    [(False, "UPDATE"), (True, "KEYS"), (True, "SHARES"), (True, "UPDATE"), (True, "REVEAL")],
)
def test_a_client_that_dies_in_mid_round_is_left_out(secure, instead):
    """In a secure sum at every stage: with its shares given, the others take off what it has left in their masks."""
    terms = TERMS._replace(secure=secure, heartbeat=0.5)
    state, events, *_ = run(terms, dead={"n1": Kind[instead]})
    first = [0, 1, 2] if instead == "REVEAL" else [0, 2]  # then its update was in the sum already
    closed = [event["clients"] for event in events.of("closed")]
    assert closed == [[f"n{number}" for number in first], ["n0", "n2"], ["n0", "n2"]]
    assert {event["client"] for event in events.of("lost")} == {"n1"}
    assert all(event["seconds"] < terms.deadline for event in events.of("closed"))
    expected = simulated(CONFIG, 3, members=lambda number: [0, 2] if number else first)
    assert lp.tree.distance(state.params, expected.params) < 1e-6


def test_a_client_that_masks_for_long_is_waited_for(monkeypatch):
    """Longer than the silence after which it were lost: what takes time is done beside signs of life."""
    masked = masks.Party.masked

    def slowly(party, *args):
        time.sleep(2.5 if party._name == "n1" else 0)
        return masked(party, *args)

    monkeypatch.setattr(masks.Party, "masked", slowly)
    _, events, *_ = run(TERMS._replace(secure=True), dataclasses.replace(CONFIG, rounds=1))
    assert events.of("closed")[0]["clients"] == ["n0", "n1", "n2"]


def test_who_is_silent_is_lost_once_and_the_coordinators_own_pause_is_no_silence():
    made = health.Health(("a", "b", "c"), 1.0)
    assert made.note("a", 0.0, {})
    assert made.note("b", 0.0, {"steps": 2})
    assert made.here(100.0) == {"a", "b"}  # nobody looked for 100 seconds
    for now in np.arange(100, 103, 0.5):  # b is not heard of
        assert not made.note("a", now, {})
        assert not made.lose(now)
    made.stay("b", 103.0)  # a large update is on its way
    made.stay("c", 103.0)  # which is not here, and does not get here by that
    looks = {now: made.lose(now) for now in np.arange(103, 108, 0.5)}
    assert {now: lost for now, lost in looks.items() if lost} == {106.0: ["a"], 106.5: ["b"]}
    assert made.missing(108.0) == {"c"}
    assert made.note("b", 108.0, {})
    assert made.lost == {"a"}


def test_a_client_that_is_alive_and_too_slow_is_left_out_at_the_deadline():
    def change(the_job):
        def data(name, number):
            if (name, number) == ("n1", 1):
                time.sleep(4.5)
            return the_job.data(name, number)

        return the_job._replace(data=data)

    _, events, *_ = run(TERMS._replace(deadline=3), config=dataclasses.replace(CONFIG, rounds=4), change=change)
    slow = next(event for event in events.of("closed") if event["round"] == 1)
    assert slow["clients"] == ["n0", "n2"]
    assert 3 <= slow["seconds"] < 4.5
    assert events.of("closed")[-1]["clients"] == ["n0", "n1", "n2"]
    assert not events.of("lost")


def test_a_secure_sum_is_the_plain_one_and_no_update_is_seen(monkeypatch):
    seen = []

    original = coordinator.Coordinator.answer

    def answer(self, name, frame):
        if frame.kind == Kind.UPDATE and frame.body:
            seen.append(frame.arrays()["vector"])
        return original(self, name, frame)

    monkeypatch.setattr(coordinator.Coordinator, "answer", answer)
    state, _, saved, _ = run(TERMS._replace(secure=True))
    expected = simulated(CONFIG, 3)
    assert lp.tree.distance(state.params, expected.params) < 1e-6
    assert len(seen) == 9
    for vector in seen:  # of 1,000 zeros and some small numbers nothing shows
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 400
    assert saved[0].keys() == {"loss", "accuracy", "gradient_norm"}


def test_work_is_given_by_capacity():
    state, events, *_ = run(steps={"n0": 1, "n2": 3})
    assert events.of("round")[0]["clients"] == {"n0": 1, "n1": None, "n2": 3}

    def cut(name_steps):
        weights = np.ones((federated_job.STEPS, federated_job.BATCH), np.float32)
        weights[name_steps:] = 0
        return weights

    capacity = iter([1, 4, 3] * 3)
    expected = simulated(CONFIG, 3, change=lambda batches: {**batches, "weight": cut(next(capacity))})
    # the loss of this job does not weigh examples, but steps without any are left out, and a client counts by them
    assert lp.tree.distance(state.params, expected.params) < 1e-6


def test_a_cohort_is_decided_by_the_seed_and_the_round():
    terms = TERMS._replace(cohort=2)
    first, second = run(terms), run(terms)
    drawn = [event["clients"] for event in first[1].of("closed")]
    assert drawn == [event["clients"] for event in second[1].of("closed")]
    assert all(len(clients) == 2 for clients in drawn)
    jax.tree.map(np.testing.assert_array_equal, first[0].params, second[0].params)


def test_a_round_begins_without_those_who_never_come_and_takes_them_when_they_do():
    the_job, events = federated_job.job(dataclasses.replace(CONFIG, rounds=4)), Events()
    made = federation.Coordinator(the_job, the_job.state(), TERMS._replace(gather=0.5), events)

    def client(name):
        federation.Participant(the_job, name, federation.InProcess(made.answer, name)).run()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, name) for name in ("n0", "n2")]

        def save(state, lost, metrics):
            if int(state.step) == 2:
                clients.append(pool.submit(client, "n1"))
                while "n1" not in {event["client"] for event in events.of("joined")}:
                    time.sleep(0.01)

        assert made.run(save, lambda number: False)
        for each in clients:
            each.result()
    assert [event["client"] for event in events.of("lost")] == ["n1"]
    assert [event["clients"] for event in events.of("closed")] == [["n0", "n2"]] * 2 + [["n0", "n1", "n2"]] * 2


def test_a_round_below_its_quorum_is_held_again():
    """Two of three hand in nothing in the first attempt: all wait for the deadline, and nothing moves."""
    missed, lock = set(), threading.Lock()

    def change(the_job):
        def data(name, number):
            with lock:
                first = name not in missed and name != "n0"
                missed.add(name)
            if first:
                time.sleep(1.5)
            return the_job.data(name, number)

        return the_job._replace(data=data)

    state, events, *_ = run(TERMS._replace(deadline=1.0, heartbeat=0.2), change=change)
    assert len(events.of("short")) >= 1
    assert events.of("short")[0]["clients"] == ["n0"]
    assert lp.tree.distance(state.params, simulated(CONFIG, 3).params) < 1e-6


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
