"""The supervisor, with processes that crash, hang, refuse and save as they are told: real ones, and no JAX in them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lepton_jax.errors import Exit, InputError
from lepton_jax.launch import ledger, settings, verdict

ROOT = pathlib.Path(__file__).parent.parent

# a worker: knows which process of how many it is and which life it leads, and does what the test says
WORKER = """
import json, os, pathlib, signal, subprocess, sys, time
place, code = pathlib.Path(sys.argv[1]), sys.argv[2]
number, count = int(os.environ["LEPTON_PROCESS_ID"]), int(os.environ["LEPTON_PROCESSES"])
address = os.environ["LEPTON_COORDINATOR"]
with (place / f"lives-{number}").open("a") as file:
    file.write(json.dumps([count, address, os.getpid()]) + "\\n")
life = len((place / f"lives-{number}").read_text().splitlines())
def tell(phase, step=None, committed=None):
    path = pathlib.Path(os.environ["LEPTON_PROGRESS"])
    record = {"phase": phase, "step": step, "committed": committed, "time": time.time()}
    path.with_suffix(".part").write_text(json.dumps(record))
    path.with_suffix(".part").replace(path)
def hang():
    time.sleep(600)
exec(code)
"""


class Launched:
    """A supervisor in a process of its own, and what it leaves behind."""

    def __init__(self, place: pathlib.Path, code: str, *flags: str, processes: int = 2):
        self.place, self.log = place, place / "log"
        command = [sys.executable, "-m", "lepton_jax.launch", "--processes", str(processes), "--log", str(self.log)]
        command += ["--backoff", "0.05", "--grace", "20", "--no-probe", *flags, "--"]
        command += [sys.executable, "-S", "-c", WORKER, str(place), code, "--run", str(place / "run")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def ended(self, code: int) -> str:
        out, err = self.process.communicate(timeout=90)
        assert self.process.returncode == code, (out, err)
        assert not any(alive(pid) for pid in self.pids())
        return out

    def lives(self, number: int = 0) -> list[list]:
        path = self.place / f"lives-{number}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> list[int]:
        return [pid for number in range(8) for _, _, pid in self.lives(number)]

    def events(self, kind: str) -> list[dict]:
        rows = map(json.loads, (self.log / "events.jsonl").read_text().splitlines())
        return [row for row in rows if row["event"] == kind]

    def wait(self, name: str) -> None:
        """Until a worker has made this file."""
        deadline = time.monotonic() + 60
        while not (self.place / name).exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def launch(tmp_path):
    made = []

    def started(code: str, *flags: str, processes: int = 2) -> Launched:
        made.append(Launched(tmp_path, code, *flags, processes=processes))
        return made[-1]

    yield started
    for launched in made:
        launched.process.kill()
        launched.process.communicate()


def test_all_done_is_done_and_each_knew_its_place(launch):
    launched = launch("print('hello', number)", processes=3)
    assert "hello 0\n" in launched.ended(0)
    assert (launched.log / "worker-2.log").read_text() == "hello 2\n"
    (lives,) = {json.dumps(launched.lives(number)[0][:2]) for number in range(3)}
    count, address = json.loads(lives)
    assert count == 3
    assert address.startswith("127.0.0.1:")


CRASHES = {
    "an exception": "raise ZeroDivisionError",
    "an exit code": "os._exit(70)",
    "kill -9": "os.kill(os.getpid(), signal.SIGKILL)",
    "a crash in C": "os.kill(os.getpid(), signal.SIGABRT)",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_takes_all_down_and_all_come_back_on_a_new_port(crash, launch):
    launched = launch(f"if life == 1:\n  if number == 1: {CRASHES[crash]}\n  hang()")
    launched.ended(0)
    assert [len(launched.lives(number)) for number in (0, 1)] == [2, 2]
    assert launched.lives()[0][1] != launched.lives()[1][1]
    first = launched.events("exit")[0]
    assert first["process"] == 1
    assert launched.events("restart")[0]["failures"] == 1


def test_what_a_worker_has_started_ends_with_it(launch):
    code = (
        "child = subprocess.Popen(['sleep', '600'])\n"
        "(place / f'child-{life}').write_text(str(child.pid))\n"
        "os._exit(70 * (life == 1))"
    )
    launched = launch(code, processes=1)
    launched.ended(0)
    children = [int((launched.place / f"child-{life}").read_text()) for life in (1, 2)]
    assert not any(map(alive, children))


@pytest.mark.parametrize("code", [2, 65])
def test_what_no_restart_can_help_is_not_restarted(code, launch):
    # whoever says so: the other may have been told of it in another way
    launched = launch(f"tell('step', 1)\nos._exit(70) if number else time.sleep(0.3)\nos._exit({code})")
    launched.ended(code)
    assert len(launched.lives()) == 1


def test_bad_input_leaves_nothing_behind(launch):
    launched = launch("print('error: no', file=sys.stderr)\nos._exit(2)")
    _, err = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 2
    assert err.splitlines()[0] == "error: no"
    assert sorted(path.name for path in launched.place.iterdir()) == ["lives-0", "lives-1"]


def test_preempted_and_saved_comes_back_as_often_as_it_takes(launch):
    launched = launch("os._exit(75 if life < 7 else 0)", "--restarts", "1")
    launched.ended(0)
    assert len(launched.lives()) == 7
    assert {row["failures"] for row in launched.events("restart")} == {0}


def test_while_the_others_save_nobody_is_killed(launch):
    launched = launch(
        "time.sleep(0 if number else 2.5)\n(place / f'saved-{number}').touch()\nos._exit(75 if life == 1 else 0)"
    )
    launched.ended(0)
    assert [row["code"] for row in launched.events("exit")] == [75, 75, 0, 0]
    assert not launched.events("kill")


def test_three_restarts_without_a_new_checkpoint_are_the_end(launch):
    launched = launch("tell('step', 5, 4)\ntime.sleep(0.3)\nos._exit(70)")
    assert "3 restart(s) brought no new checkpoint" in launched.ended(70)
    # the first life committed step 4; three more brought nothing new
    assert len(launched.lives()) == 4
    assert [row["failures"] for row in launched.events("restart")] == [1, 2, 3]


def test_with_new_checkpoints_it_goes_on(launch):
    launched = launch("tell('step', life, life)\ntime.sleep(0.3)\nos._exit(70 if life < 7 else 0)", processes=1)
    launched.ended(0)
    assert len(launched.lives()) == 7
    assert [row["step"] for row in launched.events("commit")] == [1, 2, 3, 4, 5, 6, 7]


STACKS = (
    "import faulthandler\n"
    "file = open(os.environ['LEPTON_PROGRESS'].replace('.json', '.stacks'), 'a')\n"
    "faulthandler.register(signal.SIGUSR1, file, all_threads=True)\n"
)


def test_who_does_not_move_is_asked_for_its_stacks_and_all_start_again(launch):
    steps = "tell('step', 1)\ntime.sleep(0.3)\nif life == 1: hang()"
    launched = launch(STACKS + steps, "--limit", "step=1")
    launched.ended(0)
    assert [len(launched.lives(number)) for number in (0, 1)] == [2, 2]
    (stall,) = launched.events("stall")
    assert (stall["phase"], stall["step"]) == ("step", 1)
    assert len(stall["stacks"]) == 2
    for name in stall["stacks"]:
        assert "in hang" in (launched.log / name).read_text()


def test_the_limit_is_that_of_the_phase_and_a_stopped_process_counts(launch):
    code = (
        "tell('compile')\ntime.sleep(2)\ntell('save', 1)\nos.kill(os.getpid(), signal.SIGSTOP) if life == 1 else None"
    )
    launched = launch(code, "--limit", "start=1.5", "--limit", "save=1", processes=1)
    launched.ended(0)
    (stall,) = launched.events("stall")
    assert (stall["phase"], stall["stacks"]) == ("save", [])


def test_whoever_moves_is_left_alone_however_long_it_takes(launch):
    code = "for step in range(30):\n  tell('step', step)\n  time.sleep(0.1)"
    launched = launch(code, "--limit", "step=1.5", "--limit", "start=30")
    launched.ended(0)
    assert not launched.events("stall")


def test_stalled_for_good_is_124(launch):
    launched = launch("tell('restore')\nhang()", "--limit", "restore=0.3", "--restarts", "1", processes=1)
    launched.ended(124)
    assert len(launched.lives()) == 2


SAVING = (
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (place / f'saved-{number}').touch(), os._exit(75)))\n"
    "(place / f'ready-{number}').touch()\n"
    "hang()"
)


def test_sigterm_reaches_everyone_and_what_is_saved_is_75(launch):
    launched = launch(SAVING)
    launched.wait("ready-0")
    launched.wait("ready-1")
    launched.process.send_signal(signal.SIGTERM)
    launched.ended(75)
    assert (launched.place / "saved-0").exists()
    assert (launched.place / "saved-1").exists()
    assert len(launched.lives()) == 1


def test_sigterm_during_a_pause_is_75(launch):
    launched = launch("os._exit(70)", "--backoff", "60")
    deadline = time.monotonic() + 60
    while not (launched.log / "events.jsonl").exists() or not launched.events("restart"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    launched.process.send_signal(signal.SIGTERM)
    launched.ended(75)


def test_who_does_not_leave_in_time_is_killed(launch):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell('step', 1)\n(place / f'ready-{number}').touch()\nhang()"
    launched = launch(code, "--grace", "0.5")
    launched.wait("ready-0")
    launched.wait("ready-1")
    launched.process.send_signal(signal.SIGTERM)
    launched.ended(70)
    assert launched.events("kill")[0]["processes"] == [0, 1]


def test_ctrl_c_is_130_and_twice_is_at_once(launch):
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n(place / f'ready-{number}').touch()\nhang()"
    launched = launch(code, processes=1)
    launched.wait("ready-0")
    launched.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert launched.process.poll() is None
    launched.process.send_signal(signal.SIGINT)
    launched.ended(130)


def test_a_supervisor_that_is_killed_takes_its_workers_along(launch):
    launched = launch("(place / f'ready-{number}').touch()\nhang()")
    launched.wait("ready-0")
    launched.wait("ready-1")
    launched.process.kill()
    launched.process.communicate()
    deadline = time.monotonic() + 30
    while any(map(alive, launched.pids())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_where_a_start_fails_fewer_come_back_and_later_all(launch):
    # four cannot start; three train and crash; then all four are back
    code = "life == 1 and os._exit(1)\ntell('step', 1, count)\ntime.sleep(0.3)\nos._exit(0 if count == 4 else 70)"
    launched = launch(code, "--min-processes", "1", processes=4)
    launched.ended(0)
    assert [count for count, _, _ in launched.lives()] == [4, 3, 4]


MEMBERS = {
    "done": ("", 0),
    "refused": ("os._exit(2)", 2),
    "saved": ("os._exit(75)", 75),
    "a crash": ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    "stuck": ("tell('step', 1)\nhang()", 124),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_a_member_keeps_the_schedulers_settings_and_leaves_restarts_to_it(case, launch, monkeypatch):
    code, expected = MEMBERS[case]
    settings = {"LEPTON_COORDINATOR": "10.0.0.1:8476", "LEPTON_PROCESSES": "4", "LEPTON_PROCESS_ID": "3"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    launched = launch(code, "--member", "--limit", "step=0.5", processes=1)
    launched.ended(expected)
    assert [life[:2] for life in launched.lives(3)] == [[4, "10.0.0.1:8476"]]
    assert not (launched.log / "events.jsonl").exists()
    assert (launched.log / "process-3" / "events.jsonl").exists() == (expected != 2)


def test_a_program_that_is_gone_is_a_failure_like_another(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nrm -f $0\nexit 70\n")
    program.chmod(0o755)
    command = [sys.executable, "-m", "lepton_jax.launch", "--log", str(tmp_path / "log"), "--backoff", "0.05"]
    command += ["--no-probe", "--restarts", "2", "--", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 70, done.stderr
    assert done.stdout.count("could not be started: No such file or directory") == 2


def test_the_coordinator_listens_on_loopback_whatever_was_said_for_another_run(launch, monkeypatch):
    monkeypatch.setenv("LEPTON_COORDINATOR_BIND", "0.0.0.0:8476")
    launched = launch("print('LEPTON_COORDINATOR_BIND' in os.environ, os.environ['NCCL_SOCKET_IFNAME'])")
    assert "False lo" in launched.ended(0)


def test_the_ledger_tells_what_was_kept_and_what_was_lost(launch):
    code = (
        "tell('compile'); time.sleep(0.5); tell('step', 1); time.sleep(0.5)\n"
        "if life == 1: os._exit(70)\n"
        "tell('save', 1, 1); time.sleep(0.5)"
    )
    launched = launch(code, processes=1)
    launched.ended(0)
    (end,) = launched.events("end")
    seconds = end["ledger"]
    assert set(seconds) == set(ledger.KINDS)
    # of two halves of a second in steps the first is lost, with the pause before the restart
    assert seconds["compile"] > 0.8
    assert 0.3 < seconds["productive"] < seconds["compile"]
    assert seconds["lost"] > 0.3
    assert seconds["save"] > 0.3
    times = [row["time"] for row in map(json.loads, (launched.log / "events.jsonl").read_text().splitlines())]
    assert times[-1] - times[0] - 0.5 < sum(seconds.values()) < times[-1] - times[0] + 2


# With JAX in the workers, once

TRAINING = """
import os, pathlib, signal, sys, time
import lepton_jax as lp

def main(config):
    import jax, numpy as np
    from lepton_jax import progress
    place, number = pathlib.Path(config.run).parent, jax.process_index()
    (place / f"life-{number}").open("a").write("x")
    life = (place / f"life-{number}").stat().st_size
    mesh, told = lp.mesh.make(config.mesh), progress.reporter()
    add = jax.jit(lambda batch: batch["x"].sum(), out_shardings=lp.mesh.replicated(mesh))
    rows = {"x": np.arange(8 // jax.process_count(), dtype=np.float32) + 8 // jax.process_count() * number}
    for step in range(1, 4):
        total = float(add(lp.mesh.place(rows, mesh)))
        told.progress(step)
        told.committed(10 * life + step)
        if step == 2 and number == 1 and life == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and number == 1 and life == 2:
            stuck()
    print("sum", total, "of", jax.process_count(), "processes with", jax.local_device_count(), "devices", flush=True)

def stuck():
    time.sleep(600)

lp.cli.run(main, lp.cli.Config, {"digits": lp.cli.Config()})
"""


def test_real_processes_come_back_from_a_death_and_from_a_process_that_is_stuck(tmp_path):
    log = tmp_path / "run" / "launch"
    command = [sys.executable, "-m", "lepton_jax.launch", "--processes", "2", "--limit", "step=4", "--no-probe", "--"]
    command += [sys.executable, "-c", TRAINING, "--mesh", "8x1", "--run", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "sum 28.0 of 2 processes with 4 devices" in done.stdout
    events = [json.loads(line) for line in (log / "events.jsonl").read_text().splitlines()]
    assert events[1]["event"] == "commit"
    first = next(row for row in events if row["event"] == "exit")
    assert (first["process"], first["code"]) == (1, -signal.SIGKILL)
    (stall,) = (row for row in events if row["event"] == "stall")
    assert stall["phase"] == "step"
    (name,) = (name for name in stall["stacks"] if name.endswith("-1.txt"))
    assert "in stuck" in (log / name).read_text()


# The parts, without processes


def test_a_ledger_keeps_what_a_checkpoint_holds():
    now = [100.0]
    book = ledger.Ledger(lambda: now[0])
    for phase, seconds in (("start", 1), ("restore", 2), ("compile", 3), ("step", 10), ("save", 1)):
        book.spend(phase, seconds)
    book.keep()
    book.spend("step", 5)
    book.spend("evaluation", 2)
    book.spend("compile", 1)
    book.lose()
    now[0] += 25 + 4  # four more than was counted
    book.settle("lost")
    book.settle("lost")
    assert book.seconds() == {
        "productive": 10, "compile": 4, "save": 1, "restore": 2, "evaluation": 0, "start": 1, "lost": 11
    }  # fmt: skip
    assert ledger.told(book.seconds()).startswith("productive 34%")


VERDICTS = {
    "all done": ([(1, 0), (0, 0)], (0, 0)),
    "the first to fail speaks": ([(0, 0), (1, -9), (2, -6)], (1, -9)),
    "a refusal is heard among crashes": ([(1, -6), (0, 2)], (0, 2)),
    "damage is heard among crashes": ([(1, 70), (0, 65)], (0, 65)),
    "a refusal before damage": ([(1, 65), (0, 2)], (0, 2)),
    "saved, and then killed": ([(0, 75), (1, -9)], (0, 75)),
    "nobody": ([], (0, 0)),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_one_code_speaks_for_all(case):
    left, expected = VERDICTS[case]
    assert verdict.verdict(left) == expected


STOPPED = {
    "all saved": ([(0, 75), (1, 75)], signal.SIGTERM, True, 75),
    "done just then": ([(0, 0), (1, 0)], signal.SIGTERM, True, 0),
    "refused": ([(0, 2), (1, -15)], signal.SIGTERM, False, 2),
    "ended while it trained": ([(0, -15), (1, -15)], signal.SIGTERM, True, 70),
    "ended before its first step": ([(0, -15), (1, 75)], signal.SIGTERM, False, 75),
    "killed before its first step": ([(0, -9)], signal.SIGTERM, False, 70),
    "nothing ran": ([], signal.SIGTERM, False, 75),
    "Ctrl-C": ([(0, 130), (1, 130)], signal.SIGINT, True, 130),
    "Ctrl-C while nothing ran": ([], signal.SIGINT, False, 130),
}


@pytest.mark.parametrize("case", STOPPED)
def test_what_becomes_of_a_group_that_was_asked_to_stop(case):
    left, by, trained, expected = STOPPED[case]
    assert verdict.stopped(left, by, trained) == expected


def test_every_code_can_be_told():
    for code in range(-64, 256):
        assert verdict.described(code)
    assert verdict.described(-9) == "was ended by SIGKILL"
    assert verdict.described(75) == "was asked to stop and has saved (code 75)"


def test_delays_double_and_are_bounded():
    assert [verdict.delay(failures, 1.0) for failures in (0, 1, 2, 3, 4)] == [1, 1, 2, 4, 8]
    assert verdict.delay(1000, 1.0) == verdict.LONGEST_DELAY


def test_the_devices_of_a_command():
    assert verdict.devices(["python", "-m", "x", "--mesh", "4x2"]) == 8
    assert verdict.devices(["x", "--mesh=data=2,fsdp=2,model=2"]) == 8
    assert verdict.devices(["x", "--mesh", "auto"]) is None
    assert verdict.devices(["x"]) is None
    assert verdict.counts(8, 1, 8) == [8, 4, 2, 1]
    assert verdict.counts(6, 2, None) == [6, 5, 4, 3, 2]


def test_a_command_without_a_run_directory_gets_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (["python", "-m", "experiments.vit"], ["vit"], ["/opt/vit.sh"]):
        command, run = settings.with_run(given)
        assert command == [*given, "--run", str(run)]
        assert run.parts[0] == "runs"
        assert run.name.startswith("vit-2")
    assert settings.with_run(["x", "--run=a/b"]) == (["x", "--run=a/b"], pathlib.Path("a/b"))
    assert settings.parse(["--", sys.executable, "--run", "a/b"]).log == pathlib.Path("a/b/launch")
    assert not list(tmp_path.iterdir())


REFUSED = {
    "--processes 2": ("no command after --", "-- python -m experiments.resnet"),
    "--processes 2 --": ("no command after --", "-- python -m experiments.resnet"),
    "--processes 0 -- python3": ("--min-processes 0 and --processes 0", "at least 1"),
    "--processes 2 --min-processes 3 -- python3": ("--min-processes 3 and --processes 2", "at most"),
    "--process 2 -- python3": ("unrecognized arguments: --process 2", "--help"),
    "--processes two -- python3": ("invalid int value: 'two'", "--help"),
    "--limit steps=3 -- python3": ("unknown phase of --limit 'steps'", "'step'"),
    "--limit step=0 -- python3": ("--limit step=0 is not a number of seconds above 0", "step=60"),
    "--limit step -- python3": ("--limit step is not a number", "step=60"),
    "--grace nan -- python3": ("--grace nan", "leave --grace out"),
    "--processes 3 -- python3 --mesh 8x1": ("8 device(s) of the mesh cannot be split over 3", "divides"),
    "--processes 2 --devices 0,1,2 -- python3": ("3 device(s) of --devices cannot be split over 2", "divides"),
    "--devices 0,0 -- python3": ("--devices '0,0' has an empty or a repeated entry", "once"),
    "-- no-such-program": ("'no-such-program' is not a program", "--processes 2"),
    "--member -- python3": ("--member: the command names no --run", "add --run DIR"),
    "--member --processes 2 -- python3 --run x": ("--member is one process", "leave them out"),
    "--processes 3 --hosts a,b -- python3": ("--hosts names 2 machine(s) for 3 process(es)", "name more"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_bad_flags_are_two_lines(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem, remedy = REFUSED[line]
    with pytest.raises(InputError) as error:
        settings.parse(line.split())
    assert problem in error.value.problem
    assert remedy in error.value.remedy
    assert not list(tmp_path.iterdir())


def test_a_real_supervisor_refuses_with_2(tmp_path):
    command = [sys.executable, "-m", "lepton_jax.launch", "--log", str(tmp_path / "file" / "log"), "--", sys.executable]
    (tmp_path / "file").touch()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == Exit.BAD_INPUT
    assert done.stderr.splitlines() == [
        f"error: --log {tmp_path / 'file' / 'log'} cannot be written: Not a directory",
        "name another directory with --log",
    ]


def test_the_supervisor_needs_the_standard_library_alone():
    program = (
        "import sys; import lepton_jax.launch.__main__;"
        "print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    clean = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(ROOT), *lazy_loader_place()]!r}; {program}"]
    done = subprocess.run(clean, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"__main__", "lepton_jax", "lazy_loader"}  # the last is what makes names lazy


def lazy_loader_place() -> list[str]:
    import lazy_loader

    return [str(pathlib.Path(lazy_loader.__file__).parent.parent)]
