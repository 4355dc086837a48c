"""Real processes that are killed and asked to leave, at named points: the run ends as if nothing had happened.

The short form; `python -m benchmarks.faults --long` has every point, in either of two processes and in both.
"""

import os
import pathlib
import signal

import pytest

from benchmarks import faulted, faults
from lepton_jax.errors import Exit

ALONE = (
    "runs:create:after:1",
    "train:evaluated:before:1",
    "checkpoint:Checkpoints.save:after:1",
    "manifest:entry:after:3",
    "checkpoint:Checkpoints.should_preserve:before:3",
    "runs:replace:before:2",
)
TOGETHER = (("mesh:fed:after:9", (1,)), ("checkpoint:Checkpoints.save:after:2", (0, 1)))
ASKED = ("step:compile:before:1", "mesh:fed:after:9", "checkpoint:Checkpoints.save:after:1")


def machine(directory: pathlib.Path, processes: int) -> faulted.Machine:
    return faulted.Machine(directory, processes, "2x1", pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(where runs of one process are made, what the undisturbed one left)."""
    made = machine(tmp_path_factory.mktemp("alone"), 1)
    assert made.ended(made.started(made.directory / "whole")) == [0]
    return made, faulted.outcome(made.directory / "whole")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same of two processes."""
    made = machine(tmp_path_factory.mktemp("together"), 2)
    assert made.ended(made.started(made.directory / "whole")) == [0, 0]
    return made, faulted.outcome(made.directory / "whole")


@pytest.mark.parametrize("point", ALONE)
def test_killed_at_a_point(point, alone):
    made, whole = alone
    fault = faulted.killed(made, made.directory / point.replace(":", "-"), (0,), faults.PACKAGE + point, whole)
    assert fault.codes == (-signal.SIGKILL,)
    assert not fault.wrong


@pytest.mark.parametrize(("point", "target"), TOGETHER)
def test_one_of_two_killed_or_both(point, target, together):
    made, whole = together
    fault = faulted.killed(made, made.directory / point.replace(":", "-"), target, faults.PACKAGE + point, whole)
    assert fault.hit
    assert not fault.wrong


@pytest.mark.parametrize("point", ASKED)
def test_asked_to_leave_at_a_point(point, alone):
    """Also while the compiler holds the main thread."""
    made, whole = alone
    fault = faulted.terminated(made, made.directory / f"term-{point.replace(':', '-')}", faults.PACKAGE + point, whole)
    assert fault.codes == (Exit.PREEMPTED,)
    assert not fault.wrong


def test_another_number_of_processes_sees_every_example_once(together):
    made, _ = together
    fault = faulted.elastic(made, (1, 2), made.directory / "elastic", faults.LEAVES[:1])
    assert not fault.wrong


def test_a_second_run_in_the_directory_of_a_living_one_is_refused(alone, tmp_path):
    made, _ = alone
    run = tmp_path / "run"
    first = made.started(run, (0,), faults.PACKAGE + "mesh:fed:after:3", signal.SIGSTOP)
    try:
        assert faulted.waited_for_stop(first[0])
        assert made.ended(made.started(run)) == [2]
        said = (tmp_path / "run.output-0").read_text()
        assert f"another run is going on in {run} (process {first[0].pid} on " in said
        assert "Traceback" not in said
    finally:
        first[0].kill()
        first[0].join()


def test_every_point_exists():
    """Else a fault that is never reached would pass."""
    import importlib

    for point in faults.POINTS:
        module, name, when, count = (faults.PACKAGE + point).split(":")
        holder = importlib.import_module(module)
        for part in name.split("."):
            holder = getattr(holder, part)
        assert callable(holder)
        assert (when in ("before", "after"), int(count) > 0) == (True, True)
    assert len(set(faults.POINTS)) >= 30
