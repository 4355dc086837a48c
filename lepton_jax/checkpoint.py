"""Checkpoints of a TrainState: written by Orbax, asynchronously and atomically, verified as they are restored.

Beside the arrays lies a record: every leaf's dtype, shape and digest, the metrics, and what the run wants to know
again, under a checksum of its own; and, once a step is complete, a list of its files. A step that does not come back
as it was written is set aside, and the one before it is taken.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lepton_jax import agreement, digests, files, manifest, selection, tree
from lepton_jax import mesh as meshes
from lepton_jax.errors import DamagedError, InputError
from lepton_jax.types import Rule, TrainState

ASIDE = "quarantine"  # in the directory of the checkpoints
STORE, LISTING = "gs", "gcsfs"  # what Orbax writes to beside paths, and what reads its listings


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one best by the metric `best`: see `selection.score`.

    A step is on disk completely or not at all; a run killed during a save goes on from the step before. Of equally
    good ones the earliest is the best. `aside` tells of the steps that could not be trusted, as {step: why}.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2, best: str = "accuracy"):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").addFilter(_of_others)
        self._keep, self._best = keep, best
        self._metrics: dict[int, Mapping[str, float]] = {}  # by step
        self.aside: dict[int, str] = {}
        # Orbax's own way to the best keeps the metrics in a file without a checksum
        options = ocp.CheckpointManagerOptions(preservation_policy=self, cleanup_tmp_directories=True)
        place = located(directory)
        with self._writing(place):
            self._manager = ocp.CheckpointManager(place, options=options)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's question before it deletes: which of these steps, the newest last, to keep."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], self._best_of(steps)}
        return [step in kept for step in steps]

    def _best_of(self, steps: Iterable[int]) -> int | None:
        """The best by the metric, and among equals the earliest; None where no step was saved with it."""
        scores = {step: selection.score(self._measured(step), self._best) for step in steps}
        known = {step: score for step, score in scores.items() if score > -math.inf}
        return max(known, key=lambda step: (known[step], -step)) if known else None

    def _measured(self, step: int) -> Mapping[str, float]:
        """The metrics that a step was saved with; none of a step whose record is not to be trusted."""
        if step not in self._metrics:
            try:
                self._metrics[step] = self._record(step)["metrics"]
            except DamagedError:
                self._metrics[step] = {}
        return self._metrics[step]

    def save(self, state: TrainState, info: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Start writing a state, with a JSON record beside it. Returns once the arrays have left the devices.

        Raises InputError where this or an earlier save could not be written.
        """
        import orbax.checkpoint as ocp

        self._require_room(state)
        self.check()
        step = int(state.step)
        self._metrics[step] = dict(metrics)
        record = {"step": step, "leaves": digests.digests(state), "metrics": dict(metrics), "info": dict(info)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(sealed(record)))
        with self._writing():
            # a step saved twice is the same state twice: force only avoids an error after a resume
            self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Raise InputError where a save that is under way has failed, and seal those that are complete."""
        with self._writing():
            if self._is_settled() and agreement.is_first():
                for step in self._manager.all_steps():
                    manifest.seal(self._manager.directory / str(step))

    def _is_settled(self) -> bool:
        """Whether no save is under way. Raises what the last one met."""
        # asked in this order: one that fails in between is then known to have failed, or still to be under way
        saving = self._manager.is_saving_in_progress()
        self._manager.check_for_errors()
        return not saving

    @contextlib.contextmanager
    def _writing(self, place: Any = None) -> Iterator[None]:
        try:
            yield
        except InputError:  # it has been said
            raise
        except (OSError, ValueError) as error:
            raise InputError(*_unwritten(place or self._manager.directory, error)) from error

    def _require_room(self, state: TrainState) -> None:
        """What Orbax cannot write it reports at the save after; most of that can be known now."""
        if "://" not in str(self._manager.directory):
            needed = tree.nbytes(state._replace(key=jax.random.key_data(state.key)))
            with self._writing():
                files.require_room(self._manager.directory, needed, "it")

    def committed(self) -> int | None:
        """The newest step that no crash can take back; None before the first, and while one is being written.

        Raises InputError where a save has failed.
        """
        with self._writing():
            return self.latest() if self._is_settled() else None

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def forget(self, after: int) -> None:
        """Delete the steps after one, from which a run has gone back."""
        with self._writing():
            self._manager.wait_until_finished()
            for step in [step for step in self._manager.all_steps() if step > after]:
                self._manager.delete(step)

    def best(self) -> int | None:
        """The step that is best by the metric, or None where no step was saved with it."""
        return self._best_of(self._manager.all_steps())

    def restore(self, like: TrainState, mesh: Mesh, rules: tuple[Rule, ...] = (), step: int | None = None) -> Any:
        """(state, info) of a step, laid over the mesh; by default of the newest that comes back as it was written.

        like: a state of the same tree, arrays or shapes. Newer steps that are damaged are moved to quarantine/.
        Raises InputError where the trees do not match, and DamagedError where the step, or every step, is not good.
        """
        if step is not None:
            return self._read(step, like, mesh, rules)
        for newest in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(newest, like, mesh, rules)
            except DamagedError as damage:
                self._set_aside(newest, damage)
        raise DamagedError(
            f"no checkpoint under {self._manager.directory} is as it was written: {'; '.join(self.aside.values())}",
            f"put a copy of one back, or begin anew in another --run; what is damaged lies in {ASIDE}/",
        )

    def _read(self, step: int, like: TrainState, mesh: Mesh, rules: tuple[Rule, ...]) -> Any:
        import orbax.checkpoint as ocp

        place = self._manager.directory / str(step)
        if damage := agreement.shared(lambda: manifest.damage(place)):
            raise DamagedError(damage, _RESTORE)
        record = self._record(step)
        require_alike(place, record["leaves"], digests.described(like))
        lie = meshes.shardings(like, mesh, rules)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, lie)
        state, failure = self._attempted(step, ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        if not agreement.all_of(not failure):
            raise DamagedError(f"{place / 'state'} cannot be read: {failure}", _RESTORE)
        state = state.state
        there = digests.digests(state)
        if wrong := [name for name, digest in record["leaves"].items() if there[name] != digest]:
            count = f"{len(wrong)} of {len(there)} leaves"
            raise DamagedError(f"{place / 'state'} does not hold {wrong[0]} as it was written ({count})", _RESTORE)
        return state, record["info"]

    def _attempted(self, step: int, items: Any) -> tuple[Any, str]:
        """(what Orbax reads, "") or (None, why it cannot)."""
        try:
            return self._manager.restore(step, args=items), ""
        except Exception as error:  # a damaged file raises whatever its reader stumbled over
            return None, _first_line(error)

    def _record(self, step: int) -> dict[str, Any]:
        """The record of a step. Raises DamagedError."""
        import orbax.checkpoint as ocp

        place = self._manager.directory / str(step) / "info"
        found, failure = self._attempted(step, ocp.args.Composite(info=ocp.args.JsonRestore()))
        try:
            return opened(found.info, step)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{place} cannot be read: {failure or _first_line(error)}", _RESTORE) from error

    def _set_aside(self, step: int, damage: DamagedError) -> None:
        """Move a step to where it is not taken for a checkpoint."""
        self.aside[step] = damage.problem
        self._metrics.pop(step, None)
        aside = self._manager.directory / ASIDE
        if agreement.is_first():
            aside.mkdir(exist_ok=True)
            taken = {path.name for path in aside.iterdir()}
            names = (f"{step}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
            (self._manager.directory / str(step)).rename(aside / next(name for name in names if name not in taken))
        agreement.together(f"set aside {step}")
        self._manager.reload()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save to be on disk. Raises InputError where it could not be written."""
        with self._writing():
            self._manager.wait_until_finished()
            self.check()
            self._manager.close()


def located(directory: str | pathlib.Path) -> Any:
    """Where checkpoints lie: a path of this machine, absolute, or gs://BUCKET/PATH.

    Raises InputError for a store of another kind (Orbax 0.12 writes no arrays to s3://), and where gcsfs is missing.
    """
    text = str(directory)
    if "://" not in text:
        return pathlib.Path(directory).absolute()
    if (scheme := text.split("://")[0]) != STORE:
        problem = f"--checkpoints {text} is no place that Orbax writes to: it knows paths and gs://, not {scheme}://"
        raise InputError(problem, "mount the bucket, and give the path at which it is mounted")
    if importlib.util.find_spec(LISTING) is None:
        problem = f"--checkpoints {text} needs {LISTING}, which is not installed"
        raise InputError(problem, 'pip install "lepton-jax[stores]"')
    from etils import epath

    return epath.Path(text)


_RESTORE = "the step before it is taken where there is one; else put a copy back"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a checksum of itself."""
    return {**record, "checksum": _checksum(record)}


def opened(found: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The record that was sealed for a step. Raises ValueError where it is another, or not as it was."""
    record = {name: value for name, value in found.items() if name != "checksum"}
    if found.get("checksum") != _checksum(record):
        raise ValueError("its checksum is another")
    if record["step"] != step:
        raise ValueError(f"it is of step {record['step']}")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def require_alike(place: Any, leaves: Mapping[str, str], like: Mapping[str, str]) -> None:
    """Raise InputError where a checkpoint's leaves are not of the names, dtypes and shapes of a state."""
    kinds = {name: digest.rsplit(" ", 1)[0] for name, digest in leaves.items()}
    if kinds == like:
        return
    name = min(name for name in {**kinds, **like} if kinds.get(name) != like.get(name))
    there, here = (f"{name} as {which[name]}" if name in which else f"no {name}" for which in (kinds, like))
    raise InputError(
        f"the checkpoint {place} does not fit this model and optimizer: it has {there}, and they have {here}",
        "resume with the command that started the run, or choose another --run",
    )


def _unwritten(directory: Any, error: Exception) -> tuple[str, str]:
    reason = _first_line(error)
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # from tensorstore, a long line around an errno
        reason = os.strerror(int(code[1]))
    return (
        f"a checkpoint cannot be written under {directory}: {reason}",
        "free space there, then run the same command with --run to go on",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _of_others(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs: it narrates every save, and prints the errors that are raised here anyway."""
    return "orbax" not in pathlib.Path(record.pathname).parts
