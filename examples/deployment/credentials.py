"""Keys, certificates and the files of each party, made once; what exists is left alone.

Below one folder each party has a folder of its own, which is all that its machine needs:

- ``ca/``: the key that signs certificates. Keep it off every server.
- ``superlink/``: certificate and key of the SuperLink, the key that signs tokens, and the nodes' public keys.
- ``llm/``: certificate and key of ``pdss serve``, and its copy of the token key.
- ``hospital-N/``: the node's private key, its policy, its data, its ``state`` directory.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.partition import entity_partition
from pdss_fl.data.sources import BUILT_IN_PARTS
from pdss_fl.llm.tokens import create_key

CA_DAYS, SERVER_DAYS = 3650, 365


def prepare(folder: Path, hospitals: int, superlink: Sequence[str], llm: Sequence[str]) -> None:
    """Make what is missing below ``folder``.

    Parameters
    ----------
    folder : Path
        Readable by its owner only.
    hospitals : int
        How many; ``hospital-1`` to ``hospital-N``.
    superlink, llm : Sequence[str]
        The names and addresses under which the two servers are reached; their certificates name no others.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_ca(folder / "ca")
    for name, addresses in (("superlink", superlink), ("llm", llm)):
        make_certificate(folder, name, addresses)
    key = folder / "superlink" / "token.key"
    if not key.exists():
        create_key(key)
    _copy(key, folder / "llm" / "token.key")
    for number in range(1, hospitals + 1):
        make_hospital(folder, f"hospital-{number}", _everyday(number - 1))


def make_hospital(folder: Path, name: str, examples: Iterable[Example]) -> Path:
    """Make one hospital's key, data and policy, and return its folder; the public key goes to the SuperLink."""
    home = folder / name
    home.mkdir(exist_ok=True, mode=0o700)
    _copy(folder / "ca" / "ca.crt", home / "ca.crt")
    if not (home / "node.key").exists():
        public = make_node_key(home / "node.key")
        keys = folder / "superlink" / "nodes"
        keys.mkdir(parents=True, exist_ok=True)
        shutil.copy(public, keys / f"{name}.pub")
    if not (home / "data.jsonl").exists():
        fields = ({"question": e.question, "choices": e.choices, "answer": e.answer} for e in examples)
        (home / "data.jsonl").write_text("\n".join(map(json.dumps, fields)) + "\n", encoding="utf-8")
    if not (home / "policy.toml").exists():
        (home / "policy.toml").write_text(_policy(home), encoding="utf-8")
    return home


def make_node_key(path: Path) -> Path:
    """Write an elliptic-curve key in OpenSSH form, as SuperNodes want it, and ``path.pub`` beside it."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, _private(key, serialization.PrivateFormat.OpenSSH))
    public = path.with_suffix(".pub")
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return public


def make_certificate(folder: Path, name: str, addresses: Sequence[str]) -> None:
    """Make ``server.key`` and ``server.pem`` of a server for the addresses under which it is reached."""
    home = folder / name
    home.mkdir(exist_ok=True, mode=0o700)
    _copy(folder / "ca" / "ca.crt", home / "ca.crt")
    if (home / "server.pem").exists():
        return
    ca = x509.load_pem_x509_certificate((folder / "ca" / "ca.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((folder / "ca" / "ca.key").read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(f"pdss {name}", ca.subject, key, SERVER_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName(map(_general_name, addresses)), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    _write_secret(home / "server.key", _private(key, serialization.PrivateFormat.PKCS8))
    (home / "server.pem").write_bytes(_pem(builder.sign(ca_key, hashes.SHA256())))


def _make_ca(home: Path) -> None:
    if (home / "ca.crt").exists():
        return
    home.mkdir(mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pdss federation CA")])
    usage = x509.KeyUsage(*[flag in (5, 6) for flag in range(9)])  # signs certificates and their revocations only
    builder = _builder("pdss federation CA", name, key, CA_DAYS).add_extension(usage, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    _write_secret(home / "ca.key", _private(key, serialization.PrivateFormat.PKCS8))
    (home / "ca.crt").write_bytes(_pem(builder.sign(key, hashes.SHA256())))


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(),
        x509.random_serial_number(), now - timedelta(minutes=5), now + timedelta(days=days),
    )  # fmt: skip


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_secret(path: Path, data: bytes) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        shutil.copy(source, target)


def _everyday(part: int) -> list[Example]:
    return entity_partition(private_examples(), part % BUILT_IN_PARTS, BUILT_IN_PARTS)


def _policy(home: Path) -> str:
    return (
        "# What this hospital allows any run to ask of it; pdss_fl/policy.py explains every key.\n"
        f'data-path = "{home / "data.jsonl"}"\n'
        f'state-dir = "{home / "state"}"\n'
        "max-epsilon-per-token = 8.0\n"
        "max-epsilon-per-example = 50.0\n"
        'metrics = "full"\n'
    )
