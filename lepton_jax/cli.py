"""The command line: one dataclass of flags, presets, and errors in two lines.

Everything here runs before JAX starts, because device counts cannot change afterwards.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Mapping
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
    """Recompute activations to save memory: blocks, nothing_saveable, dots_saveable ..."""
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
        positive = (
            "epochs",
            "batch_size",
            "eval_batch_size",
            "microbatches",
            "log_every",
            "eval_every",
            "keep",
        )
        for name in (*positive, "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{flag(name)} {getattr(self, name)} is not positive", f"give {flag(name)} more than 0"
                )
        if not 0 <= self.learning_rate < float("inf"):
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
    known = f"presets: {', '.join(presets)}"
    return tyro.cli(config, default=chosen, args=arguments, prog=program, description=f"{config.__doc__} {known}.")


def run(main: Callable[[C], Any], config: type[C], presets: Mapping[str, C]) -> None:
    """Parse sys.argv, run `main`, and turn InputErrors into two lines on standard error and exit code 2."""
    program = f"python -m {main.__globals__['__spec__'].name}" if main.__globals__.get("__spec__") else sys.argv[0]
    debug = "--debug" in sys.argv
    try:
        settings = parse(config, presets, sys.argv[1:], program)
        settings.check()
        # JAX takes seconds to start, and silence looks like a fault
        print(f"starting   {program.split()[-1]}, preset {settings.preset}, seed {settings.seed}", flush=True)
        _before_jax(settings)
        main(settings)
    except InputError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        if debug:
            raise
        leave(130)


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
