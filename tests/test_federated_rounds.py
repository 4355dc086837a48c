"""A round is a gradient: what it equals, on every mesh, and what takes no part moves nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from lepton_jax import federated, models
from tests import laws

CLIENTS, STEPS, BATCH = 8, 3, 4
MODEL = models.mlp((16,), 10)
LOSS = lp.supervised(MODEL, lp.cross_entropy())


def cohort(clients: int = CLIENTS, steps: int = STEPS, size: int = BATCH, ragged: bool = False) -> dict:
    """Digits for each client, some of them padding that holds nonsense."""
    rng = np.random.default_rng(0)
    index = rng.integers(0, 80, (clients, steps, size)).astype(np.int32)
    columns = laws.digits().gather(index.ravel())
    batch = {name: x.reshape(clients, steps, size, *x.shape[1:]) for name, x in columns.items()}
    batch = {**batch, "input": batch["input"].astype(np.float32) / 255, "index": index}
    if ragged:
        weight = (np.arange(steps * size) < rng.integers(1, steps * size, clients)[:, None]).astype(np.float32)
        batch["weight"] = weight.reshape(clients, steps, size)
        batch["input"] = np.where(batch["weight"][..., None, None, None] == 0, np.float32(255), batch["input"])
    return batch


def state(optimizer: optax.GradientTransformation, **stats) -> lp.TrainState:
    return lp.initial(MODEL, optimizer, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), **stats)


def client(optimizer: optax.GradientTransformation) -> federated.Client:
    return federated.local(lp.descend(lp.plain(LOSS), optimizer), optimizer)


def test_law_2_one_client_and_one_step_of_sgd_1_is_plain():
    begun = state(optax.sgd(1.0))
    batch = cohort(1, 1, 16)
    flat = {name: x.reshape(16, *x.shape[3:]) for name, x in batch.items()}
    mean, aux = jax.jit(lp.plain(LOSS))(begun.params, begun.stats, flat, begun.key)
    other, seen = jax.jit(federated.federated(client(optax.sgd(1.0))))(begun.params, begun.stats, batch, begun.key)
    assert other.weight == mean.weight == 16
    assert lp.tree.distance(other.total, mean.total) < 1e-6
    assert lp.tree.distance(seen.metrics["loss"], aux.metrics["loss"]) < 1e-6


def test_one_local_step_of_all_clients_is_a_step_of_all_their_examples():
    """Ragged clients too: each counts by its examples."""
    local, server = optax.sgd(0.3), optax.sgd(1.0)
    batch = cohort(CLIENTS, 1, 12, ragged=True)
    flat = {name: x.reshape(-1, *x.shape[3:]) for name, x in batch.items()}
    begun = state(local)
    central, _ = jax.jit(lp.descend(lp.plain(LOSS), local))(begun, flat)
    step = lp.descend(federated.federated(client(local)), server)
    after, metrics = jax.jit(step)(begun._replace(opt_state=server.init(begun.params)), batch)
    assert lp.tree.distance(after.params, central.params) < 1e-6
    assert metrics["loss"].weight == batch["weight"].sum()


@pytest.mark.parametrize("together", [2, 4, 8])
def test_clients_side_by_side_are_the_same(together):
    begun, batch = state(optax.sgd(0.1)), cohort(ragged=True)
    runs = [jax.jit(federated.federated(client(optax.sgd(0.1)), together=n)) for n in (1, together)]
    alone, beside = (run(begun.params, begun.stats, batch, begun.key) for run in runs)
    assert lp.tree.distance(beside, alone) < 1e-6


@pytest.mark.parametrize("axes", ["2x1", "8x1", "2x4"])
def test_the_same_round_on_every_mesh(axes):
    batch, server = cohort(ragged=True), optax.sgd(1.0)
    batch["participation"] = np.array([1, 1, 0, 1, 1, 0, 1, 1], np.float32)
    update = lp.descend(federated.federated(client(optax.sgd(0.1))), server)
    ends = []
    for name in ("1x1", axes):
        over = lp.mesh.make(name)
        begun = lp.step.place(state(server), over)
        ends.append(lp.step.compile(update, begun, batch, over)(begun, lp.mesh.place(batch, over))[0])
    assert lp.tree.distance(ends[1].params, ends[0].params) < 1e-6


def test_virtual_shards_make_rounds_the_same_bits():
    batch, server = cohort(ragged=True), optax.sgd(1.0, momentum=0.9)
    update = lp.descend(lp.sharded(federated.federated(client(optax.sgd(0.1))), 8), server)
    ends = []
    for name in ("1x1", "2x1", "8x1"):
        over = lp.mesh.make(name)
        now = lp.step.place(state(server), over)
        run = lp.step.compile(update, now, batch, over)
        for _ in range(5):
            now, _ = run(now, lp.mesh.place(batch, over))
        ends.append(jax.device_get(now.params))
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, end, ends[0])


def test_virtual_shards_refuse_what_clients_keep():
    begun = state(optax.sgd(1.0), clients=lambda params: federated.kept({"w": jnp.zeros(2)}, CLIENTS))
    gradient = lp.sharded(federated.federated(client(optax.sgd(0.1))), 8)
    with pytest.raises(lp.InputError, match="'clients/w' is what clients keep"):
        jax.eval_shape(gradient, begun.params, begun.stats, cohort(), begun.key)


def test_who_takes_no_part_moves_nothing():
    """The same as if it had not been asked, even if what it holds is not a number."""
    begun, batch = state(optax.sgd(0.1)), cohort()
    batch["input"][3] = np.nan
    gradient = jax.jit(federated.federated(client(optax.sgd(0.1))))
    batch["participation"] = (np.arange(CLIENTS) != 3).astype(np.float32)
    batch["client"] = np.arange(CLIENTS)
    there = {name: np.delete(x, 3, axis=0) for name, x in batch.items()}
    some, alone = (gradient(begun.params, begun.stats, rows, begun.key) for rows in (batch, there))
    assert lp.tree.distance(some[0], alone[0]) < 1e-6
    assert lp.tree.distance(some[1].metrics, alone[1].metrics) < 1e-6


def test_a_round_without_anyone_moves_nothing():
    begun, batch = state(optax.adam(0.1)), cohort()
    update = lp.descend(federated.federated(client(optax.sgd(0.1))), optax.adam(0.1))
    after, _ = jax.jit(update)(begun, {**batch, "participation": np.zeros(CLIENTS, np.float32)})
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (begun.params, begun.opt_state))


def test_what_clients_keep_goes_to_the_right_rows():
    """Only who took part leaves a new row; a number beyond the last client is padding."""

    def counting(params, stats, batches, key):
        own = {"rounds": stats["client"]["rounds"] + 1}
        moved = {**stats, "client": own, "shared": stats["shared"] + own["rounds"]}
        return lp.Mean(jax.tree.map(jnp.zeros_like, params), federated.examples(batches)), lp.Aux(moved, {})

    kept = federated.kept({"rounds": jnp.float32(0)}, 12)
    kept["rounds"] = kept["rounds"].at[5].set(7)
    batch = cohort(4)
    batch |= {"client": np.array([0, 5, 9, 12]), "participation": np.array([1, 1, 0, 0], np.float32)}
    stats = {"clients": kept, "shared": jnp.float32(1), "count": jnp.int32(3)}
    _, aux = jax.jit(federated.federated(counting))({"w": jnp.ones(3)}, stats, batch, jax.random.key(0))
    np.testing.assert_array_equal(aux.stats["clients"]["rounds"], [1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0])
    assert aux.stats["shared"] == 1 + (1 + 8) / 2
    assert aux.stats["count"] == 3


def test_clients_draw_by_their_number_and_not_by_their_place():
    model = models.cnn(10, widths=(4,), hidden=8, dropout=0.5)
    loss = lp.supervised(model, lp.cross_entropy())
    sgd, batch = optax.sgd(0.1), {**cohort(4), "client": np.array([3, 1, 0, 2])}
    begun = lp.initial(model, sgd, jax.random.key(0), batch["input"][0, 0])
    gradient = jax.jit(federated.federated(federated.local(lp.descend(lp.plain(loss), sgd), sgd)))
    turned = {name: x[::-1] for name, x in batch.items()}
    one, other = (gradient(begun.params, begun.stats, rows, begun.key) for rows in (batch, turned))
    assert lp.tree.distance(other[0], one[0]) < 1e-6


def test_personalized_is_where_local_training_ends():
    begun, batch = state(optax.sgd(0.1)), {name: x[0] for name, x in cohort(1).items()}
    now = begun
    for number in range(STEPS):
        now, _ = jax.jit(lp.descend(lp.plain(LOSS), optax.sgd(0.1)))(
            now, {name: x[number] for name, x in batch.items()}
        )
    own, _ = federated.personalized(client(optax.sgd(0.1)), begun.params, begun.stats, batch, begun.key)
    assert lp.tree.distance(own, now.params) < 1e-6


def test_cohorts_that_do_not_divide_are_refused():
    begun = state(optax.sgd(0.1))
    with pytest.raises(lp.InputError, match="3 clients side by side do not divide the 8"):
        federated.federated(client(optax.sgd(0.1)), together=3)(begun.params, begun.stats, cohort(), begun.key)
    with pytest.raises(lp.InputError, match="0 clients"):
        federated.federated(client(optax.sgd(0.1)), together=0)
    with jax.set_mesh(lp.mesh.make("8x1")), pytest.raises(lp.InputError, match="6 clients does not divide over the 8"):
        federated.federated(client(optax.sgd(0.1)))(begun.params, begun.stats, cohort(6), begun.key)
