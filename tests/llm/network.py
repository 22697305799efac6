"""Real parts of a network on loopback: certificates made on the spot, and a proxy that records, cuts and freezes."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import trustme

from pdss_fl.llm.tls import ClientTls, ServerTls


@dataclass(frozen=True)
class Certificates:
    """PEM files of one CA: its own, a server's for this machine, and a client's."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def server_tls(self, mutual: bool = False) -> ServerTls:
        return ServerTls(self.server, self.server_key, self.ca if mutual else None)

    def client_tls(self, mutual: bool = False) -> ClientTls:
        return ClientTls(self.ca, self.client, self.client_key) if mutual else ClientTls(self.ca)


def make_certificates(directory: Path, *names: str, common_name: str | None = "hospital-3") -> Certificates:
    """Make a CA, a certificate of a server with these names (this machine's by default), and a client's."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Certificates(*(directory / f"{n}.pem" for n in ("ca", "server", "server-key", "client", "client-key")))
    ca = trustme.CA()
    server = ca.issue_cert(*(names or ("localhost", "127.0.0.1", "::1")))
    client = ca.issue_cert("client.example.org", common_name=common_name)
    ca.cert_pem.write_to_path(made.ca)
    for certificate, chain, key in ((server, made.server, made.server_key), (client, made.client, made.client_key)):
        certificate.private_key_pem.write_to_path(key)
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(chain, append=True)
    return made


class Proxy:
    """Stands between a client and a server on loopback.

    Attributes
    ----------
    sent : bytearray
        Everything that clients sent, of all connections.
    connections : int
        How many there have been.
    """

    def __init__(self, target: str, cut_after: int | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cut_after = cut_after
        self.sent, self.connections = bytearray(), 0
        self._moving = threading.Event()
        self._moving.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Let nothing through any more, and close nothing: as when a cable is pulled."""
        self._moving.clear()

    def cut(self) -> None:
        """Close all connections; new ones are accepted."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._sockets.clear()

    def close(self) -> None:
        """End everything."""
        self._listener.close()
        self.cut()
        self._moving.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self.connections += 1
            self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, record: bool) -> None:
        passed = 0
        while True:
            try:
                data = source.recv(4096)
                self._moving.wait()
                if record:
                    self.sent += data
                passed += len(data)
                if not record and self._cut_after is not None and passed > self._cut_after:
                    self._cut_after = None  # once
                    self.cut()
                    return
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return
