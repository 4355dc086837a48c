"""Secret sharing: any `threshold` shares give the secret, and fewer say nothing about it.

A share is a point of a random polynomial of degree threshold - 1 whose value at 0 is the secret, over the integers
modulo the prime 2^521 - 1. Shamir 1979, https://doi.org/10.1145/359168.359176.
"""

import secrets
from collections.abc import Mapping

PRIME = 2**521 - 1
BYTES = 66  # of a share
SECRET_BYTES = 32


def split(secret: bytes, places: range, threshold: int) -> dict[int, bytes]:
    """A share of a secret of 32 bytes for each place, of which `threshold` give it back. Places are positive."""
    if len(secret) != SECRET_BYTES or places.start < 1 or not 1 <= threshold <= len(places):
        raise ValueError(f"{len(secret)} bytes cannot be shared over {places} with threshold {threshold}")
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {place: _value(coefficients, place).to_bytes(BYTES) for place in places}


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret of shares by place, at least `threshold` of them: fewer give something else, or ValueError."""
    points = {place: int.from_bytes(share) for place, share in shares.items()}
    secret = sum(value * _weight(place, points) for place, value in points.items()) % PRIME
    if secret >> 8 * SECRET_BYTES:
        raise ValueError("the shares do not belong together, or are too few")
    return secret.to_bytes(SECRET_BYTES)


def _value(coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value


def _weight(place: int, places: Mapping[int, int]) -> int:
    """Lagrange's polynomial of a place, at 0."""
    above, below = 1, 1
    for other in places:
        if other != place:
            above, below = above * other % PRIME, below * (other - place) % PRIME
    return above * pow(below, -1, PRIME)
