"""One process of a run in which something goes wrong at a named point; what benchmarks.faults and its tests start.

A point is MODULE:NAME:WHEN:COUNT, `lepton_jax.checkpoint:Checkpoints.save:after:2` being the end of the second save.
Nothing in the library knows of it: the function is wrapped from outside. Processes are forked from a server that has
imported the libraries and started nothing, which saves seconds for each; a kill -9 is a real one.
"""

import functools
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

PRELOADED = ("lepton_jax.experiment", "experiments.resnet", "orbax.checkpoint", "tyro", "sklearn.datasets", "grain")


def server() -> ForkServerContext:
    """Where processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preloaded"])
    return context


def begun(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: str,
    point: str | None = None,
    what: int = signal.SIGKILL,
) -> BaseProcess:
    """`python -m experiments.resnet ARGUMENTS` in a process of its own, which gets a signal from itself at a point."""
    process = server().Process(target=run, args=(list(arguments), dict(environment), output, point, what))
    process.start()
    return process


def run(arguments: list[str], environment: dict[str, str], output: str, point: str | None, what: int) -> None:
    """The process."""
    os.setsid()
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
    sys.argv = ["experiments.resnet", *arguments]
    import jax

    from experiments import resnet
    from lepton_jax import cli, data

    if cache := environment.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache)  # JAX has read the environment in the server
    if path := environment.get("SAMPLES"):
        data.Stream.batch = noted(data.Stream.batch, path)
    if point:
        inject(point, lambda: os.kill(os.getpid(), what))
    cli.run(resnet.main, resnet.Config, resnet.PRESETS)
    cli.leave(0)


def noted(batch: Callable[..., Any], path: str) -> Callable[..., Any]:
    """`Stream.batch`, which writes for every step how many examples it gave, and which."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noting(stream: Any, step: int) -> Any:
        found = batch(stream, step)
        os.write(file, f"{step} {len(found['index'])} {','.join(map(str, found['index'].tolist()))}\n".encode())
        return found

    return noting


def inject(point: str, act: Callable[[], None]) -> None:
    """Wrap the function of a point, to act before or after its so-manieth call."""
    module, name, when, count = point.split(":")
    holder: Any = importlib.import_module(module)
    *owners, last = name.split(".")
    for owner in owners:
        holder = getattr(holder, owner)
    function, calls = getattr(holder, last), 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        here = calls == int(count)
        if here and when == "before":
            act()
        result = function(*args, **kwargs)
        if here and when == "after":
            act()
        return result

    setattr(holder, last, wrapped)
