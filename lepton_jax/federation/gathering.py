"""What a round gathers: every client's update as it is, or a sum in which no single update can be seen."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.errors import InputError
from lepton_jax.federated import Sent
from lepton_jax.federation import certificates, fixed, frames, job, masks, shamir, wire
from lepton_jax.federation.frames import Frame, FrameError, Kind
from lepton_jax.federation.job import Job
from lepton_jax.federation.rounds import Gifts, Round, Stage
from lepton_jax.federation.terms import Terms

CIPHERTEXT = 2 * shamir.BYTES + 16  # bytes of two shares and their tag


class Gathering(NamedTuple):
    """The stages of a round, and what it comes to. threshold: of a secure sum, told to the clients; else None."""

    stages: tuple[Stage, ...]
    result: Callable[[Round], Sent]
    threshold: int | None


def chosen(job_: Job, like: Sent, terms: Terms) -> Gathering:
    """What the terms say. Raises InputError for a secure sum that cannot be had."""
    return sums(job_, like, terms.quorum) if terms.secure else updates(job_, like)


def updates(job_: Job, like: Sent) -> Gathering:
    """Each client's update by itself: summed in the order of the job's clients, or as the job combines them."""

    def read(name: str, frame: Frame, gifts: Mapping[Kind, Gifts]) -> Sent:
        arrays = frame.arrays()
        sent: Sent = wire.restored(arrays, like)
        wire.require_finite(arrays)
        if not sent.update.weight >= 0:
            raise FrameError(f"a weight of {sent.update.weight} is negative")
        return sent

    def result(round_: Round) -> Sent:
        gifts = round_.gifts[Kind.UPDATE]
        return job.folded(job_, [gifts[name] for name in job_.clients if name in gifts])

    return Gathering((Stage(Kind.UPDATE, 1.0, read),), result, None)


def sums(job_: Job, like: Sent, threshold: int) -> Gathering:
    """The sum alone (`masks`). Raises InputError for a job that has to see each update, and without cryptography."""
    certificates.require_cryptography()
    if job_.combine is not None:
        problem = "a secure sum shows no single update, and this job combines them one by one"
        raise InputError(problem, "leave --secure out, or the robust aggregation")
    shapes = wire.shapes(like)
    length = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())

    def keys(name: str, frame: Frame, gifts: Mapping[Kind, Gifts]) -> bytes:
        return _pieces(frame, {name}, 2 * masks.PUBLIC)[name]

    def shares(name: str, frame: Frame, gifts: Mapping[Kind, Gifts]) -> dict[str, bytes]:
        return _pieces(frame, gifts[Kind.KEYS].keys() - {name}, CIPHERTEXT)

    def vector(name: str, frame: Frame, gifts: Mapping[Kind, Gifts]) -> np.ndarray:
        found = wire.restored(frame.arrays(), {"vector": np.zeros(length, np.uint64)})
        return found["vector"]

    def revealed(name: str, frame: Frame, gifts: Mapping[Kind, Gifts]) -> dict[str, bytes]:
        return _pieces(frame, set(gifts[Kind.SHARES]), shamir.BYTES)

    def roster(name: str, gifts: Mapping[Kind, Gifts]) -> Frame:
        return Frame(Kind.ROSTER, {}, pieces(gifts[Kind.KEYS]))

    def shared(name: str, gifts: Mapping[Kind, Gifts]) -> Frame:
        others = {other: given[name] for other, given in gifts[Kind.SHARES].items() if other != name}
        return Frame(Kind.SHARED, {}, pieces(others))

    def survivors(name: str, gifts: Mapping[Kind, Gifts]) -> Frame:
        return Frame(Kind.SURVIVORS, {"survivors": sorted(gifts[Kind.UPDATE])})

    def result(round_: Round) -> Sent:
        gifts = round_.gifts
        known = masks.Round(gifts[Kind.KEYS], gifts[Kind.SHARES].keys(), threshold, round_.token.encode())
        found = masks.total(known, gifts[Kind.UPDATE], gifts[Kind.REVEAL])
        return wire.restored(fixed.decoded(found, shapes), like)

    stages = (
        Stage(Kind.KEYS, 0.125, keys, roster),
        Stage(Kind.SHARES, 0.25, shares, shared),
        Stage(Kind.UPDATE, 0.875, vector, survivors),
        Stage(Kind.REVEAL, 1.0, revealed),
    )
    return Gathering(stages, result, threshold)


def pieces(found: Mapping[str, bytes]) -> bytes:
    """Short byte strings by name, as a body."""
    return frames.packed({name: np.frombuffer(piece, np.uint8) for name, piece in found.items()})


def _pieces(frame: Frame, names: Any, nbytes: int) -> dict[str, bytes]:
    """The byte strings of a body. Raises FrameError where they are not of these names and this length."""
    like = {name: np.zeros(nbytes, np.uint8) for name in names}
    return {name: array.tobytes() for name, array in wire.restored(frame.arrays(), like).items()}
