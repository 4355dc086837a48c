"""Going back from a loss that cannot be, and leaving when asked to: in both cases the same run as without."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from experiments import resnet
from lepton_jax import experiment, preemption, recovery
from lepton_jax.errors import DamagedError, PreemptedError
from lepton_jax.types import Mean, Step

POISON = 777  # an example: once in every epoch
TIMED = ("train/examples_per_second", "train/input_idle")


def poisoned(step: Step, when: str) -> Step:
    """What the batch with one example does: its loss is lost, or its update is and the next loss shows it."""

    def poisoned_step(state: Any, batch: Any) -> tuple[Any, Any]:
        after, metrics = step(state, batch)
        bad, loss = jnp.any(batch["index"] == POISON), metrics["loss"]
        worse = {"at once": jnp.nan, "a step later": 1.0, "as a spike": 50.0}[when]
        total = jnp.where(bad, loss.total * worse, loss.total)
        if when != "as a spike":
            after = after._replace(params=jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), after.params))
        return after, {**metrics, "loss": Mean(total, loss.weight)}

    return poisoned_step


def ran(
    directory: pathlib.Path, when: str = "at once", without: tuple[int, ...] = (), **flags: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """(final state, rows without times) of two epochs of an MLP on digits."""
    config = dataclasses.replace(
        resnet.PRESETS["smoke"], model="mlp", log_every=5, run=str(directory), mesh="1x1", **flags
    )
    recipe = resnet.compose(config)
    recipe = dataclasses.replace(recipe, step=poisoned(recipe.step, when), stream=recipe.stream.without(without))
    result = experiment.run(recipe, config)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return result.state, [{name: value for name, value in row.items() if name not in TIMED} for row in lines]


def equal(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(*(jax.random.key_data(x) if x.dtype == one.key.dtype else x for x in (a, b)))


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """A run that went back: state, rows, and its directory."""
    directory = tmp_path_factory.mktemp("lost")
    return *ran(directory), directory


def test_the_batches_that_led_there_are_skipped_as_if_they_had_never_been(lost, tmp_path):
    state, rows, directory = lost
    rollbacks = recovery.rollbacks(directory)
    numbers = tuple(recovery.skipped(directory))
    stream = resnet.compose(dataclasses.replace(resnet.PRESETS["smoke"], model="mlp")).stream
    assert all(any(POISON in stream.batch(n)["index"] for n in rollback["skipped"]) for rollback in rollbacks)
    assert [rollback["back_to"] for rollback in rollbacks] == [0, 12]  # the beginning, and a checkpoint
    whole, others = ran(tmp_path, without=numbers)
    equal(state, whole)
    assert rows == others
    assert {row["step"] for row in rows} == {5, 10, 12, 15, 20, 23}
    assert all(math.isfinite(row.get("train/loss", 0.0)) for row in rows)


@pytest.mark.parametrize("when", ["a step later", "as a spike"])
def test_what_shows_later_or_is_only_far_too_large_is_gone_back_from_too(when, tmp_path):
    ran(tmp_path / "one", when, spike=10.0)
    rollbacks = recovery.rollbacks(tmp_path / "one")
    assert len(rollbacks) == 2
    assert ("which is above" in rollbacks[0]["problem"]) == (when == "as a spike")
    _, rows = ran(tmp_path / "again", when, spike=10.0, without=tuple(recovery.skipped(tmp_path / "one")))
    assert not recovery.rollbacks(tmp_path / "again")
    assert rows == ran(tmp_path / "one", when, spike=10.0)[1]


@pytest.mark.parametrize(("limit", "words"), [(0, ""), (1, ", after going back 1 time(s)")])
def test_it_goes_back_so_many_times_and_then_gives_up(limit, words, tmp_path):
    with pytest.raises(lp.InputError) as caught:
        ran(tmp_path, rollbacks=limit)
    assert caught.value.problem.startswith("the loss is nan at step ")
    assert caught.value.problem.endswith(words)
    assert "--learning-rate" in caught.value.remedy
    assert not (tmp_path / "result.json").exists()
    assert len(recovery.rollbacks(tmp_path)) == limit


@pytest.mark.parametrize("at", [3, 11, 14, 20])
def test_asked_to_leave_at_any_step_the_run_saves_it_and_goes_on_as_if_nothing_had_been(
    at, lost, tmp_path, monkeypatch
):
    """In the middle of a row too, whose mean is that of all its steps; and after going back."""
    monkeypatch.setattr(preemption, "is_asked", lambda step: step == at)
    with pytest.raises(PreemptedError, match=f"saved at step {at};"):
        ran(tmp_path)
    assert (tmp_path / "checkpoints" / str(at)).is_dir()
    monkeypatch.setattr(preemption, "is_asked", lambda step: False)
    state, rows = ran(tmp_path)
    equal(state, lost[0])
    assert rows == lost[1]


def test_asked_at_the_last_step_it_ends(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(preemption, "is_asked", lambda step: step == 23)
    equal(ran(tmp_path)[0], lost[0])


def test_a_record_of_what_is_skipped_that_is_no_record_stops_the_run(tmp_path):
    (tmp_path / recovery.NAME).write_text('{"rollbacks": 3')
    with pytest.raises(DamagedError, match=recovery.NAME):
        recovery.skipped(tmp_path)
