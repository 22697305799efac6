"""Checks of ``pdss doctor`` that are made only where a setting or a node's key asks for what they look at."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pdss_fl.config import RunSettings
from pdss_fl.errors import PdssError
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.rules import host_and_port
from pdss_fl.sharing_settings import OFF

OK, NOTE, FAIL = "ok", "note", "FAIL"
_SOON_DAYS = 30
_ANSWER_SECONDS = 3.0
_RENEW = "renew it, and give the new one to everybody who trusts it"


@dataclass(frozen=True)
class Finding:
    """What one check found: ``verdict`` is ``ok``, ``note`` or ``FAIL``; ``remedy`` says what to do."""

    what: str
    verdict: str
    found: str
    remedy: str = ""


def client_needs(settings: RunSettings) -> Iterator[Finding]:
    """Yield findings about what settings make a client use: extras of this package, the encoder-decoder.

    Parameters
    ----------
    settings : RunSettings
        Those that hold on the client, its own choices among them.
    """
    if settings.sharing.epsilon:
        yield _extra("opacus", "dp-sgd", f"sharing.epsilon = {settings.sharing.epsilon:g}")
    if settings.data.source == "datasets":
        yield _extra("datasets", "datasets", "data.source = 'datasets'")
    if settings.privacy.mechanism.startswith("encoder-") or settings.distill.decoder == "trained":
        yield _encoder_decoder(settings.encoder_decoder.model)


def enough_clients(settings: RunSettings) -> Finding | None:
    """Say how many clients the run's average needs, where ``min-available-nodes`` does not wait for them."""
    sharing, waits = settings.sharing, settings.min_available_nodes
    if sharing.mode == OFF or waits >= sharing.fewest_clients:
        return None
    found = f"{sharing.mode!r} averages {sharing.fewest_clients} clients or more; min-available-nodes = {waits}"
    return Finding("sharing.mode", NOTE, found, "in a round with fewer nothing is averaged: raise min-available-nodes")


def _extra(package: str, extra: str, asked: str) -> Finding:
    if find_spec(package) is not None:
        return Finding(package, OK, f"installed, for {asked}")
    return Finding(package, FAIL, f"not installed, but {asked} needs it", f"pip install 'pdss-fl[{extra}]'")


def _encoder_decoder(model: str) -> Finding:
    from pdss_fl.slm.encoder_decoder import SETTING, load_encoder_decoder

    try:
        load_encoder_decoder(model)
    except PdssError as err:
        return Finding(SETTING, FAIL, model, err.public)
    return Finding(SETTING, OK, f"{model} loads")


def openai_endpoint(llm: LLMSettings) -> Finding:
    """Ask an OpenAI-compatible endpoint for its models, with the key of this process's environment."""
    import httpx

    from pdss_fl.llm.endpoint import api_key
    from pdss_fl.llm.openai import load_openai_generator
    from pdss_fl.llm.tls import is_loopback

    try:
        load_openai_generator(llm).close()
    except PdssError as err:
        return Finding("llm.base-url", FAIL, llm.base_url, err.public)
    url = httpx.URL(llm.base_url)
    if api_key(url, os.environ):
        return Finding("llm.base-url", OK, f"{llm.base_url} answers; the environment has its key")
    remedy = "if it wants a key, set PDSS_LLM_API_KEY and PDSS_LLM_BASE_URL in the ServerApp's environment"
    found = f"{llm.base_url} answers; the environment has no key for it"
    return Finding("llm.base-url", OK, found) if is_loopback(url.host) else Finding("llm.base-url", NOTE, found, remedy)


def reachable(address: str) -> Finding:
    """Look whether anybody answers at the LLM server's address; what it asks of a node, only a run can show."""
    try:
        socket.create_connection(host_and_port(address) or ("", 0), _ANSWER_SECONDS).close()
    except OSError as err:
        remedy = "a node calls it itself over llm.channel = 'direct': start it, or open the way to it"
        return Finding("llm.address", FAIL, f"{address}: {err.strerror or err}", remedy)
    return Finding("llm.address", OK, f"{address} can be reached")


def root_certificates(key: str, path: Path) -> Finding:
    """Look at the CA certificates that ``key`` names: whether they can be read, and until when they are valid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        return Finding(key, FAIL, f"{path} is no PEM file of certificates", "give the CA's certificate as PEM")
    except OSError as err:
        return Finding(key, FAIL, f"{path}: {err.strerror}", "correct the path, or its permissions")
    ends = [str(ca["notAfter"]) for ca in context.get_ca_certs()]
    if not ends:
        return Finding(key, FAIL, f"{path} holds no CA's certificate", "give the one that signed the server's")
    first = min(ends, key=ssl.cert_time_to_seconds)
    left = (ssl.cert_time_to_seconds(first) - time.time()) / 86400
    if left <= 0:
        return Finding(key, FAIL, f"{path}: expired on {first}", _RENEW)
    return Finding(
        key, NOTE if left < _SOON_DAYS else OK, f"{path}: valid until {first}", "" if left >= _SOON_DAYS else _RENEW
    )


def node_socket(path: Path) -> Finding:
    """Look whether ``pdss node`` answers this user at a SuperNode's ``node-socket``."""
    import grpc

    from pdss_fl.proto import node_pb2 as pb
    from pdss_fl.proto.node_pb2_grpc import NodeServiceStub
    from pdss_fl.relay import SCHEMA_VERSION, SOCKET

    try:
        there = stat.S_ISSOCK(path.stat().st_mode)
    except OSError as err:
        return Finding(SOCKET, FAIL, f"{path}: {err.strerror}", "start `pdss node --socket` there, or correct the path")
    if not there:
        return Finding(SOCKET, FAIL, f"{path} is no socket", "name the one that `pdss node --socket` made")
    if not os.access(path, os.W_OK):
        return Finding(SOCKET, FAIL, f"{path} cannot be written", "run this as the SuperNode's user; --socket-group")
    code, details = grpc.StatusCode.OK, ""
    with grpc.insecure_channel(f"unix:{path.absolute()}") as channel:
        try:  # an empty message: a node says that it is none of Flower's
            NodeServiceStub(channel).Handle(  # type: ignore[no-untyped-call]
                pb.NodeRequest(schema_version=SCHEMA_VERSION), timeout=_ANSWER_SECONDS
            )
        except grpc.RpcError as err:
            code, details = err.code(), err.details() or ""
    if code == grpc.StatusCode.INVALID_ARGUMENT and "install equal" not in details:
        return Finding(SOCKET, OK, f"`pdss node` answers at {path}")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return Finding(SOCKET, FAIL, f"another version answers at {path}", "install the same release on both sides")
    return Finding(
        SOCKET, FAIL, f"no `pdss node` answers at {path} ({code.name})", "start `pdss node`; its log says why not"
    )
