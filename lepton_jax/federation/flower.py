"""The same job on Flower: a ClientApp and a Strategy, for those who outgrow the transport of this house.

Flower 1.42 (https://flower.ai; pip install "lepton-jax[flower]") then starts the processes and carries the messages;
what is computed, and the order in which updates add up, are the job's. A client's number is its node's `partition-id`.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.errors import InputError
from lepton_jax.federated import Sent
from lepton_jax.federation import job, wire
from lepton_jax.federation.job import Job

if TYPE_CHECKING:
    from flwr.app import Message  # pyright: ignore[reportMissingImports]

ARRAYS, OWN, TASK, METRICS = "arrays", "own", "task", "metrics"


def client_app(job_: Job) -> Any:
    """A ClientApp that answers "train" with what the job's client sends.

    What a client keeps from round to round is in its node's context. Raises InputError where flwr is missing.
    """
    _require()
    from flwr.app import Message, RecordDict  # pyright: ignore[reportMissingImports]
    from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

    job.check(job_)
    app, compute = ClientApp(), jax.jit(job.answer(job_))
    begun = jax.eval_shape(job_.state)
    like = {"params": begun.params, "stats": begun.stats}
    kept = jax.jit(lambda: job_.own(job_.state().params))()

    @app.train()
    def train(message: Any, context: Any) -> "Message":
        number = int(context.node_config["partition-id"])
        task = message.content[TASK]
        given = wire.restored(_arrays(message.content[ARRAYS]), like)
        own = wire.restored(_arrays(context.state[OWN]), kept) if OWN in context.state else kept
        key = jax.random.wrap_key_data(jnp.asarray(task["key"], jnp.uint32))
        batches = job_.data(job_.clients[number], task["round"])
        sent, own = compute(given["params"], given["stats"], own, batches, key, number)
        context.state[OWN] = _record(wire.arrays(own))
        records = {ARRAYS: _record(wire.arrays(sent)), METRICS: _numbers({"client": number})}
        return Message(RecordDict(records), reply_to=message)

    return app


def strategy(job_: Job) -> Any:
    """A Strategy whose rounds are the job's: every node trains, and the job's step takes what they send.

    `strategy.start(grid, strategy.arrays(), job.rounds)` runs it; `strategy.state` is the TrainState. A round without
    any answer moves nothing. Raises InputError where flwr is missing.
    """
    _require()
    from flwr.app import ConfigRecord, Message, RecordDict  # pyright: ignore[reportMissingImports]
    from flwr.serverapp.strategy import Strategy  # pyright: ignore[reportMissingImports]

    job.check(job_)
    step, begun = jax.jit(job_.step), job_.state()
    like = job.sent_like(job_, begun)

    class Rounds(Strategy):
        """The job's rounds."""

        def __init__(self) -> None:
            self.state = begun

        def arrays(self) -> Any:
            """Parameters and stats as an ArrayRecord."""
            return _record(wire.arrays({"params": self.state.params, "stats": self.state.stats}))

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
            key = jax.random.key_data(job.round_key(self.state)).tolist()
            task = ConfigRecord({"round": int(self.state.step), "key": key})
            content = RecordDict({ARRAYS: self.arrays(), TASK: task})
            return [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]

        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            good = [reply.content for reply in replies if not reply.has_error()]
            if not good:
                return None, None
            answers: dict[int, Sent] = {
                int(content[METRICS]["client"]): wire.restored(_arrays(content[ARRAYS]), like) for content in good
            }
            sent = job.folded(job_, [answers[number] for number in sorted(answers)])
            self.state, found = step(self.state, {"sent": sent})
            return self.arrays(), _numbers({name: float(mean.value()) for name, mean in found.items()})

        def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
            return []

        def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> Any:
            return None

        def summary(self) -> None:
            """Flower logs the rest."""

    return Rounds()


def _require() -> None:
    if importlib.util.find_spec("flwr") is None:
        raise InputError("this needs Flower, which is not installed", 'pip install "lepton-jax[flower]"')


def _record(arrays: Mapping[str, np.ndarray]) -> Any:
    from flwr.app import Array, ArrayRecord  # pyright: ignore[reportMissingImports]

    return ArrayRecord({name: Array(np.array(array, order="C", copy=None)) for name, array in arrays.items()})


def _arrays(record: Any) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def _numbers(values: Mapping[str, float]) -> Any:
    from flwr.app import MetricRecord  # pyright: ignore[reportMissingImports]

    return MetricRecord(dict(values))
