"""Run directories: what a run was asked for, what it measured, how it ended.

RUN/config.json      the experiment and every flag        RUN/metrics.jsonl  a line per logged step and evaluation
RUN/events/          the same for TensorBoard             RUN/checkpoints/   the newest, and the best
RUN/result.json      how it ended                         RUN/report.html    the run as one page
RUN/launch/          what the supervisor of several processes saw, which is there before the run is
"""

import contextlib
import datetime
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from lepton_jax import files
from lepton_jax.errors import InputError

# flags under which the trajectory stays the same, so a run may go on with other values
NEUTRAL = {"run", "preset", "data_dir", "eval_batch_size", "checkpoints", "keep", "rollbacks", "debug"}
NEUTRAL |= {"mesh", "explain_sharding", "coordinator", "process_id", "processes"}
LAUNCH = "launch"


def fresh(experiment: str, root: str = "runs") -> pathlib.Path:
    """A path for a new run: runs/EXPERIMENT-DATE-TIME, not yet made."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (f"{experiment}-{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in (pathlib.Path(root) / name for name in names) if not path.exists())


def check(directory: pathlib.Path, experiment: str, config: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether the directory holds this very run, to be resumed; False where it is new. Writes nothing.

    identity: what the flags do not say and must not change (the data's fingerprint, the parameter count).
    Raises InputError for a directory of another run, or of something else.
    """
    if not directory.exists() or (directory.is_dir() and {path.name for path in directory.iterdir()} <= {LAUNCH}):
        return False
    record = directory / "config.json"
    if not record.is_file():
        raise InputError(f"--run {directory} exists and is not a run directory", "name a new or empty directory")
    found = recorded(record)
    if found["experiment"] != experiment:
        problem = f"--run {directory} belongs to the experiment {found['experiment']!r}, not {experiment!r}"
        raise InputError(problem, "give this experiment a --run of its own")
    require_same(directory, found["config"], config)  # first: a flag says more than the data that it changed
    require_same(directory, found["identity"], identity)
    return True


def require_same(directory: Any, found: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise InputError where a run was made with other values of what decides its trajectory."""
    for name in sorted(set(new) - NEUTRAL):
        if json.loads(json.dumps(strict(new[name]))) != found.get(name):
            raise InputError(
                f"the run in {directory} was made with {name} = {found.get(name)!r}, not {new[name]!r}",
                "repeat the command that made it, or choose another --run",
            )


def recorded(path: pathlib.Path) -> dict[str, Any]:
    """What a run's config.json says. Raises InputError for one that is not a run's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"experiment", "config", "identity"} <= set(found):
            return found
    except (OSError, ValueError):
        pass
    raise InputError(f"--run {path.parent}: {path.name} is not a run's", "name a new or empty directory")


def create(directory: pathlib.Path, record: Mapping[str, Any], nbytes: int) -> None:
    """Make the directory and its config.json, unless they are there.

    nbytes: what the run will write at most. Raises InputError where it cannot be written or is too small, and
    leaves nothing behind.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.require_room(directory, nbytes, "the run")
        if not (directory / "config.json").exists():
            write(directory / "config.json", record)
    except OSError as error:
        for path in made:
            if path.exists():
                path.rmdir()
        reason = error.strerror or str(error)
        raise InputError(
            f"--run {directory} cannot be written: {reason}", "free space there, or choose another --run"
        ) from error


@contextlib.contextmanager
def writing(directory: pathlib.Path) -> Iterator[None]:
    """What is done under it writes to the run directory: where it cannot, an InputError says so."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"the run cannot be written to {error.filename or directory}: {reason}"
        raise InputError(problem, "free space there, then run the same command with --run to go on") from error


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """A JSON file, complete or not at all."""
    replace(path, json.dumps(strict(record), indent=2, allow_nan=False) + "\n")


def result(directory: pathlib.Path) -> dict[str, Any]:
    """The record of a run that has ended, its result.json."""
    return json.loads((directory / "result.json").read_text(encoding="utf-8"))


def amend(directory: pathlib.Path, metrics: Mapping[str, float], **entries: Any) -> dict[str, Any]:
    """Add metrics, and entries beside them, to result.json of a run that has ended: the whole record."""
    found = result(directory)
    record = {**found, "metrics": {**found["metrics"], **metrics}, **entries}
    with writing(directory):
        write(directory / "result.json", record)
    return record


def replace(path: pathlib.Path, content: str | bytes) -> None:
    """A file, complete or as it was before."""
    with files.written(path) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode())


def strict(record: Any) -> Any:
    """The record as JSON can say it: null for NaN and infinities, for which it has no words."""
    if isinstance(record, Mapping):
        return {name: strict(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [strict(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def rows(directory: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a last line that a kill cut in half."""
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def rewind(directory: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Cut metrics.jsonl back to the rows up to `step`, the one that a resumed run goes on from; returns them."""
    kept = [row for row in rows(directory) if row["step"] <= step]
    if (directory / "metrics.jsonl").exists():
        replace(directory / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    return kept
