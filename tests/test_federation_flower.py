"""A job on Flower's messages is the job: needs flwr, which is not among the tools of the house."""

import importlib.util

import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax.errors import InputError
from lepton_jax.federation import flower
from tests import federated_job
from tests.federated_job import CONFIG
from tests.test_federation_rounds import simulated

missing = importlib.util.find_spec("flwr") is None


@pytest.mark.skipif(not missing, reason="flwr is installed")
@pytest.mark.parametrize("make", [flower.client_app, flower.strategy])
def test_where_flower_is_missing_the_extra_is_named(make):
    with pytest.raises(InputError, match=r"lepton-jax\[flower\]"):
        make(federated_job.job(CONFIG))


@pytest.mark.skipif(missing, reason='flwr is not installed: pip install "lepton-jax[flower]"')
@pytest.mark.filterwarnings("default::DeprecationWarning")  # of what flwr itself imports
@pytest.mark.parametrize("broken", [None, 1])
def test_rounds_on_flower_are_those_of_the_simulation(broken):
    """Through Flower's own messages, serialized and back; with a node that fails, too."""
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.serverapp import Grid
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # as Flower's own processes begin
    job = federated_job.job(CONFIG)
    app, strategy = flower.client_app(job), flower.strategy(job)
    contexts = {10 + n: Context(1, 10 + n, {"partition-id": n}, RecordDict(), {}) for n in range(CONFIG.clients)}

    class Direct(Grid):
        """Nodes in this process, which answer in another order than they are asked."""

        run = property(lambda self: None)

        def set_run(self, run=None, **_):
            pass

        def create_message(self, *_, **__):
            raise NotImplementedError

        def get_node_ids(self):
            return list(contexts)

        def push_messages(self, messages):
            raise NotImplementedError

        def pull_messages(self, message_ids):
            raise NotImplementedError

        def send_and_receive(self, messages, *, timeout=None):
            replies = []
            for message in reversed(list(messages)):
                context = contexts[message.metadata.dst_node_id]
                if context.node_config["partition-id"] == broken:
                    replies.append(Message(Error(0, "broken"), reply_to=message))
                else:
                    replies.append(app(message, context))
            return replies

    result = strategy.start(Direct(), strategy.arrays(), CONFIG.rounds)
    there = [n for n in range(CONFIG.clients) if n != broken]
    expected = simulated(CONFIG, CONFIG.rounds, members=lambda number: there)
    assert lp.tree.distance(strategy.state.params, expected.params) < 1e-6
    found = {name: array.numpy() for name, array in result.arrays.items()}
    np.testing.assert_array_equal(found["params/w"], np.asarray(strategy.state.params["w"]))
    assert result.train_metrics_clientapp[CONFIG.rounds]["loss"] > 0
