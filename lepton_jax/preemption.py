"""SIGTERM as a request to leave: save what has been trained, and exit with 75, to be started again.

While nothing has been trained that is not saved (reading data, compiling) the process leaves at once, also out of a
compiler that holds the interpreter's main thread. From the first step on the loop asks after every step, and saves.
Of several processes one may be asked; they agree on a step by JAX's preemption service.
"""

import os
import signal
import sys
import threading

from lepton_jax.errors import Exit

_asked = threading.Event()
_unsaved = threading.Event()
_watched = threading.Event()


def watch() -> None:
    """Heed SIGTERM from here on. Does nothing outside of the main thread, where signals cannot be had."""
    if threading.current_thread() is not threading.main_thread() or _watched.is_set():
        return
    _watched.set()
    # a handler in Python waits until the main thread is back from C++; the byte in this pipe does not
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reading,), daemon=True).start()


def _listen(reading: int) -> None:
    while True:
        if signal.SIGTERM in os.read(reading, 64):
            _asked.set()
            if not _unsaved.is_set():
                print("\npreempted  before a step was trained; nothing is lost", file=sys.stderr, flush=True)
                os._exit(Exit.PREEMPTED)


def is_asked(step: int) -> bool:
    """Whether to save the state of this step and leave: the same answer in every process. Call it at every step."""
    import jax

    _unsaved.set()
    if jax.process_count() == 1:
        return _asked.is_set()
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
