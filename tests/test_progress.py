"""The progress file: always whole, up to date where the phase changes, and never a reason to stop."""

import json
import os
import subprocess
import sys
import time

import pytest

from lepton_jax import progress


@pytest.fixture
def told(tmp_path):
    return progress.Progress(tmp_path / "worker-0.json")


def read(tmp_path):
    record = json.loads((tmp_path / "worker-0.json").read_text())
    assert abs(record.pop("time") - time.time()) < 60
    return record


def test_a_run_is_told_phase_by_phase(tmp_path, told):
    told.enter("restore")
    assert read(tmp_path) == {"phase": "restore", "step": None, "committed": None}
    told.stage("compiling")
    assert read(tmp_path)["phase"] == "compile"
    told.progress(1)
    assert read(tmp_path) == {"phase": "step", "step": 1, "committed": None}
    told.stage("evaluating")
    assert read(tmp_path) == {"phase": "evaluation", "step": 1, "committed": None}
    told.sync()
    assert read(tmp_path)["phase"] == "save"
    told.committed(1)
    assert read(tmp_path) == {"phase": "save", "step": 1, "committed": 1}
    told.progress(2)
    assert read(tmp_path) == {"phase": "step", "step": 2, "committed": 1}
    told.close()
    assert read(tmp_path)["phase"] == "evaluation"
    assert [path.name for path in tmp_path.iterdir()] == ["worker-0.json"]


def test_every_phase_that_a_stage_names_is_known():
    assert set(progress.STAGES.values()) <= set(progress.PHASES)


def test_steps_are_written_seldom_and_seen_in_the_end(tmp_path, told, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen = []
    for step in range(1, 101):
        told.progress(step)
        seen.append(read(tmp_path)["step"])
        now[0] += 0.01
    # a hundred steps in one second are written every 0.2 s of it
    assert seen[0] == 1
    assert len(set(seen)) in (5, 6)
    assert seen[-1] >= 80


def test_without_a_path_and_without_a_disk_training_goes_on(tmp_path):
    for path in (None, tmp_path / "gone" / "worker-0.json"):
        told = progress.Progress(path)
        told.progress(1)
        told.committed(1)
    assert not list(tmp_path.iterdir())


def test_on_a_signal_the_stacks_are_written_and_the_process_lives(tmp_path):
    program = (
        "import os, signal\n"
        "from lepton_jax import progress\n"
        "progress.dump_stacks_on_signal()\n"
        "def stuck(): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "stuck()\n"
        "progress.reporter().enter('compile')\n"
    )
    environment = {**os.environ, "LEPTON_PROGRESS": str(tmp_path / "worker-0.json")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read(tmp_path)["phase"] == "compile"
    stacks = progress.stacks(tmp_path / "worker-0.json").read_text()
    assert "in stuck" in stacks
