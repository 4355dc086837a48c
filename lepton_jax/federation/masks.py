"""Secure aggregation: the coordinator learns the sum of the vectors and nothing else of any of them.

Each pair of parties shares a mask that one adds and the other subtracts, so that masks vanish in the sum; each party
adds one more of its own. The seeds are shared out (`shamir`), so that `threshold` parties can take off what those who
dropped out have left behind: for every party either its own mask, if its vector has come, or its pairs' masks, if it
has not, and never both. Bonawitz et al. 2017, https://doi.org/10.1145/3133956.3133982, without the signatures: against
a coordinator that is curious and keeps to the protocol, together with fewer than `threshold` of the parties.

Keys are agreed on by X25519 (RFC 7748) and drawn out by HKDF (RFC 5869); shares travel under ChaCha20-Poly1305 (RFC
8439); masks are the keystream of AES-256 in counter mode.
"""

import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lepton_jax.federation import shamir

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PUBLIC = 32  # bytes of a public key; a party has two
MASK, SHARE = b"mask", b"share"


class ProtocolError(ValueError):
    """A message that a party must not answer, because it does not keep to the protocol."""


class Party:
    """One party's side of one sum: `keys`, `shares`, `masked` and `revealed`, each of them once, in this order.

    session: this sum's own name, for keys serve one sum. threshold: how many have to stay for the sum to be had; more
    than half of the parties, or a coordinator could ask one half for this and the other half for that.
    """

    def __init__(self, name: str, threshold: int, session: bytes):
        self._name, self._threshold, self._session = name, threshold, session
        self._mask_secret, self._share_secret = secrets.token_bytes(PUBLIC), secrets.token_bytes(PUBLIC)
        self._seed = secrets.token_bytes(shamir.SECRET_BYTES)  # of the mask of its own
        self._roster: dict[str, bytes] = {}
        self._own_shares: tuple[bytes, bytes] | None = None
        self._received: dict[str, bytes] = {}
        self._asked: frozenset[str] | None = None
        self._sent = False

    def keys(self) -> bytes:
        """The public keys, of masks and of shares."""
        return _public(self._mask_secret) + _public(self._share_secret)

    def shares(self, roster: Mapping[str, bytes]) -> dict[str, bytes]:
        """For every other party of the roster {name: its keys} encrypted shares of both seeds. Raises ProtocolError."""
        if self._roster:
            raise ProtocolError("shares were given before")
        if roster.get(self._name) != self.keys() or any(len(keys) != 2 * PUBLIC for keys in roster.values()):
            raise ProtocolError("the roster has not this party's keys, or others of another length")
        if not len(roster) // 2 < self._threshold <= len(roster):
            raise ProtocolError(f"a threshold of {self._threshold} among {len(roster)} is not more than half of them")
        self._roster = dict(roster)
        places = range(1, len(roster) + 1)
        both = [shamir.split(secret, places, self._threshold) for secret in (self._seed, self._mask_secret)]
        pairs = {name: both[0][place] + both[1][place] for place, name in zip(places, sorted(roster), strict=True)}
        self._received[self._name] = pairs.pop(self._name)
        return {
            name: self._cipher(name, self._name, name).encrypt(bytes(12), pair, None) for name, pair in pairs.items()
        }

    def masked(self, vector: np.ndarray, received: Mapping[str, bytes]) -> np.ndarray:
        """The vector uint64 under its masks. received: the shares of all who have given some. Raises ProtocolError."""
        if self._sent:
            raise ProtocolError("a vector was given before")
        if not set(received) | {self._name} <= set(self._roster) or len({*received, self._name}) < self._threshold:
            raise ProtocolError("too few have given shares, or such as are not on the roster")
        self._sent = True
        self._received |= {
            name: self._decrypted(name, shares) for name, shares in received.items() if name != self._name
        }
        total = vector + mask(_drawn(self._seed, self._session, b"own"), len(vector))
        for name in sorted(set(self._received) - {self._name}):
            add_pair(total, self._name, name, self._mask_secret, self._roster[name][:PUBLIC], self._session)
        return total

    def revealed(self, survivors: Collection[str]) -> dict[str, bytes]:
        """For every party a share: of its own mask's seed, if it survives, else of its pairs' masks' secret.

        survivors: whose vectors have come. Answers one question only. Raises ProtocolError.
        """
        asked = frozenset(survivors)
        if not self._sent or self._asked not in (None, asked):
            raise ProtocolError("another set of survivors was named before, or no vector was given")
        if not asked <= set(self._received) or self._name not in asked or len(asked) < self._threshold:
            raise ProtocolError("the survivors are too few, or not those who have given shares")
        self._asked = asked
        own, pairs = slice(0, shamir.BYTES), slice(shamir.BYTES, None)
        return {name: shares[own if name in asked else pairs] for name, shares in self._received.items()}

    def _cipher(self, other: str, sender: str, receiver: str) -> "ChaCha20Poly1305":
        """The cipher for one message between this party and another: its key is used once."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        shared = _agreed(self._share_secret, self._roster[other][PUBLIC:])
        return ChaCha20Poly1305(_drawn(shared, self._session, SHARE, sender.encode(), receiver.encode()))

    def _decrypted(self, sender: str, shares: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            pair = self._cipher(sender, sender, self._name).decrypt(bytes(12), bytes(shares), None)
        except InvalidTag:
            pair = b""
        if len(pair) != 2 * shamir.BYTES:
            raise ProtocolError(f"the shares of {sender} are not as they were sent")
        return pair


class Round(NamedTuple):
    """What the coordinator knows of a sum: the roster, who has given shares, and the session."""

    roster: Mapping[str, bytes]
    sharers: Collection[str]
    threshold: int
    session: bytes


def total(known: Round, masked: Mapping[str, np.ndarray], revealed: Mapping[str, Mapping[str, bytes]]) -> np.ndarray:
    """The sum, uint64 modulo 2^64, of the vectors of those in `masked`.

    revealed: {who: its shares by party}, of at least `threshold`. Raises ProtocolError where they do not do.
    """
    if min(len(masked), len(revealed)) < known.threshold:
        raise ProtocolError(f"{len(masked)} vectors and the shares of {len(revealed)} are below the threshold")
    result = np.zeros_like(next(iter(masked.values())))
    for vector in masked.values():
        result += vector
    for name in sorted(known.sharers):
        secret = _joined(known, name, revealed)
        if name in masked:
            result -= mask(_drawn(secret, known.session, b"own"), len(result))
            continue
        if _public(secret) != known.roster[name][:PUBLIC]:
            raise ProtocolError(f"the shares of {name}'s secret do not give it")
        for other in sorted(masked):  # what the others have added for it
            add_pair(result, name, other, secret, known.roster[other][:PUBLIC], known.session)
    return result


def _joined(known: Round, name: str, revealed: Mapping[str, Mapping[str, bytes]]) -> bytes:
    places = {party: place for place, party in enumerate(sorted(known.roster), 1)}
    shares = {places[party]: shares[name] for party, shares in revealed.items() if name in shares}
    if len(shares) < known.threshold:
        raise ProtocolError(f"{len(shares)} shares of {name} are below the threshold")
    try:
        return shamir.joined(shares)
    except ValueError as error:
        raise ProtocolError(f"the shares of {name} do not fit together") from error


def add_pair(vector: np.ndarray, name: str, other: str, secret: bytes, public: bytes, session: bytes) -> None:
    """Add in place what `name` has to add for its pair with `other`; the other one's is its negative."""
    pair = mask(_drawn(_agreed(secret, public), session, MASK), len(vector))
    if name < other:
        vector += pair
    else:
        vector -= pair


def mask(key: bytes, length: int) -> np.ndarray:
    """So many uniform numbers uint64 from a key of 32 bytes, which serves this once."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * length)), "<u8")


def _public(secret: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _agreed(secret: bytes, public: bytes) -> bytes:
    """What both of a pair can compute, and nobody else. Raises ProtocolError for a public key that gives no secret."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError("a public key is none") from error


def _drawn(secret: bytes, session: bytes, *purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(hashes.SHA256(), 32, session, b"lepton " + b"|".join(purpose)).derive(secret)
