"""Going back: from a loss that cannot be to the last checkpoint, and past the batches that led there.

What is skipped lies in RUN/skipped.json before the run goes on, so that a run killed after it decides alike.
(Chowdhery et al. 2022, section 5.1, https://arxiv.org/abs/2204.02311, skipped batches by hand.)
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from lepton_jax import agreement, runs
from lepton_jax.checkpoint import Checkpoints
from lepton_jax.data import Batches
from lepton_jax.errors import DamagedError, InputError
from lepton_jax.report import Reporter
from lepton_jax.rows import Diverged, Recovered, read
from lepton_jax.types import Rule, TrainState

NAME = "skipped.json"


def rollbacks(directory: pathlib.Path) -> list[dict[str, Any]]:
    """The rollbacks of a run, oldest first: {"step", "problem", "back_to", "skipped"}. Raises DamagedError."""
    try:
        return json.loads((directory / NAME).read_text(encoding="utf-8"))["rollbacks"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{directory / NAME} does not say which batches the run skips"
        raise DamagedError(problem, "put a copy of it back, or begin anew in another --run") from error


def skipped(directory: pathlib.Path) -> list[int]:
    """The numbers of the batches that a run skips."""
    return [number for rollback in rollbacks(directory) for number in rollback["skipped"]]


def last_loss(directory: pathlib.Path) -> float:
    """The training loss of a run's last row; infinite before the first."""
    losses = [row["train/loss"] for row in runs.rows(directory) if row.get("train/loss") is not None]
    return losses[-1] if losses else float("inf")


def recovering(
    directory: pathlib.Path,
    checkpoints: Checkpoints,
    stream: Batches,
    first: Callable[[], TrainState],
    mesh: Mesh,
    rules: tuple[Rule, ...],
    limit: int,
    reporter: Reporter,
) -> Callable[[Diverged], Recovered]:
    """What to go on with after a loss that cannot be.

    Back to the newest checkpoint before the step whose update may have led there, or to `first`, the state before the
    first step; without the batches of that step and of the one where it showed. Raises InputError after `limit` times.
    """

    def recover(lost: Diverged) -> Recovered:
        known = agreement.shared(lambda: rollbacks(directory))
        if len(known) >= limit:
            again = f", after going back {limit} time(s)" if limit else ""
            raise InputError(lost.problem + again, lost.remedy)
        before = stream.without([number for rollback in known for number in rollback["skipped"]])
        # the loss of a step shows what the update before it made
        numbers = [before.number(step) for step in (lost.step - 2, lost.step - 1) if step >= 0]
        checkpoints.forget(after=max(lost.step - 2, 0))
        begun = {"window": []}
        state = first()
        if checkpoints.latest() is not None:
            state, begun = checkpoints.restore(state, mesh, rules)
        back = int(state.step)
        rollback = {"step": lost.step, "problem": lost.problem, "back_to": back, "skipped": numbers}

        def note() -> float:
            runs.rewind(directory, back)
            runs.write(directory / NAME, {"rollbacks": [*known, rollback]})
            return min(last_loss(directory), 1e300)  # JSON has no infinity

        last = agreement.shared(note)
        reporter.say(f"recovered  {lost.problem}: back to step {back}, without the batches {numbers}")
        return Recovered(before.without(numbers), state, read(begun["window"]), last)

    return recover
