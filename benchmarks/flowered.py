"""The job of benchmarks.federated in Flower's simulation; run by an interpreter that has flwr[simulation], not by hand.

Nothing of Lepton is here. A client's local training is one jitted loop, compiled once in each of Ray's workers.
"""

# pyright: reportMissingImports=false

import functools
import json
import sys
import time
from typing import Any

import numpy as np


@functools.cache
def data(clients: int, examples: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The same arrays in every worker, [clients, examples, ...]."""
    rng = np.random.default_rng(0)
    inputs = rng.random((clients, examples, 784), np.float32)
    return inputs, rng.integers(0, classes, (clients, examples)).astype(np.int32)


@functools.cache
def training() -> Any:
    """Steps of SGD over [steps, batch, ...]: (weights, inputs, labels) -> weights."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss(weights: Any, inputs: Any, labels: Any) -> Any:
        first, bias, last, offset = weights
        logits = jnp.maximum(inputs @ first + bias, 0) @ last + offset
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(weights: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights, *batch)), None

    return jax.jit(lambda weights, inputs, labels: jax.lax.scan(step, weights, (inputs, labels))[0])


def main() -> None:
    """Hold the rounds, and print the rate of those after the first as JSON."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    clients, examples, batch, width, classes, rounds = map(int, sys.argv[1:7])
    client, server, ends = ClientApp(), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        import flowered

        inputs, labels = (column[int(context.node_config["partition-id"])] for column in flowered.data(*sizes))
        weights = message.content["arrays"].to_numpy_ndarrays()
        parts = inputs.reshape(-1, batch, 784), labels.reshape(-1, batch)
        trained = [np.asarray(w) for w in flowered.training()(weights, *parts)]
        told = MetricRecord({"num-examples": examples})
        return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": told}), reply_to=message)

    sizes = (clients, examples, classes)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        rng = np.random.default_rng(0)
        shapes = ((784, width), (width,), (width, classes), (classes,))
        start = ArrayRecord([rng.normal(0, 0.05, shape).astype(np.float32) for shape in shapes])
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)
        strategy.start(grid, start, rounds + 1, evaluate_fn=lambda number, arrays: ends.append(time.perf_counter()))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"include_dashboard": False}}
    run_simulation(server, client, clients, backend_config=resources)
    # one time before the first round, and one after each; the first round starts workers and compiles
    seconds = (ends[-1] - ends[1]) / rounds
    print(json.dumps({"clients_per_second": clients / seconds}), flush=True)


if __name__ == "__main__":
    main()
