"""The command line: flags over presets, and errors in two lines.

Everything here runs before JAX starts, because device counts cannot change afterwards.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import io
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lepton_jax import hugepages, preemption, processes, progress, several
from lepton_jax.config import PRECISIONS as PRECISIONS
from lepton_jax.config import Config as Config
from lepton_jax.config import flag as flag
from lepton_jax.errors import Exit, InputError, PreemptedError, unknown

C = TypeVar("C", bound=Config)


def parse(config: type[C], presets: Mapping[str, C], arguments: list[str], program: str) -> C:
    """The configuration that the arguments ask for: the preset's values, overridden by flags. Raises InputError."""
    import tyro

    names = [a.split("=", 1)[1] for a in arguments if a.startswith("--preset=")]
    names += [b for a, b in itertools.pairwise(arguments) if a == "--preset"]
    name = names[-1] if names else next(iter(presets))
    if name not in presets:
        raise unknown("preset", name, presets)
    chosen = dataclasses.replace(presets[name], preset=name)
    description = f"{config.__doc__} presets: {', '.join(presets)}."
    with refusing(program):
        settings, strangers = tyro.cli(
            config,
            default=chosen,
            args=arguments,
            prog=program,
            description=description,
            return_unknown_args=True,
        )
    if strangers:
        raise _unknown_flag(strangers[0], config, program)
    return settings


@contextlib.contextmanager
def refusing(program: str) -> Iterator[None]:
    """Turns what tyro refuses, with a box and an exit, into an InputError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise  # --help
        raise InputError(unboxed(said.getvalue()), f"{program} --help lists every flag and its values") from None


def unboxed(text: str) -> str:
    """The message in a box that tyro drew: what stands above its first rule, on one line."""
    rows = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    above = itertools.takewhile(lambda row: not row.startswith("─"), rows)
    message = " ".join(" ".join(above).split()) or " ".join(text.split())
    return message[:1].lower() + message[1:]


def _unknown_flag(stranger: str, config: type[C], program: str) -> InputError:
    flags = [flag(field.name) for field in dataclasses.fields(config)]
    nearest = difflib.get_close_matches(stranger.split("=")[0], flags, n=1, cutoff=0.7)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return InputError(f"unknown argument {stranger!r}", f"{hint}{program} --help lists every flag and its values")


def run(main: Callable[[C], Any], config: type[C], presets: Mapping[str, C]) -> None:
    """Do what the command line asks for; where that fails, exit with the code of `outcome`."""
    hugepages.start_again()
    preemption.watch()
    if "--debug" not in sys.argv:
        # what a library's thread could not raise is behind an error that is shown, or behind none
        sys.unraisablehook = lambda _: None
    if code := ended(lambda: outcome(main, config, presets, sys.argv[1:])):
        leave(code)


def ended(action: Callable[[], int]) -> int:
    """The exit code that an action gives; of an error that nobody expected, which is shown, Exit.INTERNAL."""
    try:
        return action()
    except Exception as error:
        # shown as Python would, but left at once: a process of several would wait 300 s for its peers to end as well
        traceback.print_exc()
        return error.code if isinstance(error, InputError) else Exit.INTERNAL


def outcome(main: Callable[[C], Any], config: type[C], presets: Mapping[str, C], arguments: list[str]) -> int:
    """Parse the arguments and run `main`: the exit code of `guarded`."""
    program = _program(main)

    def act() -> None:
        settings = parse(config, presets, arguments, program)
        settings.check()
        # JAX takes seconds to start, and silence looks like a fault
        print(f"starting   {program.split()[-1]}, preset {settings.preset}, seed {settings.seed}", flush=True)
        _before_jax(settings)
        several.run(main, settings, program.split(".")[-1])

    return guarded(act, debug="--debug" in arguments)


def command(*functions: Callable[..., Any]) -> None:
    """Call a function with the command line's flags as its arguments; of several, the one that the first word names.

    Where that fails, exit with the code of `guarded`.
    """
    hugepages.start_again()
    if code := guarded(lambda: call(*functions, arguments=sys.argv[1:])):
        leave(code)


def call(*functions: Callable[..., Any], arguments: list[str]) -> Any:
    """What `command` calls, and its result. Raises InputError for arguments that the function does not take."""
    import tyro

    program = _program(functions[0])
    # bound first and called after, so that what the function prints and raises is its own
    bindings = {function.__name__: _binding(function) for function in functions}
    with refusing(program):
        if len(bindings) == 1:
            bound: Any = tyro.cli(*bindings.values(), args=arguments, prog=program)
        else:
            bound = tyro.extras.subcommand_cli_from_dict(bindings, args=arguments, prog=program)
    return bound()


def _binding(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **kwargs)

    return bind


def imported(name: str, parts: Sequence[str]) -> Any:
    """The module of an experiment that has these parts. Raises InputError for a module that is none."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise InputError(f"there is no module {name}", "name an experiment, as in experiments.resnet") from None
        raise
    if missing := [part for part in parts if not hasattr(module, part)]:
        raise InputError(f"{name} is no experiment: it has no {missing[0]}", "name one, as in experiments.resnet")
    return module


def guarded(action: Callable[[], Any], debug: bool = False) -> int:
    """Do it: the exit code.

    0 for success, 2 (or the error's own) for an InputError, whose two lines go to standard error, 75 for a run that
    was asked to stop and has saved, 130 for an interrupt. With `debug` the error or interrupt itself is raised.
    """
    try:
        action()
    except PreemptedError as saved:
        print(f"preempted  {saved}", flush=True)
        return Exit.PREEMPTED
    except (InputError, KeyboardInterrupt) as error:
        if debug:
            raise
        if isinstance(error, KeyboardInterrupt):
            return Exit.INTERRUPTED
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return Exit.DONE


def _program(function: Callable[..., Any]) -> str:
    spec = function.__globals__.get("__spec__")
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def _before_jax(settings: Config) -> None:
    given = {name: getattr(settings, name) for name in ("coordinator", "process_id", "processes")}
    membership = processes.find(given, os.environ)
    progress.dump_stacks_on_signal()
    progress.reporter().enter("start")
    from lepton_jax import mesh

    # XLA's C++ log lines are not for the people who train
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    axes = None if settings.mesh in (None, "auto") else settings.mesh
    devices = None if axes is None else mesh.size(mesh.parse(axes))
    if membership:
        processes.join(membership, devices)
    elif devices:
        mesh.simulate(devices)


def leave(code: int) -> None:
    """Exit at once, with what was printed: threads of loaders and writers must not delay an error."""
    if code == Exit.PREEMPTED:
        processes.part()  # all have saved the same step and leave together
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
