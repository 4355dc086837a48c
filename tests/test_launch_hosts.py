"""Machines: measured, chosen, and reached through a stand-in for ssh that runs here what it is asked to run there."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lepton_jax.launch import placement, probe
from lepton_jax.launch.supervisor import free_port
from tests.test_launch import ROOT, WORKER, Launched, alive

GOOD = {"matmul": 100.0, "memory": 10.0, "disk": 1000.0, "reduce": 100.0, "free": 1e12}


@pytest.fixture(autouse=True)
def ssh(monkeypatch):
    """The stand-in, on the path."""
    monkeypatch.setenv("PATH", f"{ROOT / 'tests' / 'standins'}:{os.environ['PATH']}")


def launched(place, code, *flags, processes=2):
    """On machines: without --no-probe, which the fixture of test_launch gives."""
    made = Launched.__new__(Launched)
    made.place, made.log = place, place / "log"
    command = [sys.executable, "-m", "lepton_jax.launch", "--processes", str(processes), "--log", str(made.log)]
    command += [
        "--backoff",
        "0.05",
        "--grace",
        "20",
        *flags,
        "--",
        sys.executable,
        "-S",
        "-c",
        WORKER,
        str(place),
        code,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    made.process = subprocess.Popen([*command, "--run", "x"], env=environment, stdout=pipe, stderr=pipe, text=True)
    return made


def test_the_fastest_are_chosen_and_the_sick_left_out():
    measured = {
        "middling": {**GOOD, "memory": 8.0},
        "slow disk": {**GOOD, "disk": 300.0},
        "full": {**GOOD, "free": 1e6},
        "dead": None,
        "good": GOOD,
        "cut off": {name: rate for name, rate in GOOD.items() if name != "reduce"},
        "better": {**GOOD, "matmul": 130.0},
    }
    hosts, sick = placement.chosen(measured, 2)
    assert hosts == ["good", "better"]
    assert sick == {
        "dead": "did not answer",
        "slow disk": "disk is 3.3 times slower than in the middle",
        "full": "has 1 MB free on the disk",
        "cut off": "reduce did not work",
    }
    assert placement.chosen(measured, 9)[0] == ["good", "better", "middling"]


def test_of_two_the_faster_is_the_measure():
    assert placement.chosen({"a": {"matmul": 1.0}, "b": {"matmul": 3.1}}, 2)[0] == ["b"]
    assert placement.chosen({"a": {"matmul": 1.1}, "b": {"matmul": 3.1}}, 2)[0] == ["b", "a"]
    assert placement.chosen({"a": {"matmul": 1.1}}, 2) == (["a"], {})
    assert placement.chosen({"a": None}, 2)[0] == []


def test_the_better_of_two_measurements_counts():
    one, other = {"a": {"matmul": 1.0, "disk": 5.0}, "b": None, "c": None}, {"a": {"matmul": 2.0}, "b": GOOD, "c": None}
    assert placement.better(one, other) == {"a": {"matmul": 2.0, "disk": 5.0}, "b": GOOD, "c": None}


def test_this_machine_is_measured(tmp_path):
    (measured,) = placement.here(2, str(tmp_path / "not" / "yet"), free_port).values()
    assert set(measured) == set(GOOD)
    assert all(rate > 0 for rate in measured.values())
    assert not list(tmp_path.iterdir())


def test_the_probe_adds_up_over_all_and_lets_no_stranger_in():
    address, sums = f"127.0.0.1:{free_port()}", {}

    def take_part(rank):
        sums[rank], rates = probe.reduce(address, rank, 3, b"token")
        assert rates["reduce"] > 0

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(3)]
    threads[0].start()
    deadline = time.monotonic() + 20
    while True:
        try:
            stranger = socket.create_connection(("127.0.0.1", int(address.split(":")[1])))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
    with stranger:
        stranger.sendall(b"guess")
        assert stranger.recv(1) == b""
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for rank in range(3):
        np.testing.assert_array_equal(sums[rank], np.full(probe.VECTOR, 6.0, np.float32))


def test_a_process_on_each_machine_that_is_well(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOW", "127.0.0.2")
    code = "print('hello', number, os.environ['JAX_MARK'])"
    monkeypatch.setenv("JAX_MARK", "carried")
    made = launched(tmp_path, code, "--hosts", "dead,127.0.0.2,localhost,127.0.0.1")
    made.ended(0)
    (found,) = made.events("probe")
    assert sorted(found["chosen"]) == ["127.0.0.1", "localhost"]
    assert set(found["sick"]) == {"dead", "127.0.0.2"}
    (launch,) = made.events("launch")
    assert launch["hosts"] == found["chosen"]
    assert [made.lives(n)[0][:2] for n in (0, 1)] == [[2, launch["coordinator"]]] * 2
    assert launch["coordinator"].startswith(found["chosen"][0])
    assert (made.log / "worker-1.log").read_text() == "hello 1 carried\n"


def test_a_run_goes_on_with_fewer_machines(tmp_path):
    made = launched(tmp_path, "", "--hosts", "dead,localhost", "--min-processes", "1")
    made.ended(0)
    assert made.lives()[0][0] == 1


def test_too_few_that_are_well_are_an_error_of_the_machines(tmp_path):
    made = launched(tmp_path, "", "--hosts", "dead,localhost", "--restarts", "1")
    assert "fewer than 2 machine(s) are well" in made.ended(70)
    assert not made.lives()
    assert len(made.events("probe")) == 2


def test_crashes_stalls_and_stacks_are_seen_from_afar(tmp_path):
    code = (
        "import faulthandler\n"
        "file = open(os.environ['LEPTON_PROGRESS'].replace('.json', '.stacks'), 'a')\n"
        "faulthandler.register(signal.SIGUSR1, file)\n"
        "tell('step', life, life)\ntime.sleep(0.5)\n"
        "if life == 1 and number: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if life < 3: hang()\n"
    )
    made = launched(tmp_path, code, "--hosts", "localhost,127.0.0.1", "--no-probe", "--limit", "step=1.5")
    made.ended(0)
    assert [len(made.lives(number)) for number in (0, 1)] == [3, 3]
    assert made.events("exit")[0]["code"] == -signal.SIGKILL
    assert [row["step"] for row in made.events("commit")] == [1, 2, 3]
    (stall,) = made.events("stall")
    assert "in hang" in (made.log / stall["stacks"][0]).read_text()


def test_sigterm_goes_the_whole_way(tmp_path):
    code = "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n(place / f'ready-{number}').touch()\nhang()"
    made = launched(tmp_path, code, "--hosts", "localhost,127.0.0.1", "--no-probe")
    made.wait("ready-0")
    made.wait("ready-1")
    made.process.send_signal(signal.SIGTERM)
    made.ended(75)


def test_where_the_supervisor_is_killed_nothing_stays_anywhere(tmp_path):
    made = launched(
        tmp_path, "(place / f'ready-{number}').touch()\nhang()", "--hosts", "localhost", "--no-probe", processes=1
    )
    made.wait("ready-0")
    made.process.kill()
    made.process.communicate()
    deadline = time.monotonic() + 30
    while any(map(alive, made.pids())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_agent_tells_of_a_program_that_is_not_there(tmp_path):
    order = json.dumps({"command": ["no-such-program"], "environment": {}}) + "\n"
    command = [sys.executable, "-m", "lepton_jax.launch.agent"]
    done = subprocess.run(command, input=order, capture_output=True, text=True, timeout=60, cwd=pathlib.Path(ROOT))
    assert json.loads(done.stdout) == {"code": 127}
    assert done.stderr == "no-such-program: No such file or directory\n"
