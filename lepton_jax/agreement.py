"""What the processes of one run have to agree on: what one of them knows, told to all.

Alone in a run, a process agrees with itself, and nothing is sent.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lepton_jax.errors import DamagedError, InputError

# what the first process may raise, by name, as it travels to the others
ERRORS = {kind.__name__: kind for kind in (InputError, DamagedError)}


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def shared(ask: Callable[[], Any]) -> Any:
    """What the first process answers, in every process: anything that JSON can say.

    Where it raises InputError there, or DamagedError, it does so in all, so that none waits for one that has left.
    """
    if jax.process_count() == 1:
        return ask()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": ask()}
        except InputError as error:
            answer = {"error": type(error).__name__, "lines": (error.problem, error.remedy)}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if "error" in answer:
        raise ERRORS[answer["error"]](*answer["lines"])
    return answer["value"]


def all_of(holds: bool) -> bool:
    """Whether it holds in every process."""
    if jax.process_count() == 1:
        return holds
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))


def least(number: float) -> float:
    """The least of what the processes have."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    # as text of fixed length: arrays would round it to float32
    said = np.frombuffer(number.hex().ljust(32).encode(), np.uint8)
    return min(float.fromhex(bytes(row).decode()) for row in multihost_utils.process_allgather(said).astype(np.uint8))


def together(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _broadcast(content: bytes) -> bytes:
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    block = np.zeros(length, np.uint8)
    block[: len(content)] = np.frombuffer(content, np.uint8)[:length]
    return np.asarray(multihost_utils.broadcast_one_to_all(block)).astype(np.uint8).tobytes()
