"""A lease on a run directory: two runs in one would overwrite each other without a word.

The owner holds a lock on RUN/.lease, which the operating system takes back when its process dies, kill -9 included, and
renews the file's date. A machine that does not see the other's locks goes by that date.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from lepton_jax.errors import InputError

NAME = ".lease"
EVERY = 5.0  # seconds between renewals
STALE = 60.0  # seconds without a renewal after which another machine's lease has expired


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
    """Hold the lease on a directory. Raises InputError where another run holds it."""
    with (directory / NAME).open("a+", encoding="utf-8") as lease:
        owner, age = _owner(lease), time.time() - os.stat(lease.fileno()).st_mtime
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(*_taken(directory, owner)) from None
        if owner.get("host", socket.gethostname()) != socket.gethostname() and age < STALE:
            problem, _ = _taken(directory, owner)
            raise InputError(problem, f"wait for it; if that machine is gone, its lease ends in {STALE - age:.0f} s")
        since = datetime.datetime.now().isoformat(timespec="seconds")
        _write(lease, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}))
        ended = threading.Event()
        renewing = threading.Thread(target=_renew, args=(lease, ended), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            _write(lease, "")


def _write(lease: TextIO, content: str) -> None:
    """In place: a new file would not be the one that is locked."""
    lease.seek(0)
    lease.truncate()
    lease.write(content)
    lease.flush()


def _renew(lease: TextIO, ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        with contextlib.suppress(OSError):
            os.utime(lease.fileno())


def _owner(lease: TextIO) -> dict[str, Any]:
    """Who holds the lease, or held it when it died."""
    lease.seek(0)
    with contextlib.suppress(ValueError):
        found = json.loads(lease.read())
        return found if isinstance(found, dict) else {}
    return {}


def _taken(directory: pathlib.Path, owner: dict[str, Any]) -> tuple[str, str]:
    by = f" (process {owner['process']} on {owner['host']}, since {owner['since']})" if "process" in owner else ""
    return (
        f"another run is going on in {directory}{by}",
        "wait for it or stop it, or choose another --run; the same command then goes on",
    )
