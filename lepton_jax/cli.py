"""The command line: one dataclass of flags, presets, and errors in two lines.

Everything here runs before JAX starts, because device counts cannot change afterwards.
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lepton_jax.errors import InputError, unknown

C = TypeVar("C", bound="Config")

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Config:
    """The flags that mean the same thing in every experiment."""

    preset: str = "digits"
    """A named set of defaults for all other flags."""
    mesh: str | None = None
    """Devices as DATAxMODEL (8x1) or by name (data=4,fsdp=2); simulated where there are only CPUs. Default: all
    accelerators on the data axis, or one CPU."""
    run: str | None = None
    """Run directory. The same command with the same directory resumes. Default: a new one under runs/."""
    seed: int = 0
    """The one source of randomness: same seed, same run, on any mesh."""
    epochs: float = 10
    """Passes over the training data."""
    batch_size: int = 128
    """Examples per update, over all devices and microbatches."""
    eval_batch_size: int = 256
    """Examples per evaluation batch; changes no result."""
    microbatches: int = 1
    """Compute each batch in this many parts, one after the other, to save memory."""
    precision: str = "float32"
    """Type of the computation: float32, bfloat16, or float16 (with dynamic loss scaling). Parameters: float32."""
    remat: str | None = None
    """Compute activations inside a block again to save memory: nothing_saveable, dots_saveable ..."""
    data: str = "digits"
    """digits, cifar10, folder, npz, or tfds:NAME. Nothing is ever downloaded."""
    data_dir: str | None = None
    """Where the data lies: a directory, or a file for npz."""
    image_size: int | None = None
    """Resize (shorter side) and crop images of a folder to this many pixels."""
    on_bad_image: str = "stop"
    """At an unreadable image: stop, or skip it (counted, named, weight 0)."""
    optimizer: str = "sgd"
    """sgd (Nesterov momentum), adamw, lamb, or lion."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    schedule: str = "cosine"
    """constant, step, exponential, cosine, linear, polynomial, wsd, cyclic, or plateau."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the schedule."""
    gamma: float | None = None
    """Factor of the step and exponential schedules."""
    step_size: int | None = None
    """Epochs between the drops of the step schedule."""
    momentum: float = 0.9
    """Momentum of sgd; b1 of the others."""
    weight_decay: float = 5e-4
    """Decay of weight matrices and kernels; scales and biases are left alone."""
    clip: float | None = None
    """Clip the gradient to this global norm."""
    label_smoothing: float = 0.0
    """Share of each label moved to the uniform distribution."""
    ema: float = 0.0
    """Decay of an average of the parameters, which is then evaluated; 0 for none."""
    log_every: int = 20
    """Steps between log lines."""
    eval_every: float = 1.0
    """Epochs between evaluations on the test data."""
    checkpoint_every: float = 1.0
    """Epochs between checkpoints."""
    keep: int = 2
    """Checkpoints to keep, beside the best by test accuracy."""
    debug: bool = False
    """Show the traceback of an error."""

    def check(self) -> None:
        """Raise InputError for a value that cannot work, before JAX starts and before anything is written."""
        counts = ("batch_size", "eval_batch_size", "microbatches", "log_every", "keep")
        for name in (*counts, "epochs", "eval_every", "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{flag(name)} {getattr(self, name)} is not positive", f"give {flag(name)} more than 0"
                )
        if math.isinf(self.epochs):
            raise InputError(f"--epochs {self.epochs} never ends", "give a number of passes over the training data")
        if not 0 <= self.warmup_epochs < math.inf:
            problem = f"--warmup-epochs {self.warmup_epochs} is not a finite number of at least 0"
            raise InputError(problem, "give a part of --epochs, or 0 for none")
        if not 0 <= self.learning_rate < math.inf:
            problem = f"--learning-rate {self.learning_rate} is not a finite number of at least 0"
            raise InputError(problem, "0.1 is usual for sgd, 0.001 for adamw")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)} is outside [0, 1)", "0 switches it off")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.on_bad_image not in ("stop", "skip"):
            raise unknown("--on-bad-image", self.on_bad_image, ("stop", "skip"))
        if self.batch_size % self.microbatches:
            raise InputError(
                f"--microbatches {self.microbatches} does not divide --batch-size {self.batch_size}",
                f"the nearest batch that it divides is {_multiple(self.batch_size, self.microbatches)}",
            )


def _multiple(number: int, of: int) -> int:
    return max(of, round(number / of) * of)


def flag(name: str) -> str:
    """The flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


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
    if "--debug" not in sys.argv:
        # what a library's thread could not raise is behind an error that is shown, or behind none
        sys.unraisablehook = lambda _: None
    if code := outcome(main, config, presets, sys.argv[1:]):
        leave(code)


def outcome(main: Callable[[C], Any], config: type[C], presets: Mapping[str, C], arguments: list[str]) -> int:
    """Parse the arguments and run `main`: the exit code of `guarded`."""
    program = _program(main)

    def act() -> None:
        settings = parse(config, presets, arguments, program)
        settings.check()
        # JAX takes seconds to start, and silence looks like a fault
        print(f"starting   {program.split()[-1]}, preset {settings.preset}, seed {settings.seed}", flush=True)
        _before_jax(settings)
        main(settings)

    return guarded(act, debug="--debug" in arguments)


def command(*functions: Callable[..., Any]) -> None:
    """Call a function with the command line's flags as its arguments; of several, the one that the first word names.

    Where that fails, exit with the code of `guarded`.
    """
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


def guarded(action: Callable[[], Any], debug: bool = False) -> int:
    """Do it: the exit code.

    0 for success, 2 for an InputError, whose two lines go to standard error, 130 for an interrupt. With
    `debug` the exception itself is raised.
    """
    try:
        action()
    except (InputError, KeyboardInterrupt) as error:
        if debug:
            raise
        if isinstance(error, KeyboardInterrupt):
            return 130
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _program(function: Callable[..., Any]) -> str:
    spec = function.__globals__.get("__spec__")
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def _before_jax(settings: Config) -> None:
    from lepton_jax import mesh

    # XLA's C++ log lines are not for the people who train
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if settings.mesh is not None:
        mesh.simulate(mesh.size(mesh.parse(settings.mesh)))


def leave(code: int) -> None:
    """Exit at once, with what was printed: threads of loaders and writers must not delay an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
