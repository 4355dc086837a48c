"""A coordinator and clients as real processes on loopback, with real kill -9: what is lost, and what goes on."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from lepton_jax.errors import Exit, InputError
from lepton_jax.federated import __main__ as command
from lepton_jax.federation import certificates
from lepton_jax.launch.supervisor import free_port

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 120

# the same job in one process, without sockets: the bits to compare with
ALONE = """
import concurrent.futures, pathlib, sys
from lepton_jax import federation, preemption
from lepton_jax.federation import commands
from lepton_jax.launch.ledger import Events
from tests import federated_job
config = federated_job.Config(clients=2, rounds=int(sys.argv[2]), keeping=True)
job = federated_job.job(config)
place = pathlib.Path(sys.argv[1])
made = federation.Coordinator(job, job.state(), federation.Terms(quorum=2), Events(place / "events.jsonl"))
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for name in job.clients:
        pool.submit(federation.Participant(job, name, federation.InProcess(made.answer, name)).run)
    made.run(lambda *_: None, lambda number: False)
commands.finish(place, job, made.state, {}, config)
"""


class Federation:
    """A coordinator and its clients, started and ended as a test says."""

    def __init__(self, place: pathlib.Path, serving: list[str], flags: list[str]):
        self.place, self.run, self.port = place, place / "run", free_port()
        self.serving, self.flags, self.processes = serving, flags, []
        certificates.create(place / "c", ["n0", "n1", "n2"], 1)

    def start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "lepton_jax.federated", *words, "--certificates", str(self.place / "c")]
        return self.python([*command, *self.flags])

    def python(self, command: list[str]) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
        pipe = subprocess.PIPE
        made = subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        self.processes.append(made)
        return made

    def serve(self) -> subprocess.Popen:
        listen = ["--listen", f"127.0.0.1:{self.port}", "--run", str(self.run)]
        return self.start("serve", "tests.federated_job", *listen, *self.serving)

    def join(self, name: str) -> subprocess.Popen:
        to = ["--to", f"127.0.0.1:{self.port}", "--memory", str(self.place / "memory")]
        return self.start("join", "tests.federated_job", *to, "--name", name)

    def events(self, kind: str) -> list[dict]:
        path = self.run / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [row for row in map(json.loads, [line for line in lines if line.endswith("\n")]) if row["event"] == kind]

    def wait(self, kind: str, after: int = -1, **fields) -> dict:
        """Until there is such an event, of a round after the one given."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for event in self.events(kind):
                if fields.items() <= event.items() and event.get("round", 0) > after:
                    return event
            assert time.monotonic() < deadline, (kind, after, fields)
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen, code: int = 0) -> str:
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, out
    return out


@pytest.fixture
def federation(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda *words: stack.enter_context(contextlib.closing(Federation(tmp_path, *words)))


def test_who_is_killed_goes_on_bit_by_bit_where_it_was(federation, tmp_path):
    """The coordinator, and a client that keeps something."""
    case = federation([], ["--clients", "2", "--rounds", "5", "--pause", "0.3", "--keeping"])
    (tmp_path / "alone").mkdir()
    alone = case.python([sys.executable, "-c", ALONE, str(tmp_path / "alone"), "5"])
    first, clients = case.serve(), [case.join(name) for name in ("n0", "n1")]
    case.wait("round", round=2)
    time.sleep(0.1)  # in the middle of it
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = case.serve()
    clients[1].send_signal(signal.SIGKILL)
    clients[1].wait()
    again = case.join("n1")
    said = ended(second)
    assert "resumed    after round" in said
    for client in (clients[0], again):
        assert "took part in" in ended(client)
    ended(alone)
    begun, resumed = (event["round"] for event in case.events("start"))
    assert begun == 0
    assert resumed >= 1
    assert all(event["clients"] == ["n0", "n1"] for event in case.events("closed"))
    assert (case.run / "weights.safetensors").read_bytes() == (tmp_path / "alone/weights.safetensors").read_bytes()
    assert json.loads((case.run / "result.json").read_text())["status"] == "complete"


def test_a_client_that_is_killed_a_stranger_and_a_request_to_leave(federation):
    """Of a secure sum: its masks are taken off, its place is taken again, and a stop is a pause."""
    deadline = 20.0
    everyone, deadline = ["n0", "n1", "n2"], 20.0
    case = federation(
        ["--secure", "--quorum", "2", "--deadline", str(deadline), "--heartbeat", "1"],
        ["--rounds", "1000", "--pause", "0.5"],
    )
    first, clients = case.serve(), {name: case.join(name) for name in everyone}
    case.wait("shares", round=1, client="n1")  # its masks are in the others' sums from here on
    clients["n1"].send_signal(signal.SIGKILL)
    clients["n1"].wait()
    with socket.create_connection(("127.0.0.1", case.port), timeout=20) as stranger:
        stranger.sendall(b"LPTN" + bytes(100))
    closed = case.wait("closed", round=1)
    assert closed["clients"] == ["n0", "n2"]
    assert closed["seconds"] < deadline
    assert case.wait("lost")["client"] == "n1"
    assert "no handshake" in case.wait("refused")["why"]
    case.join("n1")
    back = case.wait("closed", after=1, clients=everyone)["round"]
    first.send_signal(signal.SIGTERM)
    assert "the same command goes on" in ended(first, Exit.PREEMPTED)
    second = case.serve()
    case.wait("closed", after=back + 1, clients=everyone)
    second.send_signal(signal.SIGTERM)
    assert "resumed    after round" in ended(second, Exit.PREEMPTED)
    clients["n0"].send_signal(signal.SIGTERM)  # it holds nothing
    ended(clients["n0"], Exit.PREEMPTED)
    rounds = [event["round"] for event in case.events("closed")]
    assert rounds == list(range(len(rounds)))  # what was saved at the stop is not done again


@pytest.fixture
def place(tmp_path):
    certificates.create(tmp_path / "c", ["n0"], 1)
    return tmp_path


JOB, CERTIFICATES = "tests.federated_job", "--certificates c"
BAD = {
    f"serve {JOB} --certificates nowhere": "has no ca.pem",
    f"serve {JOB} {CERTIFICATES} --listen 8471": "--listen 8471 is not HOST:PORT",
    f"serve {JOB} {CERTIFICATES} --quorum 4": "--quorum 4 is not between 1 and the 3",
    f"serve {JOB} {CERTIFICATES} --deadline -1": "--deadline -1",
    f"serve {JOB} {CERTIFICATES} --secure --quorum 1": "more than half",
    f"serve {JOB} {CERTIFICATES} --rounds 0": "0 rounds",
    f"serve {JOB} {CERTIFICATES} --round 3": "unknown argument '--round'",
    f"serve {JOB} {CERTIFICATES} --mesh 8x1": "--mesh 8x1 cannot be had",
    f"serve experiments.resnet {CERTIFICATES}": "it has no job",
    f"serve experiments.nothing {CERTIFICATES}": "there is no module experiments.nothing",
    "serve": "certificates",
    f"join {JOB} {CERTIFICATES} --name n1": "has no n1.pem",
    f"join {JOB} {CERTIFICATES} --name n0 --steps 0": "--steps 0",
    f"join {JOB} {CERTIFICATES} --name n0 --wait nan": "--wait nan",
    f"join {JOB} {CERTIFICATES} --name n0 --keeping --memory c/ca.pem": "--memory c/ca.pem cannot be used",
    "certificates --out c --nodes n0": "has a certificate of n0 already",
    "certificates --out d --nodes N0": "cannot be the name",
    "certificates --out d --nodes a --day 3": "--day",
    "certificate": "did you mean 'certificates'?",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_told_in_two_lines_and_nothing_is_written(line, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(command.preemption, "watch", lambda: None)  # which is for processes of their own
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError) as caught:
        command.main(line.split())
    assert BAD[line] in str(caught.value)
    assert caught.value.code == Exit.BAD_INPUT
    assert sorted(place.rglob("*")) == before


def test_a_taken_port_leaves_no_run_behind(place, monkeypatch):
    monkeypatch.chdir(place)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot be listened on"):
        command.serve(f"{JOB} {CERTIFICATES} --run run --listen 127.0.0.1:{taken.getsockname()[1]}".split())
    assert not (place / "run").exists()


@pytest.mark.parametrize("line", ["certificates --out d --nodes a", f"serve {JOB} {CERTIFICATES} --secure --quorum 2"])
def test_where_cryptography_is_missing_the_extra_is_named(line, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(command.preemption, "watch", lambda: None)
    monkeypatch.setattr(certificates.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install .lepton-jax\[federated\]"):
        command.main(line.split())


def test_a_coordinator_that_is_away_is_worth_another_try(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match="has not answered for") as caught:
        command.join(f"{JOB} {CERTIFICATES} --name n0 --wait 0.3 --to 127.0.0.1:{free_port()}".split())
    assert caught.value.code == Exit.INTERNAL


def test_without_words_it_says_which_there_are(capsys):
    command.main([])
    assert "certificates --out" in capsys.readouterr().out
