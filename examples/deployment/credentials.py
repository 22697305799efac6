"""Keys, certificates and the files of each party: made once, then renewed one at a time, by name.

Nothing that is there is overwritten unless it is named, also when the folders are on their parties' machines and this
one has the CA only. Below one folder each party has a folder of its own, which is all that its machine needs:

- ``ca/``: the key that signs certificates. Keep it off every server; certificates need it, keys do not.
- ``superlink/``: certificate and key of the SuperLink, the key that signs tokens, and the nodes' public keys.
- ``llm/``: certificate and key of ``pdss serve``, and its copy of the token key.
- ``hospital-N/``: the node's private key, its policy, its data, its ``state`` directory.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Sequence
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
from pdss_fl.errors import SettingError
from pdss_fl.llm.tokens import create_key

CA_DAYS, SERVER_DAYS = 3650, 365
SERVERS = ("superlink", "llm")


def prepare(folder: Path, hospitals: int, superlink: Sequence[str], llm: Sequence[str]) -> None:
    """Make a federation's files below ``folder``; where all of them are, nothing is done.

    Parameters
    ----------
    folder : Path
        Readable by its owner only.
    hospitals : int
        How many; ``hospital-1`` to ``hospital-N``.
    superlink, llm : Sequence[str]
        The names and addresses under which the two servers are reached; their certificates name no others.

    Raises
    ------
    SettingError
        If a part of them is there, as after the parties have taken theirs: a second CA or key would not fit the first.
    """
    names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
    if _is_complete(folder, names):
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_ca(folder / "ca")
    for name, addresses in zip(SERVERS, (superlink, llm), strict=True):
        _make_certificate(folder, name, addresses)
        shutil.copy(folder / "ca" / "ca.crt", folder / name)
    create_key(folder / "superlink" / "token.key")
    shutil.copy(folder / "superlink" / "token.key", folder / "llm" / "token.key")
    for number, name in enumerate(names):
        make_hospital(folder, name, _everyday(number))


def make_hospital(folder: Path, name: str, examples: Sequence[Example]) -> Path:
    """Make a new hospital's key, policy and data (if any), and return its folder; ``NAME.pub`` goes to the SuperLink.

    Raises
    ------
    SettingError
        If there is such a hospital already, or no ``ca.crt`` for it.
    """
    home, public, ca = folder / name, folder / "superlink" / "nodes" / f"{name}.pub", folder / "ca" / "ca.crt"
    for path in (home, public):
        if path.exists():
            raise SettingError(f"{path} exists: choose another name, or renew that hospital's key with `node-key`")
    if not ca.exists():
        raise SettingError(f"{ca} is missing: call this on the machine that keeps the CA")
    home.mkdir(mode=0o700)
    public.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copy(ca, home)
    shutil.copy(make_node_key(home / "node.key"), public)
    if examples:
        fields = ({"question": e.question, "choices": e.choices, "answer": e.answer} for e in examples)
        (home / "data.jsonl").write_text("\n".join(map(json.dumps, fields)) + "\n", encoding="utf-8")
    (home / "policy.toml").write_text(_policy(home), encoding="utf-8")
    return home


def renew_certificate(folder: Path, name: str, addresses: Sequence[str]) -> Path:
    """Make a new key and certificate of one server under the same CA, and return its folder; old ones become ``*.old``.

    Parameters
    ----------
    folder : Path
        Has ``ca/``; needs nothing else.
    name : str
        ``superlink`` or ``llm``.
    addresses : Sequence[str]
        Names and addresses under which the server is reached from now on.

    Raises
    ------
    SettingError
        If there is no such server, or ``ca/`` is not all there.
    """
    if name not in SERVERS:
        raise SettingError(f"server = {name!r} is unknown; use {' or '.join(SERVERS)}")
    for path in (folder / "ca" / "ca.crt", folder / "ca" / "ca.key"):
        if not path.exists():
            raise SettingError(f"{path} is missing: a certificate is renewed on the machine that keeps the CA's key")
    _put_aside(folder / name / "server.key", folder / name / "server.pem")
    _make_certificate(folder, name, addresses)
    return folder / name


def renew_node_key(home: Path) -> Path:
    """Make a new key in a hospital's own folder and return its public part; the old ones become ``*.old``.

    Raises
    ------
    SettingError
        If the folder has no ``node.key``, so that it is no hospital's.
    """
    if not (home / "node.key").exists():
        raise SettingError(f"{home / 'node.key'} is missing: name the hospital's own folder, on its own machine")
    _put_aside(home / "node.key", home / "node.pub")
    return make_node_key(home / "node.key")


def make_node_key(path: Path) -> Path:
    """Write an elliptic-curve key in OpenSSH form, as SuperNodes want it, and ``path.pub`` beside it."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, _private(key, serialization.PrivateFormat.OpenSSH))
    public = path.with_suffix(".pub")
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return public


def _is_complete(folder: Path, hospitals: Sequence[str]) -> bool:
    """Say whether all files are there but for the CA's, which may be offline; raises ``SettingError`` if only some."""
    files = [folder / name / file for name in SERVERS for file in ("server.key", "server.pem", "token.key")]
    files += [folder / name / "node.key" for name in hospitals]
    files += [folder / "superlink" / "nodes" / f"{name}.pub" for name in hospitals]
    missing = [str(path.relative_to(folder)) for path in files if not path.exists()]
    if not missing:
        return True
    if any((folder / name).exists() for name in ("ca", *SERVERS, *hospitals)):
        raise SettingError(
            f"{folder} has a part of a federation, without {', '.join(missing)}: set-up needs a new folder; to renew "
            "one thing use `certificate` or `node-key`, to add a hospital `hospital`"
        )
    return False


def _make_certificate(folder: Path, name: str, addresses: Sequence[str]) -> None:
    """Make ``server.key`` and ``server.pem`` of a server for the addresses under which it is reached."""
    home = folder / name
    home.mkdir(exist_ok=True, mode=0o700)
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


def _put_aside(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.old"))


def _everyday(part: int) -> list[Example]:
    return entity_partition(private_examples(), part % BUILT_IN_PARTS, BUILT_IN_PARTS)


def _policy(home: Path) -> str:
    return (
        "# What this hospital allows any run to ask of it; pdss_fl/policy.py explains every key.\n"
        f'data-path = "{home / "data.jsonl"}"\n'
        f'state-dir = "{home / "state"}"\n'
        "max-epsilon-per-token = 8.0\n"
        "max-epsilon-per-example = 50.0\n"
        '# What a run is told of right answers. "noisy": counts with noise, until max-epsilon-metrics (20) is spent.\n'
        '# "full": the counts as they are, for parties that trust each other with them. "none": nothing.\n'
        'metrics = "noisy"\n'
    )
