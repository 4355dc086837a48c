"""Several runs that differ in their seed alone: RUN/seed-0, RUN/seed-1 ..., and their mean in RUN/result.json.

Nothing here imports JAX before the first run does.
"""

import dataclasses
import math
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from lepton_jax import runs
from lepton_jax.config import Config
from lepton_jax.errors import InputError

C = TypeVar("C", bound=Config)

SHOWN = {"accuracy": "accuracy", "recall_macro": "recall", "f1_macro": "f1", "auc": "auc", "loss": "loss"}
WHOLE: ContextVar[pathlib.Path | None] = ContextVar(
    "the directory of the command that makes several runs", default=None
)
OURS = re.compile(rf"seed-\d+|result\.json(\.part)?|{runs.LAUNCH}")


def run(main: Callable[[C], Any], config: C, experiment: str) -> dict[str, Any] | None:
    """Call `main` for `config.seeds` seeds from `config.seed` on, each with a run directory of its own.

    A finished run is shown again and a broken one goes on, so the same command resumes, and more seeds than before
    add runs. Returns the record of result.json; for a single seed it calls `main(config)`, and returns None.
    Raises InputError for a directory of something else.
    """
    if config.seeds == 1:
        main(config)
        return None
    directory = pathlib.Path(config.run) if config.run else runs.fresh(experiment)
    check(directory)
    records = {}
    for number in range(config.seeds):
        name = f"seed-{config.seed + number}"
        print(f"run        {number + 1} of {config.seeds}: {name}", flush=True)
        alone = dataclasses.replace(config, seeds=1, seed=config.seed + number, run=str(directory / name))
        main(alone)
        records[name] = runs.result(directory / name)
    record = together(experiment, records)
    with runs.writing(directory):
        runs.write(directory / "result.json", record)
    print(told(record, directory), flush=True)
    return record


def variants(main: Callable[[C], Any], configs: Mapping[str, C], directory: pathlib.Path, chosen: str) -> None:
    """Call `main` for configurations that differ, each with a run directory of its own, and lay the runs side by side.

    The directory gets comparison.html, and a result.json with the metrics of `chosen` under their own names and those
    of the others as NAME/METRIC. The same command resumes. Raises InputError for a directory of something else.
    """
    ours = {*configs, "result.json", "comparison.html"}
    if directory.exists() and not (directory.is_dir() and {path.name for path in directory.iterdir()} <= ours):
        problem = f"--run {directory} exists and does not hold {', '.join(configs)} alone"
        raise InputError(problem, "name a new or empty directory")
    records = {}
    for name, config in configs.items():
        print(f"run        {name}", flush=True)
        token = WHOLE.set(directory)
        try:
            main(dataclasses.replace(config, run=str(directory / name)))
        finally:
            WHOLE.reset(token)
        records[name] = runs.result(directory / name)
    from lepton_jax.report import comparison, printed, side_by_side

    found = comparison.read([directory / name for name in configs])
    others = {f"{n}/{m}": value for n, r in records.items() if n != chosen for m, value in r["metrics"].items()}
    seconds = round(sum(record["seconds"] for record in records.values()), 3)
    with runs.writing(directory):
        runs.replace(directory / "comparison.html", side_by_side.render(found, directory))
        runs.write(
            directory / "result.json",
            {**records[chosen], "metrics": {**records[chosen]["metrics"], **others}, "seconds": seconds},
        )
    printed.show(found)
    print(f"\npage       {directory / 'comparison.html'}", flush=True)


def check(directory: pathlib.Path) -> None:
    """Raise InputError for a directory that holds anything but runs of several seeds."""
    if directory.is_dir() and all(OURS.fullmatch(path.name) for path in directory.iterdir()):
        return
    if directory.exists():
        problem = f"--run {directory} exists and is not a directory of several seeds"
        raise InputError(problem, "name a new or empty directory, or leave --seeds out")


def together(experiment: str, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record of several: means under "metrics", sample deviations under "deviations", and each run's own."""
    metrics = {name: record["metrics"] for name, record in records.items()}
    columns = {name: [own[name] for own in metrics.values()] for name in next(iter(metrics.values()))}
    return {
        "experiment": experiment,
        "status": "complete",
        "seeds": [record["seed"] for record in records.values()],
        "metrics": {name: mean(values) for name, values in columns.items()},
        "deviations": {name: deviation(values) for name, values in columns.items()},
        "runs": metrics,
        "seconds": round(sum(record["seconds"] for record in records.values()), 3),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where one of the values is none."""
    return None if None in values else statistics.fmean(v for v in values if v is not None)


def deviation(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation, of n - 1; None where one of the values is none."""
    return None if None in values else statistics.stdev(v for v in values if v is not None)


def told(record: Mapping[str, Any], directory: pathlib.Path) -> str:
    """The runs as a table, with mean and deviation below."""
    names = {f"test/{name}": word for name, word in SHOWN.items() if f"test/{name}" in record["metrics"]}
    lines = {**record["runs"], "mean": record["metrics"], "deviation": record["deviations"]}
    width = max(map(len, lines))
    head = "".join(f"  {word:>9}" for word in names.values())
    rows = [
        f"{'':11}{line:<{width}}" + "".join(f"  {cell(values[name]):>9}" for name in names)
        for line, values in lines.items()
    ]
    files = f"files      {directory / 'result.json'}, and a run in each of {directory}/seed-*"
    return "\n".join([f"seeds      {'':<{width}}{head}", *rows, files])


def cell(value: float | None) -> str:
    """A number to four decimals; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
