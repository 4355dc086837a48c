"""Checkpoints of a TrainState: written by Orbax, asynchronously and atomically, restored onto any mesh."""

import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from lepton_jax import mesh as meshes
from lepton_jax import selection, tree
from lepton_jax.errors import InputError
from lepton_jax.types import Rule, TrainState


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one best by the metric `best`: see `selection.score`.

    A step is on disk completely or not at all; a run killed during a save goes on from the step before. Of equally
    good ones the earliest is the best.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2, best: str = "accuracy"):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        logging.getLogger("absl").addFilter(_of_others)
        self._best = best
        policy = AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=self._rank, n=1)])
        # without best_fn Orbax keeps no metrics, and the policy then knows of no best
        options = ocp.CheckpointManagerOptions(
            best_fn=self._rank, preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options)

    def _rank(self, metrics: Mapping[str, float]) -> Any:
        """What orders checkpoints, the best last: the score, and among equals the earlier step."""
        return selection.score(metrics, self._best), -metrics["step"]

    def save(self, state: TrainState, info: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Start writing a state, with a JSON record beside it. Returns once the arrays have left the devices.

        Raises InputError where this or an earlier save could not be written.
        """
        import orbax.checkpoint as ocp

        self._require_room(state)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(dict(info)))
        record = {**metrics, "step": int(state.step)}
        try:
            # a step saved twice is the same state twice: force only avoids an error after a resume
            self._manager.save(int(state.step), args=items, metrics=record, force=True)
        except (OSError, ValueError) as error:
            raise InputError(*_unwritten(self._manager.directory, error)) from error

    def _require_room(self, state: TrainState) -> None:
        """What Orbax cannot write it reports at the save after; most of that can be known now."""
        free = shutil.disk_usage(self._manager.directory).free
        needed = tree.nbytes(state._replace(key=jax.random.key_data(state.key)))
        if free < needed:
            full = OSError(f"the disk is full: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free")
            raise InputError(*_unwritten(self._manager.directory, full))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step that is best by the metric, or None where no step was saved with it."""
        step = self._manager.best_step()
        return None if step is None or selection.score(self._metrics(step), self._best) == -math.inf else step

    def _metrics(self, step: int) -> Mapping[str, float]:
        return self._manager.metrics(step) or {}

    def restore(self, like: TrainState, mesh: Mesh, rules: tuple[Rule, ...] = (), step: int | None = None) -> Any:
        """(state, info) of a step, the newest by default, laid over the mesh.

        like: a state of the same tree, arrays or shapes. Raises InputError where the trees do not match.
        """
        import orbax.checkpoint as ocp

        step = self.latest() if step is None else step
        lie = meshes.shardings(like, mesh, rules)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, lie)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), info=ocp.args.JsonRestore())
        try:
            found: Any = self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"the checkpoint {self._manager.directory / str(step)} does not fit this model and optimizer",
                "resume with the command that started the run, or choose another --run",
            ) from error
        return found.state, found.info

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save to be on disk. Raises InputError where it could not be written."""
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except (OSError, ValueError) as error:
            raise InputError(*_unwritten(self._manager.directory, error)) from error


def _unwritten(directory: Any, error: Exception) -> tuple[str, str]:
    reason = str(error).splitlines()[0]
    if code := re.search(r"os_error_code='(\d+)'", reason):  # from tensorstore, a long line around an errno
        reason = os.strerror(int(code[1]))
    return (
        f"a checkpoint cannot be written under {directory}: {reason}",
        "free space there, then run the same command with --run to go on",
    )


def _of_others(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs: it narrates every save, and prints the errors that are raised here anyway."""
    return "orbax" not in pathlib.Path(record.pathname).parts
