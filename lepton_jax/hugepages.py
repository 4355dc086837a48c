"""Memory in huge pages, for steps on CPUs.

What a step computes on the way is one allocation of hundreds of megabytes, which XLA for CPUs takes from the C library
anew at every step. In pages of 4 KB the kernel has to give it out tens of thousands of times, and the processor looks
up as many (benchmarks.hugepages). glibc asks for pages of 2 MB, where the kernel leaves that to programs, if
`GLIBC_TUNABLES` says so when the process starts: nothing can ask for it later.
"""

import os
import pathlib
import sys

TUNABLES = "GLIBC_TUNABLES"
ASKING = "glibc.malloc.hugetlb=1"
SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again() -> None:
    """Replace this process by the same command with huge pages asked for, where that can help. To be called first.

    Its number, working directory and open files stay. Nothing happens where `GLIBC_TUNABLES` is set to anything, so
    `GLIBC_TUNABLES= python -m ...` leaves the pages small; where JAX is already imported; under a debugger; or where
    the program is not a file that could be run again.
    """
    program = pathlib.Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    fresh = "jax" not in sys.modules and sys.gettrace() is None
    if fresh and program.is_file() and TUNABLES not in os.environ and offered():
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, TUNABLES: ASKING})


def offered() -> bool:
    """Whether this kernel gives huge pages to programs that ask, and this C library (glibc 2.35) can ask."""
    try:
        library, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
        numbers = tuple(map(int, version.split(".")[:2]))
        return library == "glibc" and numbers >= (2, 35) and "[madvise]" in SWITCH.read_text()
    except (OSError, ValueError, AttributeError):
        return False  # another system, or another library
