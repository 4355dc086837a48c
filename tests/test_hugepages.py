"""A command starts again with huge pages where the kernel and the C library give them, and only there."""

import os
import pathlib
import subprocess
import sys

import pytest

from lepton_jax import hugepages

PROGRAM = """
import os, pathlib, sys
from lepton_jax import hugepages

switch, library, *words = sys.argv[1:]
hugepages.SWITCH = pathlib.Path(switch)
os.confstr = lambda _: library
hugepages.start_again()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *words)
"""

FAULTS = """
import resource
from lepton_jax import hugepages

hugepages.start_again()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
text = b"1" * (64 << 20)  # not by NumPy, which asks for huge pages itself
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kilobytes = next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
print(faults, len(text) // 4096 - int(kilobytes) // 4)
"""


@pytest.fixture
def switch(tmp_path):
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def told(*command, tunables=None, text=None):
    """(the number that the process was started with, what it printed)."""
    environment = {name: value for name, value in os.environ.items() if name != hugepages.TUNABLES}
    environment |= {} if tunables is None else {hugepages.TUNABLES: tunables}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *map(str, command)], env=environment, **pipes) as process:
        out, _ = process.communicate(text, timeout=60)
    assert process.returncode == 0
    return process.pid, out.rstrip("\n")


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_the_same_command_starts_again_under_its_number(program, switch):
    pid, out = told("-W", "error", program, switch, "glibc 2.36", "one", "two words", "")
    assert out == f"{pid} {hugepages.ASKING} one two words "


@pytest.mark.parametrize(
    ("state", "library"),
    [
        ("[always] madvise never\n", "glibc 2.36"),
        ("always madvise [never]\n", "glibc 2.36"),
        ("always [madvise] never\n", "glibc 2.34"),
        ("always [madvise] never\n", "musl 1.2"),
        ("always [madvise] never\n", "another"),
    ],
)
def test_it_does_not_where_that_helps_nothing(program, switch, state, library):
    switch.write_text(state)
    pid, out = told(program, switch, library)
    assert out == f"{pid} None"


def test_it_does_not_where_the_kernel_has_no_such_switch(program, tmp_path):
    pid, out = told(program, tmp_path / "absent", "glibc 2.36")
    assert out == f"{pid} None"


@pytest.mark.parametrize("tunables", ["", "glibc.malloc.arena_max=1"])
def test_it_leaves_tunables_that_are_set_alone(program, switch, tunables):
    pid, out = told(program, switch, "glibc 2.36", tunables=tunables)
    assert out == f"{pid} {tunables}"


def test_it_does_not_where_the_program_came_by_a_pipe(switch):
    pid, out = told("-", switch, "glibc 2.36", text=PROGRAM)
    assert out == f"{pid} None"


def test_it_does_not_once_jax_is_imported(tmp_path, switch):
    path = tmp_path / "late.py"
    path.write_text(f"import jax\n{PROGRAM}")
    pid, out = told(path, switch, "glibc 2.36")
    assert out == f"{pid} None"


def test_what_is_large_then_lies_on_huge_pages(tmp_path):
    if not hugepages.offered():
        pytest.skip("this kernel or C library gives no huge pages to programs that ask")
    path: pathlib.Path = tmp_path / "faults.py"
    path.write_text(FAULTS)
    (small, _), (huge, missing) = (map(int, told(path, tunables=tunables)[1].split()) for tunables in ("", None))
    assert small > 16_000 > 2 * huge
    assert 20 * (huge - max(missing, 0)) < 16_000  # where memory lies in pieces, not all of it can be huge
