"""Reading ahead in threads, in order, so that the number of threads changes the time and nothing else."""

import os
from collections.abc import Callable, Generator
from typing import Any

THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Calls:
    """`function(start)`, `function(start + 1)` ... as the random-access source that grain reads."""

    def __init__(self, function: Callable[[int], Any], start: int, stop: int):
        self.function, self.start, self.stop = function, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Any:
        return self.function(self.start + int(index))


def ahead(function: Callable[[int], Any], start: int, stop: int, threads: int = THREADS) -> Generator[Any, None, None]:
    """`function(i)` for i in start..stop-1, in order, up to `threads` of them ahead of being asked for.

    0 threads compute on demand. An exception in a thread is raised where its value would have come. The
    threads end with the iterator, also when it is closed early.
    """
    if threads == 0:
        yield from map(function, range(start, stop))
    if threads == 0 or start >= stop:
        return
    import grain

    # A buffer of one per thread: a batch can be large, and a thread with nothing to do costs nothing.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    calls = grain.MapDataset.source(_Calls(function, start, stop))
    iterator = iter(calls.to_iter_dataset(options))
    try:
        for value in iterator:  # noqa: UP028  (yield from would hand `send` and `throw` on to grain)
            yield value
    finally:
        iterator.close()
