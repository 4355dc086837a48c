"""Federated learning: a round of local training is a pseudo-gradient, and a server's optimizer descends along it."""

from lepton_jax.federated.local import Client, equal, examples, local, personalized
from lepton_jax.federated.rounds import Combine, Sent, answer, federated, kept, key_of, rules, settled

__all__ = [
    "Client",
    "Combine",
    "Sent",
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
