"""Each algorithm against its paper written out in numpy, in float64: linear regression on ragged clients."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from lepton_jax import federated
from lepton_jax.federated import nova, scaffold, server

RATE, WIDTH, CLIENTS, STEPS, BATCH, ROUNDS = 0.05, 5, 6, 4, 3, 4
COHORTS = [np.array(cohort) for cohort in ([0, 2, 3], [1, 2, 5], [0, 4, 5], [1, 3, 4])]


def squared(params, stats, batch, key):
    """Half of the squared error, by weight."""
    error = jnp.square(batch["input"] @ params["w"] - batch["label"]) / 2
    return lp.Mean(jnp.sum(batch["weight"] * error), jnp.sum(batch["weight"])), lp.Aux(stats, {})


class Client:
    """A client's local data, padded, and its gradients in numpy."""

    def __init__(self, number: int):
        rng = np.random.default_rng(number)
        self.examples = [3, 5, 12, 7, 1, 9][number]
        self.inputs = rng.normal(size=(STEPS, BATCH, WIDTH))
        self.labels = self.inputs @ (np.arange(WIDTH) + rng.normal(size=WIDTH)) + 1
        self.weight = (np.arange(STEPS * BATCH) < self.examples).astype(np.float64).reshape(STEPS, BATCH)

    @property
    def steps(self) -> int:
        return math.ceil(self.examples / BATCH)

    def gradient(self, w: np.ndarray, step: int) -> np.ndarray:
        there = self.weight[step] > 0
        inputs, labels = self.inputs[step][there], self.labels[step][there]
        return inputs.T @ (inputs @ w - labels) / len(labels)

    def train(self, w: np.ndarray, change: Any = lambda w: 0, momentum: float = 0.0) -> np.ndarray:
        trace = np.zeros_like(w)
        for step in range(self.steps):
            trace = momentum * trace + self.gradient(w, step) + change(w)
            w = w - RATE * trace
        return w


ALL = [Client(number) for number in range(CLIENTS)]


def batch(cohort: np.ndarray) -> dict[str, np.ndarray]:
    rows = [ALL[number] for number in cohort]
    columns = {name: np.stack([getattr(row, name) for row in rows]) for name in ("inputs", "labels", "weight")}
    return {"input": columns["inputs"], "label": columns["labels"], "weight": columns["weight"], "client": cohort}


def run(step: Any, optimizer: Any, **stats: Any) -> lp.TrainState:
    params = {"w": jnp.zeros(WIDTH)}
    state = lp.TrainState(jnp.int32(0), params, stats, optimizer.init(params), jax.random.key(0))
    compiled = jax.jit(step)
    for cohort in COHORTS:
        state, _ = compiled(state, batch(cohort))
    return state


def client(around: Any = lambda gradient: gradient, momentum: float | None = None) -> federated.Client:
    sgd = optax.sgd(RATE, momentum)
    return federated.local(lp.descend(around(lp.plain(squared)), sgd), sgd)


def shares(cohort: np.ndarray) -> np.ndarray:
    examples = np.array([ALL[number].examples for number in cohort])
    return examples / examples.sum()


def pseudo_gradients(w: np.ndarray, cohort: np.ndarray) -> np.ndarray:
    return shares(cohort) @ np.stack([w - ALL[number].train(w) for number in cohort])


def assert_close(state: lp.TrainState, w: np.ndarray) -> None:
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    assert np.linalg.norm(w) > 1


def adaptive(accumulate: Any, b1: float) -> np.ndarray:
    """Algorithm 2 of Reddi et al., without correction of the moments' start."""
    w, m, v = np.zeros(WIDTH), np.zeros(WIDTH), np.full(WIDTH, 1e-3**2)
    for cohort in COHORTS:
        delta = -pseudo_gradients(w, cohort)
        m = b1 * m + (1 - b1) * delta
        v = accumulate(v, delta**2)
        w = w + 0.5 * m / (np.sqrt(v) + 1e-3)
    return w


def test_fedavg(float64):
    w = np.zeros(WIDTH)
    for cohort in COHORTS:
        w = shares(cohort) @ np.stack([ALL[number].train(w) for number in cohort])
    assert_close(run(lp.descend(federated.federated(client()), server.averaging()), server.averaging()), w)


def test_fedavgm(float64):
    w, v = np.zeros(WIDTH), np.zeros(WIDTH)
    for cohort in COHORTS:
        v = 0.9 * v + pseudo_gradients(w, cohort)
        w = w - 0.7 * v
    by = server.momentum(0.7, 0.9)
    assert_close(run(lp.descend(federated.federated(client()), by), by), w)


@pytest.mark.parametrize(
    ("by", "accumulate", "b1"),
    [
        (server.adagrad(0.5), lambda v, d: v + d, 0.0),
        (server.adam(0.5), lambda v, d: 0.99 * v + 0.01 * d, 0.9),
        (server.yogi(0.5), lambda v, d: v - 0.01 * d * np.sign(v - d), 0.9),
    ],
)
def test_fedadagrad_fedadam_fedyogi(by, accumulate, b1, float64):
    assert_close(run(lp.descend(federated.federated(client()), by), by), adaptive(accumulate, b1))


@pytest.mark.parametrize("by", [optax.adam(0.1), optax.yogi(0.1), optax.lamb(0.1)])
def test_any_optimizer_of_optax_gets_the_pseudo_gradient(by, float64):
    state, params = run(lp.descend(federated.federated(client()), by), by), {"w": jnp.zeros(WIDTH)}
    moments = by.init(params)
    for cohort in COHORTS:
        way, moments = by.update({"w": jnp.asarray(pseudo_gradients(np.array(params["w"]), cohort))}, moments, params)
        params = optax.apply_updates(params, way)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-6)


def test_fedprox(float64):
    w = np.zeros(WIDTH)
    for cohort in COHORTS:
        ends = [ALL[number].train(w, change=lambda here, w=w: 0.3 * (here - w)) for number in cohort]
        w = shares(cohort) @ np.stack(ends)
    held = client(lambda gradient: federated.proximal(gradient, 0.3))
    assert_close(run(lp.descend(federated.federated(held), server.averaging()), server.averaging()), w)


def test_scaffold(float64):
    """Algorithm 1 of Karimireddy et al., option II."""
    w, c, own = np.zeros(WIDTH), np.zeros(WIDTH), np.zeros((CLIENTS, WIDTH))
    for cohort in COHORTS:
        ends, ways = [], []
        for number in cohort:
            here = ALL[number]
            end = here.train(w, change=lambda _, number=number, c=c: c - own[number])
            new = own[number] - c + (w - end) / (here.steps * RATE)
            ends.append(end)
            ways.append(new - own[number])
            own[number] = new
        w = w + np.mean(np.stack(ends) - w, axis=0)
        c = c + len(cohort) / CLIENTS * np.mean(ways, axis=0)
    informed = scaffold.informed(federated.equal(client(scaffold.corrected)), RATE)
    step = lp.descend(scaffold.controlled(federated.federated(informed), CLIENTS), server.averaging())
    zero = {"w": jnp.zeros(WIDTH)}
    state = run(step, server.averaging(), scaffold=zero, clients=federated.kept({"scaffold": zero}, CLIENTS))
    assert_close(state, w)
    np.testing.assert_allclose(state.stats["scaffold"]["w"], c, rtol=1e-5)
    np.testing.assert_allclose(state.stats["clients"]["scaffold"]["w"], own, rtol=1e-5, atol=1e-9)
    # the server's variate is the mean of the clients', as the paper has it
    np.testing.assert_allclose(c, own.mean(axis=0))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova(momentum, float64):
    w = np.zeros(WIDTH)
    for cohort in COHORTS:
        lengths = []
        for number in cohort:
            steps = ALL[number].steps
            # how often the j-th gradient counts: once, and through every later step's momentum
            lengths.append(sum(sum(momentum**i for i in range(steps - j)) for j in range(steps)))
        ways = [(w - ALL[n].train(w, momentum=momentum)) / length for n, length in zip(cohort, lengths, strict=True)]
        w = w - (shares(cohort) @ lengths) * (shares(cohort) @ np.stack(ways))
    normalized = nova.normalized(client(momentum=momentum or None), momentum)
    step = lp.descend(nova.rescaled(federated.federated(normalized)), server.averaging())
    assert_close(run(step, server.averaging()), w)


BAD = [
    (lambda: server.averaging(0), "learning rate 0 is not positive"),
    (lambda: server.adam(0.1, b2=1.0), r"b2 1.0 is outside \[0, 1\)"),
    (lambda: server.yogi(0.1, tau=-1), "tau -1 is not positive"),
    (lambda: server.momentum(1.0, -0.1), "momentum -0.1 is outside"),
    (lambda: federated.proximal(lp.plain(squared), -1), "strength -1 is negative"),
    (lambda: scaffold.informed(client(), 0), "learning rate 0 is not positive"),
    (lambda: scaffold.controlled(client(), 0), "0 clients have no variates"),
    (lambda: nova.normalized(client(), 1.0), r"momentum 1.0 is outside \[0, 1\)"),
]


@pytest.mark.parametrize(("make", "problem"), BAD)
def test_numbers_that_cannot_be_are_refused(make, problem):
    with pytest.raises(lp.InputError, match=problem):
        make()
