"""A small federated experiment: a linear model, each client's data drawn from its number and the round."""

import time
from dataclasses import dataclass

import lepton_jax as lp

STEPS, BATCH, INPUTS, CLASSES = 4, 8, 6, 3


@dataclass(frozen=True)
class Config(lp.config.Config):
    """A job for tests of the transport."""

    clients: int = 3
    """Clients n0, n1 ..."""
    rounds: int = 3
    """Rounds."""
    pause: float = 0.0
    """Seconds that each client sleeps before it computes."""
    keeping: bool = False
    """Send signs, and keep for the next round what they leave out."""
    width: int = 1
    """Columns of a weight that only makes the model larger."""


PRESETS = {"small": Config()}


def loss(params, stats, batch, key):
    """Cross-entropy, with noise on the inputs so that the key matters."""
    import jax
    import jax.numpy as jnp
    import optax

    inputs = batch["input"] + 0.1 * jax.random.normal(key, batch["input"].shape)
    outputs = inputs @ params["w"] + params["b"][None] + params["ballast"].mean()
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])
    right = outputs.argmax(-1) == batch["label"]
    scores = {"loss": losses, "accuracy": right.astype("float32")}
    metrics = {name: lp.Mean(score.sum(), jnp.float32(losses.size)) for name, score in scores.items()}
    return metrics["loss"], lp.Aux(stats, metrics)


def state(config, optimizer):
    """Before the first round."""
    import jax
    import jax.numpy as jnp

    key = lp.keys.seeded(config.seed)
    weights = jax.random.normal(lp.keys.named(key, "init"), (INPUTS, CLASSES))
    params = {"w": weights, "b": jnp.zeros(CLASSES), "ballast": jnp.zeros((1000, config.width))}
    return lp.TrainState(jnp.int32(0), params, {}, optimizer.init(params), lp.keys.named(key, "run"))


def batches(number, round_):
    """One client's batches in a round."""
    import numpy as np

    rng = np.random.default_rng([number, round_])
    inputs = rng.normal(number / 3, 1, (STEPS, BATCH, INPUTS)).astype(np.float32)
    labels = (inputs.sum(-1) > 0).astype(np.int32) + (inputs[..., 0] > 1)
    return {"input": inputs, "label": labels.astype(np.int32)}


def job(config):
    """The job that coordinator and clients compose."""
    import optax

    from lepton_jax import federated, federation

    names = tuple(f"n{number}" for number in range(config.clients))
    local, server = optax.sgd(config.learning_rate), optax.sgd(1.0, momentum=0.5)
    algorithm = federated.algorithms.Algorithm()
    if config.keeping:
        code = federated.sign()
        algorithm = algorithm.sending(lambda client: federated.compressed(client, code), residual=lp.tree.zeros)

    def data(name, round_):
        time.sleep(config.pause)
        return batches(names.index(name), round_)

    return federation.Job(
        name="federated_job",
        state=lambda: state(config, server),
        client=algorithm.trained(lp.plain(loss), local),
        step=lp.descend(federation.received, server),
        clients=names,
        rounds=config.rounds,
        batches=lp.step.shapes(batches(0, 0)),
        data=data,
        own=algorithm.started,
    )


CONFIG = Config(rounds=3)
TERMS = lp.federation.Terms(quorum=2, deadline=20, gather=20, heartbeat=0.5)


class Events(list):
    """Events, as a log keeps them."""

    def write(self, event, **fields):
        self.append({"event": event, **fields})

    def of(self, kind):
        return [event for event in self if event["event"] == kind]
