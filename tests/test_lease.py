"""One run in a directory at a time, and no lease outlives its owner."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import lepton_jax as lp
from lepton_jax import lease

HOLDING = """
import pathlib, sys, time
from lepton_jax import lease
with lease.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(lp.InputError, match=f"process {other.pid} on ") as caught, lease.held(tmp_path):
            pass
        assert str(tmp_path) in caught.value.problem
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lease.held(tmp_path):  # the dead hold nothing
        assert json.loads((tmp_path / lease.NAME).read_text())["process"] == os.getpid()


def test_it_can_be_held_again_after_it_was_given_back(tmp_path):
    for _ in range(2):
        with lease.held(tmp_path):
            pass
    assert (tmp_path / lease.NAME).read_text() == ""


@pytest.mark.parametrize(("age", "refused"), [(1.0, True), (lease.STALE + 1, False)])
def test_the_lease_of_a_machine_whose_locks_are_not_seen_expires(age, refused, tmp_path):
    path = tmp_path / lease.NAME
    path.write_text(json.dumps({"host": "another", "process": 7, "since": "2026-01-01T00:00:00"}))
    os.utime(path, (time.time() - age,) * 2)
    if refused:
        with pytest.raises(lp.InputError, match="process 7 on another") as caught, lease.held(tmp_path):
            pass
        assert "its lease ends in" in caught.value.remedy
    else:
        with lease.held(tmp_path):
            pass


def test_it_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "EVERY", 0.01)
    with lease.held(tmp_path):
        path = tmp_path / lease.NAME
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1
