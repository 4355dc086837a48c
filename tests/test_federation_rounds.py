"""Rounds over a transport: what they come to, whoever is slow, away, wrong or back; everyone is a thread."""

import concurrent.futures
import dataclasses
import threading
import time

import jax
import numpy as np
import optax
import pytest

import lepton_jax as lp
from experiments import federated as experiment
from lepton_jax import federated, federation
from lepton_jax.federation import coordinator, health, masks
from lepton_jax.federation.frames import Kind
from tests import federated_job
from tests.federated_job import CONFIG, TERMS, Events


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
