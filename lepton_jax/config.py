"""The flags that mean the same thing in every experiment, and what they may be. Nothing here starts JAX."""

import math
from dataclasses import dataclass
from typing import Literal

from lepton_jax.errors import InputError, unknown

PRECISIONS = ("float32", "bfloat16", "float16")
AVERAGED = [f"{score}_{over}" for score in ("precision", "recall", "f1") for over in ("macro", "micro", "weighted")]
MONITORS = ("loss", "accuracy", "top5", "auc", *AVERAGED)
# the layers of the built-in models, from the input up; what none matches, the head, lies above
LAYERS = (r"^(stem|patches|token|positions)/", r"(?:stage|downsample)(\d+)(?:/block(\d+))?|^block(\d+)/")


@dataclass(frozen=True)
class Config:
    """The flags that mean the same thing in every experiment."""

    preset: str = "digits"
    """A named set of defaults for all other flags."""
    mesh: str | None = None
    """Devices as DATAxMODEL (8x1) or by name (data=4,fsdp=2; also model, sequence, pipe); simulated where there are
    only CPUs. Default: all accelerators on the data axis, or one CPU. auto: the fastest of those that fit, by
    lepton_jax.plan."""
    explain_sharding: bool = False
    """Do not train: print how every array lies over the mesh, by which rule, and how many bytes that is per device."""
    run: str | None = None
    """Run directory. The same command with the same directory resumes. Default: a new one under runs/."""
    seed: int = 0
    """The one source of randomness: same seed, same run, on any mesh."""
    seeds: int = 1
    """Make this many runs, one after the other, of the seeds from --seed on, in RUN/seed-N; RUN/result.json has the
    mean and the sample deviation of every metric."""
    epochs: float = 10
    """Passes over the training data."""
    batch_size: int = 128
    """Examples per update, over all devices and microbatches."""
    eval_batch_size: int = 256
    """Examples per evaluation batch; changes no result."""
    microbatches: int | Literal["auto"] = 1
    """Compute each batch in this many parts, one after the other, to save memory. auto: as few as fit."""
    bitwise: int | None = None
    """Compute each batch as this many virtual shards (8, say), so that 1, 2, 4 or 8 devices on the data axis make the
    same run to the last bit. Batch statistics are then a shard's own."""
    precision: str = "float32"
    """Type of the computation: float32, bfloat16, or float16 (with dynamic loss scaling). Parameters: float32."""
    remat: str | None = None
    """Compute activations inside a block again to save memory: nothing_saveable, dots_saveable ..."""
    data: str = "digits"
    """digits, cifar10, folder, npz, idx, csv[:LABEL], jsonl[:LENGTH], text[:LENGTH], lines[:LENGTH], or tfds:NAME.
    Nothing is ever downloaded."""
    data_dir: str | None = None
    """Where the data lies: a directory, or a file for npz, idx, csv, jsonl, text and lines."""
    examples: int | None = None
    """Train on this many of the training examples: a fixed part with every class's share. Default: all."""
    image_size: int | None = None
    """Resize (shorter side) and crop images of a folder to this many pixels."""
    on_bad_image: str = "stop"
    """At an unreadable image: stop, or skip it (counted, named, weight 0)."""
    optimizer: str = "sgd"
    """sgd (Nesterov momentum), adamw, lamb, lion, or muon (AdamW for what is no matrix)."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    find_learning_rate: bool = False
    """Do not train: sweep the learning rate upward over 100 steps, and suggest one, with a table and a picture."""
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
    undecayed: tuple[str, ...] = ()
    """Weights that are left alone too, as regular expressions of their paths: positions token."""
    layer_decay: float = 1.0
    """Multiply the learning rate by this for every layer further from the head; 1 for none, 0.75 for fine-tuning."""
    layers: tuple[str, ...] = LAYERS
    """The layers for --layer-decay, from the input up, as regular expressions of paths; a pattern whose groups catch
    numbers is a layer for each."""
    sharpness: float = 0.0
    """Sharpness-aware minimization: descend by the gradient this far uphill, at twice the cost; 0 for none."""
    clip: float | None = None
    """Clip the gradient to this global norm."""
    label_smoothing: float = 0.0
    """Share of each label moved to the uniform distribution."""
    ema: float = 0.0
    """Decay of an average of the parameters, which is then evaluated; 0 for none."""
    log_every: int = 20
    """Steps between log lines."""
    eval_every: float = 1.0
    """Epochs between evaluations: on the validation data, or on the test data where there is none. Where there is,
    the test data is looked at once, at the end."""
    monitor: str = "accuracy"
    """The metric of those evaluations by which --patience and --restore choose; of loss, less is better."""
    patience: float | None = None
    """Stop after this many epochs without a better value of the monitored metric. Default: train to the end."""
    restore: str = "last"
    """What the result is of: the last state, or the best checkpoint by the monitored metric."""
    checkpoint_every: float = 1.0
    """Epochs between checkpoints."""
    checkpoints: str | None = None
    """Where the checkpoints lie: a path or gs://BUCKET/PATH. Default: RUN/checkpoints."""
    keep: int = 2
    """Checkpoints to keep, beside the best by the monitored metric."""
    rollbacks: int = 3
    """Where the loss stops being finite: go back to the last checkpoint and skip the batches that led there, so many
    times before giving up."""
    spike: float | None = None
    """Go back, too, where a step's loss is so many times the mean of the logged row before."""
    coordinator: str | None = None
    """Of several processes: HOST:PORT at which process 0 listens, on this address alone. These three flags default to
    LEPTON_COORDINATOR, LEPTON_PROCESS_ID and LEPTON_PROCESSES, and those to what Slurm, Kubernetes or Open MPI say."""
    process_id: int | None = None
    """Which of the processes this is, from 0."""
    processes: int | None = None
    """How many processes share the mesh."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def parts(self) -> int:
        """The microbatches as a number; one while they are still to be chosen."""
        return 1 if self.microbatches == "auto" else self.microbatches

    def check(self) -> None:
        """Raise InputError for a value that cannot work, before JAX starts and before anything is written."""
        self._check_numbers()
        self._check_choices()
        if self.batch_size % self.parts:
            raise InputError(
                f"--microbatches {self.parts} does not divide --batch-size {self.batch_size}",
                f"the nearest batch that it divides is {_multiple(self.batch_size, self.parts)}",
            )
        if self.rollbacks < 0:
            raise InputError(f"--rollbacks {self.rollbacks} is negative", "0 gives up at the first loss that is lost")
        if self.spike is not None and not self.spike > 1:
            raise InputError(f"--spike {self.spike} is not above 1", "10 is a loss of ten times the row before")
        if self.bitwise is not None:
            self._check_shards(self.bitwise)
        if self.patience is not None and math.isinf(self.eval_every):
            problem = f"--patience {self.patience} waits for evaluations, and --eval-every {self.eval_every} has none"
            raise InputError(problem, "give --eval-every a number of epochs, or leave --patience out")
        for name in ("find_learning_rate", "explain_sharding"):
            if self.seeds > 1 and getattr(self, name):
                problem = f"--seeds {self.seeds} makes several runs, and {flag(name)} makes none"
                raise InputError(problem, "leave one of them out")
        if self.seeds > 1 and self.seed + self.seeds > 2**32:
            raise InputError(f"--seeds {self.seeds} from --seed {self.seed} on pass 2**32-1", "use a seed from 0 up")

    def _check_shards(self, shards: int) -> None:
        parts = shards * self.parts
        if shards < 1 or shards & (shards - 1):
            raise InputError(f"--bitwise {shards} is not a power of two", "8 serves 1, 2, 4 and 8 devices")
        if self.batch_size % parts:
            problem = f"--bitwise {shards}, in {self.parts} microbatch(es) each, does not divide --batch-size"
            raise InputError(f"{problem} {self.batch_size}", f"the nearest is {_multiple(self.batch_size, parts)}")
        if self.precision == "float16":
            problem = "--precision float16 scales the loss of each virtual shard by itself, and --bitwise forbids it"
            raise InputError(problem, "use bfloat16, or leave --bitwise out")

    def _check_numbers(self) -> None:
        counts = ("batch_size", "eval_batch_size", "microbatches", "log_every", "keep", "seeds")
        for name in (*counts, "epochs", "eval_every", "checkpoint_every"):
            if getattr(self, name) != "auto" and not getattr(self, name) > 0:
                raise InputError(
                    f"{flag(name)} {getattr(self, name)} is not positive", f"give {flag(name)} more than 0"
                )
        if math.isinf(self.epochs):
            raise InputError(f"--epochs {self.epochs} never ends", "give a number of passes over the training data")
        if self.examples is not None and self.examples < 1:
            raise InputError(f"--examples {self.examples} is not positive", "give --examples more than 0")
        if self.patience is not None and not 0 < self.patience < math.inf:
            problem = f"--patience {self.patience} is not a finite number above 0"
            raise InputError(problem, "give a number of epochs, or leave it out to train to the end")
        for name, remedy in FINITE.items():
            if not 0 <= getattr(self, name) < math.inf:
                problem = f"{flag(name)} {getattr(self, name)} is not a finite number of at least 0"
                raise InputError(problem, remedy)
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)} is outside [0, 1)", "0 switches it off")
        if not 0 < self.layer_decay <= 1:
            problem = f"--layer-decay {self.layer_decay} is not above 0 and at most 1"
            raise InputError(problem, "0.75 is usual for fine-tuning, and 1 switches it off")

    def _check_choices(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        choices = {"on_bad_image": ("stop", "skip"), "monitor": MONITORS, "restore": ("last", "best")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(flag(name), getattr(self, name), known)


FINITE = {
    "warmup_epochs": "give a part of --epochs, or 0 for none",
    "learning_rate": "0.1 is usual for sgd, 0.001 for adamw",
    "sharpness": "0.05 is usual, and 0 switches it off",
}


def _multiple(number: int, of: int) -> int:
    return max(of, round(number / of) * of)


def flag(name: str) -> str:
    """The flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")
