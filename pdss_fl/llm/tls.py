"""Who may be talked to, and under which lock: TLS of both sides, and when plain text is allowed.

Plain text stays on this machine unless a setting says ``insecure``, and a bearer token never travels in
plain text over a network, whatever a setting says: whoever reads it could use it.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from pdss_fl.errors import SettingError
from pdss_fl.rules import host_and_port


@dataclass(frozen=True)
class ServerTls:
    """The files of a server: its certificate and key (PEM), and the CA that signs its clients' certificates.

    Parameters
    ----------
    certificate, key : Path
        The server's own.
    client_ca : Path | None (default: None)
        If given, a client without a certificate signed by it is refused (mutual TLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files; raises ``SettingError`` that names the option of one that cannot be used."""
        pair = (_read_pem(self.key, "--tls-key", "PRIVATE KEY"), _read_pem(self.certificate, "--tls-certificate"))
        ca = _read_pem(self.client_ca, "--client-ca") if self.client_ca else None
        _check_pair(self.certificate, self.key)
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


@dataclass(frozen=True)
class ClientTls:
    """The files of a client: the CA that it trusts and no other, and its own certificate for mutual TLS."""

    root_certificates: Path
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files; raises ``SettingError`` that names the setting of one that cannot be used."""
        if (self.certificate is None) != (self.key is None):
            raise SettingError("a client certificate and its key go together; one of the two is not set")
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem(self.root_certificates, "llm.root-certificates"),
            private_key=_read_pem(self.key, "the client's TLS key", "PRIVATE KEY") if self.key else None,
            certificate_chain=_read_pem(self.certificate, "the client's certificate") if self.certificate else None,
        )


def open_channel(
    address: str, tls: ClientTls | None, *, insecure: bool, has_token: bool, options: Sequence[tuple[str, Any]] = ()
) -> grpc.Channel:
    """Return a channel to an LLM server, in TLS, or in plain text where that is allowed.

    Parameters
    ----------
    address : str
        ``host:port``; an IPv6 address in brackets.
    tls : ClientTls | None
        ``None`` asks for plain text.
    insecure : bool
        Allow plain text to another machine.
    has_token : bool
        Whether calls will carry a bearer token, which never leaves the machine in plain text.
    options : Sequence[tuple[str, Any]]
        Further options of gRPC.

    Raises
    ------
    SettingError
        If the address is none, if plain text is not allowed, or if a file cannot be used.
    """
    host, _ = split_address(address)
    target = f"dns:///{address}"  # a name or a number, whatever kinds of address gRPC will know
    if tls is not None:
        return grpc.secure_channel(target, tls.credentials(), options=options)
    if not is_loopback(host):
        if has_token:
            raise SettingError(
                f"llm.address = {address!r} is another machine, and a token does not travel there in plain text: "
                "name the CA of its certificate (llm.root-certificates)"
            )
        if not insecure:
            raise SettingError(
                f"llm.address = {address!r} is another machine, and prompts would travel there in plain text: "
                "name the CA of its certificate (llm.root-certificates), or allow plain text with llm.insecure"
            )
    # A proxy that the environment names would carry plain text off this machine.
    return grpc.insecure_channel(target, options=[*options, ("grpc.enable_http_proxy", 0)])


def split_address(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port of ``host:port``; raises ``SettingError`` for anything else."""
    found = host_and_port(address)
    if found is None:
        raise SettingError(f"llm.address = {address!r} is not of the form host:port, for example 127.0.0.1:50061")
    return found


def is_loopback(host: str) -> bool:
    """Return whether a name or address stays on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_pair(certificate: Path, key: Path) -> None:
    """Refuse a pair that gRPC would refuse later, without saying why; a key with a password is not asked for it."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        files = f"{certificate}, {key}: {error}"
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingError(
                "--tls-certificate and --tls-key do not belong together: give the key that the certificate was made "
                "with",
                files,
            ) from None
        raise SettingError(
            "--tls-certificate or --tls-key is damaged, or the key has a password: give whole PEM files without one",
            files,
        ) from None


def _read_pem(path: Path, setting: str, kind: str = "CERTIFICATE") -> bytes:
    """Read a PEM file; gRPC itself would only log a damaged one and then refuse every connection."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{setting}: the file cannot be read", f"{path}: {error}") from None
    if kind.encode() not in data:
        raise SettingError(f"{setting}: the file holds no PEM block of kind {kind}", str(path))
    return data
