"""What clients keep from round to round, and that it outlives them; everyone is a thread."""

import concurrent.futures
import dataclasses

import jax
import numpy as np
import pytest

import lepton_jax as lp
from experiments import federated as experiment
from lepton_jax import federation
from lepton_jax.errors import InputError
from lepton_jax.federation import memory
from lepton_jax.federation.frames import Kind
from tests.federated_job import TERMS, Events


class Struck:
    """A client's way on which it dies at every second update: before it is sent, or before the thanks are there."""

    def __init__(self, transport, sent):
        self.transport, self.sent, self.updates = transport, sent, 0

    def exchange(self, request):
        self.updates += (struck := request.kind == Kind.UPDATE and bool(request.body))
        if struck and self.updates % 2:
            if self.sent:
                self.transport.exchange(request)
            raise ConnectionError("dead")
        return self.transport.exchange(request)

    def close(self):
        self.transport.close()


def scaffolded(sent, place):
    """(the state after four rounds of SCAFFOLD with sign updates, how often n1 died) where another n1 takes over."""
    options = {"clients": 3, "cohort": 3, "epochs": 4, "batch_size": 32, "examples": 300, "algorithm": "scaffold"}
    the_job = experiment.job(dataclasses.replace(experiment.PRESETS["smoke"], **options, update="sign"))
    made = federation.Coordinator(the_job, the_job.state(), TERMS._replace(quorum=3), Events())
    deaths = 0

    def client(name):
        nonlocal deaths
        way = federation.InProcess(made.answer, name)
        if sent is not None and name == the_job.clients[1]:
            way = Struck(way, sent)
        while True:
            try:
                return federation.Participant(the_job, name, way, memory=place).run()
            except ConnectionError:
                deaths += 1

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, name) for name in the_job.clients]
        made.run(lambda *_: None, lambda number: False)
        for each in clients:
            each.result()
    return made.state, deaths


def test_a_client_that_is_killed_goes_on_with_what_it_has_kept(tmp_path):
    """Killed before its update is sent, or once it is taken and before it knows: the same bits as without."""
    whole, _ = scaffolded(None, None)
    for sent in (False, True):
        state, deaths = scaffolded(sent, tmp_path / str(sent))
        assert deaths >= 2
        jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
        jax.tree.map(np.testing.assert_array_equal, state.stats, whole.stats)
    forgetful, _ = scaffolded(True, None)
    assert lp.tree.distance(forgetful.params, whole.params) > 1e-6


def test_memory_holds_some_rounds_and_the_one_that_was_taken(tmp_path):
    begun = {"w": np.zeros(2, np.float32)}

    def entry(number):
        return {"w": np.full(2, number, np.float32)}

    for directory in (None, tmp_path / "kept"):
        held = memory.Memory(begun, directory, "n0")
        for number in range(3, 20):
            held.keep(number, entry(number), taken=4)
        for again in (held, memory.Memory(begun, directory, "n0")) if directory else (held,):
            assert [again.after(number)["w"][0] for number in (None, 3, 4, 9, 12, 19, 25)] == [0, 0, 4, 4, 12, 19, 19]
        held.keep(13, entry(-13), taken=12)  # the coordinator has gone back
        assert [held.after(number)["w"][0] for number in (12, 13, 19)] == [12, -13, -13]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {f"n0.{n}.safetensors" for n in (4, 12, 13)}
    with pytest.raises(InputError, match=r"expected float32\[3\]"):
        memory.Memory({"w": np.zeros(3, np.float32)}, tmp_path / "kept", "n0")
    (tmp_path / "kept" / "n0.13.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"(?s)n0.13.safetensors.*without it the client goes on"):
        memory.Memory(begun, tmp_path / "kept", "n0")
    with pytest.raises(InputError, match="--memory"):
        memory.Memory(begun, tmp_path / "kept" / "n0.12.safetensors" / "below", "n0")
