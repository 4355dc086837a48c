"""Runs side by side: what their directories hold, and where they differ."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jax import runs
from lepton_jax.errors import InputError
from lepton_jax.report.numbers import NONE, clock

LETTERS = "ABCDEFGH"
LESS_IS_BETTER = {"loss", "error", "perplexity", "mse", "mae", "brier", "ece"}
LEADING = ("accuracy", "f1_macro", "auc", "top5", "loss")  # metrics that come first
NAMES = {"accuracy": "accuracy", "auc": "AUC, macro", "top5": "top 5"}
SPLITS = ("test/", "validation/")
AVERAGES = ("macro", "micro", "weighted")


@dataclass(frozen=True)
class Run:
    """A run as its directory tells it."""

    letter: str
    directory: pathlib.Path  # as it was given
    name: str  # as much of the path as tells it from the others
    experiment: str
    flags: Mapping[str, Any]
    identity: Mapping[str, Any]  # the data's fingerprint, the number of parameters
    result: Mapping[str, Any] | None  # result.json; None while it is not finished
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl

    @property
    def scores(self) -> dict[str, float]:
        """The final metrics by name ("test/accuracy"); of an unfinished run, those of its latest evaluation."""
        if self.result is not None:
            found = self.result.get("metrics", {})
        else:
            judged = [row for row in self.rows if any(name.startswith(SPLITS) for name in row)]
            found = judged[-1] if judged else {}
        numeric = {name: value for name, value in found.items() if isinstance(value, int | float)}
        return {name: value for name, value in numeric.items() if name.startswith(SPLITS) and math.isfinite(value)}


def read(directories: Sequence[pathlib.Path]) -> list[Run]:
    """The runs in two to eight directories. Raises InputError for any that is not a run, and for one given twice."""
    if not 2 <= len(directories) <= len(LETTERS):
        given = f"{len(directories)} run{'s are' if len(directories) != 1 else ' is'} given"
        problem = f"{given}, and two to {len(LETTERS)} lie side by side"
        raise InputError(problem, "name run directories: python -m lepton_jax.report RUN1 RUN2 ...")
    first: dict[pathlib.Path, pathlib.Path] = {}
    for directory in directories:
        other = first.setdefault(directory.resolve(), directory)
        if other is not directory:
            problem = f"{directory} is the same run as {other}" if other != directory else f"{directory} is given twice"
            raise InputError(problem, "name each run once")
    names = shortest([path.parts for path in first])
    return [_run(*known) for known in zip(LETTERS, directories, names, strict=False)]


def _run(letter: str, directory: pathlib.Path, name: str) -> Run:
    if not directory.is_dir():
        problem = f"{directory} is {'not a directory' if directory.exists() else 'not there'}"
        raise InputError(problem, "name the directory that --run named, or one under runs/")
    if not (directory / "config.json").is_file():
        within = sorted(path.parent for path in directory.glob("*/config.json"))
        remedy = f"name the runs in it, as {within[0]}" if within else "name the directory that --run named"
        raise InputError(f"{directory} is not a run: it has no config.json", remedy)
    config = _object(directory / "config.json", {"experiment": str, "config": dict, "identity": dict})
    finished = (directory / "result.json").exists()
    result = _object(directory / "result.json", {"status": str, "metrics": dict}) if finished else None
    try:
        rows = [row for row in runs.rows(directory) if isinstance(row, dict)]
    except ValueError as error:
        problem = f"{directory / 'metrics.jsonl'} cannot be read: {error}"
        raise InputError(problem, "leave this run out") from error
    return Run(letter, directory, name, config["experiment"], config["config"], config["identity"], result, rows)


def _object(path: pathlib.Path, needed: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object that holds what is needed. Raises InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "leave this run out") from error
    for name, kind in needed.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind):
            raise InputError(f"{path} is not a run's: it has no {name!r}", "leave this directory out")
    return found


def shortest(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Each path by its last parts, as many as it takes to tell all apart."""
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]


def metrics(found: Sequence[Run]) -> list[str]:
    """The metrics that any run has: the leading ones first, those on the test data before the validation data's."""
    names = dict.fromkeys(name for run in found for name in run.scores)
    leading = [split + name for split in SPLITS for name in LEADING if split + name in names]
    rest = [name for split in SPLITS for name in names if name.startswith(split) and name not in leading]
    return [*leading, *rest]


def leads(metric: str) -> bool:
    """Whether a metric is one of those that come first."""
    return metric.partition("/")[2] in LEADING


def label(metric: str) -> str:
    """A metric's name for people: `test/f1_macro` -> `F1, macro`, `validation/loss` -> `validation loss`."""
    split, _, name = metric.partition("/")
    stem, _, average = name.rpartition("_")
    if average in AVERAGES:
        named = f"{'F1' if stem == 'f1' else stem}, {average}"
    else:
        named = NAMES.get(name, name.replace("_", " "))
    return named if split == "test" else f"{split} {named}"


def best(found: Sequence[Run], metric: str) -> set[str]:
    """Letters of the finished runs with the best value; none where there is nothing to choose from."""
    values = {run.letter: run.scores[metric] for run in found if run.result is not None and metric in run.scores}
    if len(set(values.values())) < 2:
        return set()
    choose: Callable[..., float] = min if metric.rpartition("/")[2] in LESS_IS_BETTER else max
    return {letter for letter, value in values.items() if value == choose(values.values())}


def baseline(found: Sequence[Run]) -> Run | None:
    """The run that the others' differences are from: the first finished one."""
    return next((run for run in found if run.result is not None), None)


def difference(run: Run, base: Run | None, metric: str) -> float | None:
    """How much more a finished run has than the baseline; None where there is nothing to subtract."""
    if base is None or run is base or run.result is None or not {metric} <= set(run.scores) & set(base.scores):
        return None
    return run.scores[metric] - base.scores[metric]


def facts(run: Run) -> dict[str, str]:
    """What a run is and how far it came, as texts; "status" always among them."""
    result = run.result or {}
    numbers = {**run.identity, **{name: result.get(name) for name in ("steps", "examples")}}
    known = {
        "experiment": run.experiment,
        "status": status(run),
        "devices": result.get("devices"),
        "mesh": axes(result.get("mesh") or {}),
        **{name: f"{value:,}" for name, value in numbers.items() if isinstance(value, int)},
        "time": clock(result["seconds"]) if isinstance(result.get("seconds"), int | float) else None,
    }
    return {name: str(value) for name, value in known.items() if value}


def status(run: Run) -> str:
    """How a run ended, or how far it came."""
    if run.result is not None:
        return run.result["status"]
    step = run.rows[-1].get("step") if run.rows else None
    return "unfinished, nothing logged" if step is None else f"unfinished, at step {step:,}"


def axes(mesh: Mapping[str, int]) -> str:
    """A mesh as --mesh takes it: 8x1, or by name where it has other axes."""
    if list(mesh) == ["data", "model"]:
        return "x".join(map(str, mesh.values()))
    return ",".join(f"{axis}={size}" for axis, size in mesh.items())


def versions(run: Run) -> dict[str, str]:
    """The versions that a finished run depended on."""
    return {name: str(version) for name, version in ((run.result or {}).get("versions") or {}).items()}


def flags(run: Run) -> dict[str, str]:
    """A run's flags as they are given."""
    return {f"--{name.replace('_', '-')}": said(value) for name, value in run.flags.items()}


def said(value: Any) -> str:
    """The value of a flag: 2.0 as 2, however it was written, and "not set" for none."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return "not set" if value is None else str(int(value) if whole else value)


def aligned(columns: Sequence[Mapping[str, str]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What the columns say, by name: where they differ as a row each, and what all of those that have any share.

    A column without a single entry (an unfinished run's versions) differs in nothing.
    """
    names = dict.fromkeys(name for column in columns for name in column)
    differing, shared = {}, {}
    for name in names:
        values = {column.get(name, NONE) for column in columns if column}
        if len(values) == 1:
            shared[name] = values.pop()
        else:
            differing[name] = [column.get(name, NONE) for column in columns]
    return differing, shared


def remarks(found: Sequence[Run]) -> list[str]:
    """What a reader has to know before comparing numbers."""
    told = []
    unfinished = [run.letter for run in found if run.result is None]
    if unfinished:
        verb = "is" if len(unfinished) == 1 else "are"
        told.append(f"{listed(unfinished)} {verb} unfinished: the scores are those so far, and not ranked.")
    if len({run.experiment for run in found}) > 1:
        told.append("The runs are of different experiments.")
    if len({json.dumps(run.identity.get("data")) for run in found}) > 1:
        told.append("The data is not the same in all (--seed may draw the split): scores compare roughly.")
    return told


def listed(words: Sequence[str]) -> str:
    """Words in a sentence: A, B and C."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def link(target: pathlib.Path, start: pathlib.Path) -> str:
    """A relative path from the directory `start`, with slashes."""
    return pathlib.Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()
