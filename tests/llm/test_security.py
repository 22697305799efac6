"""Who is let in over a real network connection: TLS, mutual TLS, tokens, and what each refusal says."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pdss_fl.config import RunSettings
from pdss_fl.errors import LLMUnavailable, SettingError
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import RunningServer, ServiceSecurity, serve
from pdss_fl.llm.servicer import SERVICE, tenant_at
from pdss_fl.llm.tls import ClientTls, ServerTls, open_channel, split_address
from pdss_fl.llm.tokens import TokenIssuer
from pdss_fl.messages import GenerationSettings, Rationale
from tests.harness import EchoGenerator
from tests.llm.helpers import make_batch
from tests.llm.network import Certificates, make_certificates

KEY = b"a key of the test, long enough. " * 2
OTHER = b"another key of the test, long enough"
SETTINGS = GenerationSettings(8)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[RunningServer]:
    """TLS and tokens, on every address of this machine."""
    security = ServiceSecurity(certificates.server_tls(), KEY, token_leeway=30.0)
    running = serve(EchoGenerator(), host="0.0.0.0", port=0, security=security)
    yield running
    running.stop(grace=0)


def near(server: RunningServer) -> str:
    return server.address.replace("0.0.0.0", "127.0.0.1")


def token(key: bytes = KEY, seconds: float = 60.0, offset: float = 0.0) -> str:
    return TokenIssuer(key, 5, seconds, lambda: time.time() + offset).token(1)


def ask(address: str, **options: Any) -> int:
    remote = RemoteGenerator(address, 20.0, retries=0, **options)
    try:
        return len(list(remote.generate(make_batch(3), SETTINGS)))
    finally:
        remote.close()


def refused(server: RunningServer, tls: ClientTls, *metadata: tuple[str, str]) -> grpc.Call:
    """Call both methods with this metadata; return how both are refused."""
    found = []
    with open_channel(near(server), tls, insecure=False, has_token=True) as channel:
        for call in (
            lambda: channel.unary_unary(f"/{SERVICE}/GetServerInfo", bytes, bytes)(b"", metadata=metadata),
            lambda: list(
                channel.unary_stream(f"/{SERVICE}/GenerateRationales", bytes, bytes)(b"kettle", metadata=metadata)
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()  # type: ignore[no-untyped-call]
            found.append(caught.value)
    assert found[0].code() == found[1].code()
    assert found[0].details() == found[1].details()
    return found[0]


def test_a_token_over_tls_is_let_in(secure: RunningServer, certificates: Certificates) -> None:
    assert ask(near(secure), tls=certificates.client_tls(), token=token) == 3


@pytest.mark.parametrize(
    ("metadata", "code", "details"),
    [
        ((), "UNAUTHENTICATED", "no bearer token"),
        ((("authorization", "Basic abc"),), "UNAUTHENTICATED", "no bearer token"),
        ((("authorization", "Bearer a"), ("authorization", "Bearer b")), "UNAUTHENTICATED", "no bearer token"),
        ((("authorization", "Bearer "),), "UNAUTHENTICATED", "not one of this server's key"),
        ((("authorization", f"Bearer {token(OTHER)}"),), "UNAUTHENTICATED", "not one of this server's key"),
        ((("authorization", f"Bearer {token(offset=-100_000)}"),), "UNAUTHENTICATED", "has expired"),
        ((("authorization", f"Bearer {token(offset=100_000)}"),), "UNAUTHENTICATED", "compare the clocks"),
    ],
)
def test_nobody_else_is(
    secure: RunningServer, certificates: Certificates, metadata: Any, code: str, details: str
) -> None:
    error = refused(secure, certificates.client_tls(), *metadata)
    assert error.code() == grpc.StatusCode[code]
    assert details in error.details()


@pytest.mark.parametrize(("scope", "audience"), [("read", SERVICE), ("generate", "other.Service")])
def test_a_token_for_something_else_is_of_no_use(
    secure: RunningServer, certificates: Certificates, scope: str, audience: str
) -> None:
    import jwt

    claims = {"aud": audience, "scope": scope, "run": "1", "node": "1", "iat": 1, "exp": 2**40}
    made = jwt.encode(claims, KEY, "HS256")
    error = refused(secure, certificates.client_tls(), ("authorization", f"Bearer {made}"))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(LLMUnavailable, match="does not let this run generate"):
        ask(near(secure), tls=certificates.client_tls(), token=lambda: made)


@pytest.mark.parametrize(("offset", "accepted"), [(25, True), (-85, True), (35, False), (-95, False)])
def test_clocks_may_differ_by_the_leeway(
    secure: RunningServer, certificates: Certificates, offset: float, accepted: bool
) -> None:
    """The tokens are good for 60 seconds, the leeway is 30."""
    given = {"tls": certificates.client_tls(), "token": lambda: token(offset=offset)}
    if accepted:
        assert ask(near(secure), **given) == 3
    else:
        with pytest.raises(LLMUnavailable, match="PDSS_TOKEN_KEY"):
            ask(near(secure), **given)


def test_a_fresh_token_is_made_for_every_call(secure: RunningServer, certificates: Certificates) -> None:
    made: list[str] = []

    def fresh() -> str:
        made.append(token())
        return made[-1]

    assert ask(near(secure), tls=certificates.client_tls(), token=fresh) == 3
    assert len(made) == 2, "one for the question what the server is, one for the rationales"


def test_health_is_open_and_reflection_closed(secure: RunningServer, certificates: Certificates) -> None:
    with open_channel(near(secure), certificates.client_tls(), insecure=False, has_token=False) as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(listing)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("described", [True, False])
def test_reflection_is_as_it_is_set(described: bool) -> None:
    server = serve(EchoGenerator(), port=0, security=ServiceSecurity(reflection=described))
    with grpc.insecure_channel(server.address) as channel:
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        if described:
            assert SERVICE in {service.name for service in next(listing).list_services_response.service}
        else:
            with pytest.raises(grpc.RpcError) as caught:
                next(listing)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    server.stop(grace=0)


def test_another_ca_and_another_name_and_plain_text_do_not_connect(
    secure: RunningServer, certificates: Certificates, tmp_path: Path
) -> None:
    other = make_certificates(tmp_path / "other")
    for tls in (other.client_tls(), None):
        with pytest.raises(LLMUnavailable, match="does not answer"):
            ask(near(secure), tls=tls, token=token)
    elsewhere = make_certificates(tmp_path / "elsewhere", "llm.example.org")
    server = serve(EchoGenerator(), port=0, security=ServiceSecurity(elsewhere.server_tls()))
    with pytest.raises(LLMUnavailable, match="compare the CA"):
        ask(server.address, tls=elsewhere.client_tls())
    server.stop(grace=0)


def test_mutual_tls_needs_a_certificate_of_the_right_ca(certificates: Certificates, tmp_path: Path) -> None:
    security = ServiceSecurity(certificates.server_tls(mutual=True))
    server = serve(EchoGenerator(), host="0.0.0.0", port=0, security=security)
    other = make_certificates(tmp_path / "other")
    assert ask(near(server), tls=certificates.client_tls(mutual=True)) == 3
    for tls in (certificates.client_tls(), ClientTls(certificates.ca, other.client, other.client_key)):
        with pytest.raises(LLMUnavailable, match="does not answer"):
            ask(near(server), tls=tls)
    server.stop(grace=0)


def test_a_client_certificate_names_the_tenant(certificates: Certificates, tmp_path: Path) -> None:
    seen: list[str] = []

    class Noting(EchoGenerator):
        def generate(self, *arguments: Any) -> Any:
            seen.append(arguments[3])
            return super().generate(*arguments)

    nameless = make_certificates(tmp_path, common_name=None)
    for security, options in (
        *(
            (ServiceSecurity(c.server_tls(mutual=True)), {"tls": c.client_tls(mutual=True)})
            for c in (certificates, nameless)
        ),
        (ServiceSecurity(token_key=KEY), {"token": token}),
        (ServiceSecurity(), {}),
    ):
        server = serve(Noting(), port=0, security=security)
        assert ask(server.address, **options) == 3
        server.stop(grace=0)
    assert seen == ["certificate hospital-3", "certificate client.example.org", "5/1", ""]


@pytest.mark.parametrize(
    ("security", "problem"),
    [
        (ServiceSecurity(), "--tls-certificate"),
        (ServiceSecurity(token_key=KEY), "tokens over the network in plain text"),
        (ServiceSecurity(token_key=KEY, insecure=True), "tokens over the network in plain text"),
        (ServiceSecurity(ServerTls(Path("c"), Path("k"))), "would answer anybody"),
    ],
)
def test_a_server_does_not_leave_loopback_without_its_locks(security: ServiceSecurity, problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        serve(EchoGenerator(), host="0.0.0.0", port=0, security=security)


def test_a_client_does_not_speak_plain_text_to_another_machine() -> None:
    with pytest.raises(SettingError, match=r"llm\.insecure"):
        RemoteGenerator("192.0.2.1:50061")
    for insecure in (True, False):
        with pytest.raises(SettingError, match="a token does not travel there in plain text"):
            RemoteGenerator("llm.example.org:50061", insecure=insecure, token=token)
    RemoteGenerator("192.0.2.1:50061", insecure=True).close()
    RemoteGenerator("[::1]:50061", token=token).close()


@pytest.mark.parametrize(
    "address", [
        "", "127.0.0.1", "127.0.0.1:99999", "dns:///a:1", "unix:/tmp/s", "a:1,b:2", "a b:1", "[::1:1", ":1",
        "unix:1", "UNIX:50061", "dns:443", "xds:1", "ipv4:50061", "ipv6:1", "unix-abstract:7", "vsock:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(SettingError, match="host:port"):
        split_address(address)
    with pytest.raises(SettingError, match="host:port"):
        RemoteGenerator(address, insecure=True)
    with pytest.raises(SettingError, match=r"llm\.address = .*host:port"):
        RunSettings.from_run_config({"llm.address": address})


def test_files_that_are_none_are_named(tmp_path: Path, certificates: Certificates) -> None:
    for tls, setting in (
        (ServerTls(tmp_path / "no", certificates.server_key), "--tls-certificate"),
        (ServerTls(certificates.server, certificates.ca), "--tls-key"),
        (ServerTls(certificates.server, certificates.server_key, certificates.server_key), "--client-ca"),
    ):
        with pytest.raises(SettingError, match=setting) as refused:
            serve(EchoGenerator(), port=0, security=ServiceSecurity(tls))
        assert str(tmp_path) not in refused.value.public
    with pytest.raises(SettingError, match=r"llm\.root-certificates"):
        RemoteGenerator("llm.example.org:1", tls=ClientTls(tmp_path / "no"))
    with pytest.raises(SettingError, match="go together"):
        RemoteGenerator("llm.example.org:1", tls=ClientTls(certificates.ca, certificates.client))


def test_no_token_and_nothing_that_was_sent_is_logged(
    secure: RunningServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    made = token()
    with caplog.at_level(logging.DEBUG):
        assert ask(near(secure), tls=certificates.client_tls(), token=lambda: made) == 3
        refused(secure, certificates.client_tls(), ("authorization", "Bearer kettle"))
    for secret in (made, made.split(".")[2], "kettle", "robin"):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("peer", "tenant"),
    [
        ("ipv4:192.0.2.7:50311", "address 192.0.2.7"),
        ("ipv6:[2001:db8::7]:50311", "address 2001:db8::7"),
        ("ipv6:%5B2001:db8::7%5D:50311", "address 2001:db8::7"),
    ],
)
def test_a_caller_without_a_name_is_known_by_its_host_and_not_by_its_port(peer: str, tenant: str) -> None:
    assert tenant_at(peer) == tenant


@pytest.mark.parametrize(("host", "tenant"), [("0.0.0.0", "address 127.0.0.1"), ("127.0.0.1", "")])
def test_callers_that_prove_nothing_are_tenants_by_address_off_loopback(host: str, tenant: str) -> None:
    tenants: list[str] = []

    class Noting(EchoGenerator):
        def generate(self, *arguments: Any) -> Iterator[Rationale]:
            tenants.append(arguments[3])
            return super().generate(*arguments)

    server = serve(Noting(), host=host, port=0, security=ServiceSecurity(insecure=True))
    address = server.address.replace("0.0.0.0", "127.0.0.1")
    assert len(list(RemoteGenerator(address).generate(make_batch(2), GenerationSettings(4)))) == 2
    server.stop(grace=5)
    assert tenants == [tenant]
