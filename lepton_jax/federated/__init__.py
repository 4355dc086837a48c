"""Federated learning: a round of local training is a pseudo-gradient, and a server's optimizer descends along it."""

from lepton_jax.federated import (
    algorithms,
    chart,
    compression,
    nova,
    partition,
    personal,
    robust,
    sampling,
    scaffold,
    server,
)
from lepton_jax.federated.clipping import adaptive, adaptively_clipped, clipped, sensitivity
from lepton_jax.federated.cohorts import Cohorts
from lepton_jax.federated.compression import Code, compressed, int8, sign, top_k
from lepton_jax.federated.local import Client, equal, examples, local, personalized
from lepton_jax.federated.proximal import proximal
from lepton_jax.federated.rounds import Combine, Sent, answer, federated, kept, key_of, rules, settled
from lepton_jax.federated.sampling import Availability

__all__ = [
    "Availability",
    "Client",
    "Code",
    "Cohorts",
    "Combine",
    "Sent",
    "adaptive",
    "adaptively_clipped",
    "algorithms",
    "answer",
    "chart",
    "clipped",
    "compressed",
    "compression",
    "equal",
    "examples",
    "federated",
    "int8",
    "kept",
    "key_of",
    "local",
    "nova",
    "partition",
    "personal",
    "personalized",
    "proximal",
    "robust",
    "rules",
    "sampling",
    "scaffold",
    "sensitivity",
    "server",
    "settled",
    "sign",
    "top_k",
]
