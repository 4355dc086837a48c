"""A run in words, for people: what it is before the first step, and how it ended."""

import importlib.metadata
import pathlib
import platform
import shlex
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from lepton_jax import data, evaluate, report, several, tree
from lepton_jax import mesh as meshes
from lepton_jax.cli import Config
from lepton_jax.recipe import Recipe
from lepton_jax.types import TrainState


def facts(recipe: Recipe, config: Config, mesh: Mesh, state: TrainState) -> dict[str, str]:
    """What a person wants to know of a run before it starts, each in a line."""
    kind = mesh.devices.flat[0].device_kind
    named = f"{mesh.size}{' x' if mesh.size > 1 else ''} {'CPU' if kind == 'cpu' else kind}"
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    size = recipe.stream.batch_size
    per_device = size // meshes.batch_shards(mesh)
    microbatches = f", in {config.parts} microbatches" if config.parts > 1 else ""
    found = recipe.dataset
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "devices": f"{mesh.size} simulated, all on this machine's CPU" if meshes.is_simulated(mesh) else named,
        "mesh": f"{axes}; a batch of {size:,} is {per_device:,} per device{microbatches}",
        "data": f"{found.name}: {len(found.train):,} train, {len(found.test):,} test, {len(found.classes):,} classes",
        "model": f"{tree.count(state.params):,} parameters, {config.precision}",
        **skipped(found),
    }


def skipped(dataset: data.Dataset, names: int = 10) -> dict[str, str]:
    """A fact that names the images which could not be read, where there are any."""
    bad = dataset.bad
    if not bad:
        return {}
    more = f" and {len(bad) - names:,} more" if len(bad) > names else ""
    return {"skipped": f"{len(bad):,} unreadable image(s), which count nothing: {', '.join(bad[:names])}{more}"}


def opening(known: Mapping[str, str], state: TrainState, directory: pathlib.Path, total: int) -> str:
    """The first screen: the facts, the parameters by part, and where the run is written."""
    lines = [line for name, fact in known.items() for line in labelled(name, fact)]
    lines += [f"{'':11}{line}" for line in table(state.params)]
    step = int(state.step)
    going_on = f"on from step {step:,} of {total:,}" if step < total else f"all {total:,} steps are done: evaluating"
    where = going_on if step else f"{total:,} steps"
    return "\n".join([*lines, f"{'run':<9}  {directory}, {where}"])


def labelled(label: str, text: str) -> list[str]:
    """Text in lines that fit 80 columns, the first one behind its label."""
    lines = textwrap.wrap(text, 69, break_long_words=False, break_on_hyphens=False)
    return [f"{label if n == 0 else '':<9}  {line}" for n, line in enumerate(lines)]


def table(params: Any, rows: int = 12) -> list[str]:
    """A line per top-level part of the parameters: name, arrays, numbers; the smallest together past `rows`."""
    parts = dict(params) if isinstance(params, Mapping) else {"params": params}
    counts = {name: (len(jax.tree.leaves(part)), tree.count(part)) for name, part in parts.items()}
    if len(counts) > rows:
        largest = sorted(counts, key=lambda name: counts[name][1], reverse=True)[: rows - 1]
        rest = [count for name, count in counts.items() if name not in largest]
        counts = {name: count for name, count in counts.items() if name in largest}
        counts[f"{len(rest)} more"] = (sum(a for a, _ in rest), sum(n for _, n in rest))
    width = max(map(len, counts), default=0)
    return [f"{name:<{width}}  {arrays:>4} arrays  {numbers:>13,}" for name, (arrays, numbers) in counts.items()]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("lepton-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def closing(recipe: Recipe, directory: pathlib.Path, evaluation: evaluate.Evaluation, record: Mapping[str, Any]) -> str:
    """How it ended: the table by class, the files written, the next commands."""
    names = recipe.dataset.classes
    shown = ("accuracy", "recall_macro", "f1_macro", "auc", "loss")
    scores = "  ".join(report.quantity(name, record["metrics"][f"test/{name}"]) for name in shown)
    files = "  ".join(sorted(path.name + "/" * path.is_dir() for path in directory.iterdir()))
    return "\n".join(
        [
            *(per_class(names, evaluation) if len(names) <= 20 else []),
            *(line for name, fact in skipped(recipe.dataset).items() for line in labelled(name, fact)),
            f"result     {scores}  in {report.clock(record['seconds'])}",
            f"files      {directory}/",
            f"           {files}",
            f"report     {directory / 'report.html'}",
            f"next       {command(recipe, directory, record['seed'])}",
            "           goes on where it stopped, or shows the result again",
            f"           tensorboard --logdir {shlex.quote(str(directory / 'events'))}",
            f"           python -m lepton_jax.report {shlex.quote(str(directory))} ANOTHER_RUN",
            "           lays runs side by side",
        ]
    )


def per_class(names: tuple[str, ...], evaluation: evaluate.Evaluation) -> list[str]:
    """A table of precision, recall and F1 by class."""
    names = tuple(textwrap.shorten(name, 28, placeholder="...") for name in names)
    width = max(4, *map(len, names))
    head = f"classes    {'name':<{width}}  examples  precision  recall      f1"
    rows = [
        f"{'':11}{name:<{width}}  {row['examples']:>8,}  {row['precision']:>9.4f}  {row['recall']:.4f}  {row['f1']:.4f}"
        for name, row in zip(names, evaluation.per_class, strict=True)
    ]
    return [head, *rows]


def command(recipe: Recipe, directory: pathlib.Path | None, seed: int) -> str:
    """The command that was given, writing to another run directory, or to a new one; of several seeds, this one's.

    Of several runs that differ in more, it makes them all.
    """
    given, dropped = sys.argv[1:], ["--run"]
    directory = several.WHOLE.get() or directory
    if any(flag.split("=")[0] == "--seeds" for flag in given):
        dropped += ["--seeds", "--seed"]
    flags = [
        flag
        for before, flag in zip(["", *given], given, strict=False)
        if before not in dropped and flag.split("=")[0] not in dropped
    ]
    if "--seed" in dropped and seed:
        flags += ["--seed", str(seed)]
    named = [] if directory is None else ["--run", str(directory)]
    return shlex.join(["python", "-m", f"experiments.{recipe.name}", *flags, *named])
