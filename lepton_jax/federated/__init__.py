"""Federated learning: a round of local training is a pseudo-gradient, and a server's optimizer descends along it."""

from lepton_jax.federated.local import Client, equal, examples, local, personalized
from lepton_jax.federated.rounds import answer, federated, kept, key_of, rules, settled

__all__ = [
    "Client",
    "answer",
    "equal",
    "examples",
    "federated",
    "kept",
    "key_of",
    "local",
    "personalized",
    "rules",
    "settled",
]
