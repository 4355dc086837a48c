"""How long functions take, side by side."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call, [rounds]: the functions in turn, A B A B ..., after one uncounted round.

    Each function has to return only when its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            before = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - before)
    return {name: np.array(values) for name, values in seconds.items()}
