"""Federated training between machines: a coordinator, its clients, and an encrypted way between them.

`python -m lepton_jax.federated certificates | serve | join`; see docs/federation.md.
"""

from lepton_jax.federation.coordinator import Coordinator, Terms
from lepton_jax.federation.frames import Frame, FrameError, Kind
from lepton_jax.federation.job import Job, received
from lepton_jax.federation.participant import Participant
from lepton_jax.federation.tls import Dialled, Identity, identity, listening
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
    "Participant",
    "Terms",
    "Transport",
    "identity",
    "listening",
    "received",
]
