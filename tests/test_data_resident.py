"""Inputs that lie on the devices: the same run, and batches that do not carry them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from experiments import federated
from lepton_jax import cli
from lepton_jax.data import resident
from tests import laws


def first(source: lp.data.Source) -> dict[str, np.ndarray]:
    return lp.data.Stream(source, laws.BATCH, 3).batch(0)


def test_a_batch_carries_all_but_inputs():
    weighted = lp.data.weighted(laws.digits(), np.arange(10, dtype=np.float32))
    held = lp.data.Resident(weighted)
    whole, part = first(weighted), first(held)
    np.testing.assert_array_equal(held.inputs[part["index"]], whole.pop("input"))
    assert sorted(part) == ["index", "label", "weight"]
    for name, column in whole.items():
        np.testing.assert_array_equal(part[name], column)
    np.testing.assert_array_equal(lp.data.labels(held), lp.data.labels(weighted))
    assert held[7]["label"] == weighted[7]["label"]


def test_what_is_looked_up_is_what_would_have_come():
    held = lp.data.Resident(laws.digits())
    seen = []

    def loss(params, stats, batch, key):
        seen.append(batch["input"])
        return lp.types.Mean(jnp.float32(0), jnp.float32(1)), lp.types.Aux(stats, {})

    lp.resident(loss, held.inputs)({}, {}, first(held), jax.random.key(0))
    np.testing.assert_array_equal(seen[0], first(laws.digits())["input"])


def test_too_much_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(resident, "RESIDENT_BYTES", 80 * 64 - 1)
    source = laws.digits()
    monkeypatch.setattr(type(source), "gather", lambda self, indices: {"input": self.columns["input"][indices[:1]]})
    with pytest.raises(lp.InputError, match="too many to be held on every device"):
        lp.data.Resident(source)


def test_a_batch_without_index_is_refused():
    loss = lp.resident(lp.supervised(laws.models()["mlp"](), lp.cross_entropy()), laws.digits().columns["input"])
    with pytest.raises(lp.InputError, match="does not say which examples"):
        loss({}, {}, {"label": np.zeros(4, np.int32)}, jax.random.key(0))


@pytest.mark.parametrize("algorithm", ["fedavg", "centralized"])
def test_the_recipe_makes_the_same_steps(algorithm):
    ends = []
    for held in (False, True):
        config = dataclasses.replace(federated.PRESETS["smoke"], algorithm=algorithm, augment=True, resident=held)
        recipe = federated.compose(config)
        assert ("input" in recipe.stream.batch(0)) is not held
        inputs = lp.data.gather(recipe.dataset.train, [0])["input"]
        state = lp.initial(recipe.model, recipe.optimizer, lp.keys.seeded(0), inputs, **recipe.stats)
        step = jax.jit(recipe.step)
        for number in range(2):
            state, _ = step(state, recipe.stream.batch(number))
        ends.append(state.params)
    assert lp.tree.distance(*ends) < 1e-6


def test_a_run_over_devices_with_all_that_reads_examples(tmp_path):
    flags = ("--preset", "smoke", "--resident", "--personalize", "--mesh", "4x1", "--run", str(tmp_path / "run"))
    assert cli.outcome(federated.main, federated.Config, federated.PRESETS, list(flags)) == 0
    assert (tmp_path / "run" / "personal.json").is_file()
    assert (tmp_path / "run" / "clients.png").is_file()


def test_a_job_between_machines_has_no_inputs_of_all_clients():
    with pytest.raises(lp.InputError, match="no inputs of all clients"):
        federated.job(dataclasses.replace(federated.PRESETS["smoke"], resident=True))
