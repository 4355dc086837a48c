"""Certificates for a federation of its own: an authority, the coordinator, and one for every node.

The name of a node is in its certificate and nowhere else. The coordinator's certificate serves servers only, and a
node's serves clients only, so that no node can pass for the coordinator. X.509 (RFC 5280) with Ed25519 keys (RFC 8410).
"""

import contextlib
import datetime
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lepton_jax.errors import InputError

if TYPE_CHECKING:
    from cryptography import x509

COORDINATOR = "coordinator"
AUTHORITY = "ca"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
EARLY = datetime.timedelta(minutes=5)  # for clocks that go slow


def require_cryptography() -> None:
    """Raise InputError where the library is missing."""
    if importlib.util.find_spec("cryptography") is None:
        problem = "certificates and secure sums need cryptography, which is not installed"
        raise InputError(problem, 'pip install "lepton-jax[federated]"')


class Issued(NamedTuple):
    """A certificate and its private key."""

    certificate: "x509.Certificate"
    key: Any


def create(out: pathlib.Path, nodes: Sequence[str], days: float) -> list[pathlib.Path]:
    """Write ca.pem, and NAME.pem with NAME.key for the coordinator and every node: the files written.

    Where `out` holds an authority already it signs for the nodes named, and only what is missing is made. Private keys
    are for their owner's eyes only (0600). ca.key makes certificates: it belongs on no node. Raises InputError.
    """
    require_cryptography()
    _check(nodes, days)
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = _opened(out) if (out / f"{AUTHORITY}.key").exists() else None
        made = {} if authority else {AUTHORITY: issued(AUTHORITY, days, None)}
        authority = authority or made[AUTHORITY]
        for name in (COORDINATOR, *nodes):
            if not (out / f"{name}.pem").exists() or name in nodes:
                made[name] = issued(name, days, authority)
        if taken := [name for name in made if (out / f"{name}.pem").exists()]:
            problem = f"--out {out} has a certificate of {taken[0]} already"
            raise InputError(problem, f"remove {taken[0]}.pem and {taken[0]}.key first, or choose another --out")
        return [path for name, pair in made.items() for path in _write(out, name, pair)]
    except OSError as error:
        problem = f"--out {out} cannot be written: {error.strerror or error}"
        raise InputError(problem, "name a directory that can be written to") from error


def _check(nodes: Sequence[str], days: float) -> None:
    if not 0 < days < 36500:
        raise InputError(f"--days {days} is not a number of days above 0", "30 is usual")
    check_names(nodes)


def check_names(nodes: Sequence[str]) -> None:
    """Raise InputError for names that certificates cannot hold, for none, and for one that comes twice."""
    for name in nodes:
        if not NAME.fullmatch(name) or name in (COORDINATOR, AUTHORITY):
            remedy = f"use small letters, digits and hyphens, up to 63; {COORDINATOR} and {AUTHORITY} are taken"
            raise InputError(f"{name!r} cannot be the name of a node", remedy)
    if not nodes or len(set(nodes)) < len(nodes):
        raise InputError(f"the nodes {' '.join(nodes)!r} are none, or one is named twice", "name each node once")


def issued(
    name: str, days: float, authority: Issued | None, now: datetime.datetime | None = None, key: Any = None
) -> Issued:
    """A new certificate, signed by the authority; the authority's own, where there is none.

    now: when its validity begins, in UTC.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = key or ed25519.Ed25519PrivateKey.generate()
    begin = now or datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer = authority.key if authority else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - EARLY)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority is None, 0 if authority is None else None), critical=True)
        .add_extension(_usage(authority is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if authority:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if name == COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return Issued(builder.sign(signer, None), key)


def _usage(authority: bool) -> "x509.KeyUsage":
    """An authority signs certificates, everybody else signs handshakes."""
    from cryptography import x509

    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **never)


def _opened(out: pathlib.Path) -> Issued:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate((out / f"{AUTHORITY}.pem").read_bytes())
        key = serialization.load_pem_private_key((out / f"{AUTHORITY}.key").read_bytes(), None)
    except ValueError as error:
        problem = f"{out / AUTHORITY}.pem and .key are no authority: {error}"
        raise InputError(problem, "put them back as they were made, or choose another --out") from error
    return Issued(certificate, key)


def _write(out: pathlib.Path, name: str, pair: Issued) -> list[pathlib.Path]:
    """NAME.key first, in nobody else's sight at any moment; then NAME.pem."""
    from cryptography.hazmat.primitives import serialization

    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate = pair.certificate.public_bytes(serialization.Encoding.PEM)
    paths = [out / f"{name}.key", out / f"{name}.pem"]
    for path, content, mode in zip(paths, (key, certificate), (0o600, 0o644), strict=True):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # a key of an earlier attempt, whose mode may be another
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    return paths
