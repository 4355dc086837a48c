"""Federated training between machines: a coordinator, its clients, and an encrypted way between them.

`python -m lepton_jax.federated certificates | serve | join`; see docs/federation.md.
"""

from lepton_jax.federation.composing import composed
from lepton_jax.federation.coordinator import Coordinator
from lepton_jax.federation.dialling import Dialled
from lepton_jax.federation.frames import Frame, FrameError, Kind
from lepton_jax.federation.job import Job, received
from lepton_jax.federation.listening import Listener
from lepton_jax.federation.participant import Participant
from lepton_jax.federation.terms import Terms
from lepton_jax.federation.tls import Identity, identity
from lepton_jax.federation.transport import Answer, InProcess, Transport

__all__ = [
    "Answer",
    "Coordinator",
    "Dialled",
    "Frame",
    "FrameError",
    "Identity",
    "InProcess",
    "Job",
    "Kind",
    "Listener",
    "Participant",
    "Terms",
    "Transport",
    "composed",
    "identity",
    "received",
]
