"""``pdss serve`` and ``pdss token-key``: the LLM server as a process, from its options to its graceful end."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pdss_fl.errors import PdssError, SettingError
from pdss_fl.llm.admission import MAX_QUEUED
from pdss_fl.llm.calls import ServiceLimits
from pdss_fl.llm.metrics import serve_metrics
from pdss_fl.llm.service import RunningServer, ServiceSecurity
from pdss_fl.llm.service import serve as start
from pdss_fl.llm.tls import ServerTls
from pdss_fl.llm.tokens import create_key, read_key
from pdss_fl.llm_settings import DTYPE_NAMES, LLMSettings
from pdss_fl.logs import log_as_json
from pdss_fl.messages import MAX_BATCH_BYTES, MAX_PROMPTS, ServerInfo

if TYPE_CHECKING:
    from pdss_fl.llm.scheduler import Scheduler

logger = logging.getLogger("pdss_fl.serve")

_LLM, _DEFAULTS = LLMSettings(), ServiceLimits()


def _option(panel: str, text: str, **rule: Any) -> Any:
    if {"min", "max"} & rule.keys():
        rule["metavar"] = "N"  # the range follows; "INTEGER RANGE" would leave the text no room at 80 columns
    return typer.Option(help=text, rich_help_panel=panel, **rule)


def _llm(text: str, **rule: Any) -> Any:
    return _option("LLM", text, **rule)


def _network(text: str, **rule: Any) -> Any:
    return _option("Network and security", text, **rule)


def _limit(text: str, **rule: Any) -> Any:
    return _option("Limits", text, **rule)


def _operation(text: str, **rule: Any) -> Any:
    return _option("Operation", text, **rule)


def serve(
    model: Annotated[str, _llm("Hugging Face id or path of a causal LM.")] = _LLM.model,
    adapter: Annotated[str, _llm("LoRA folder; auto: the built-in one for the bundled LLM.")] = _LLM.adapter,
    instruction: Annotated[str, _llm("JSON file with task text and demonstrations.")] = _LLM.instruction,
    dtype: Annotated[str, _llm("auto, float32, bfloat16 or float16.")] = _LLM.dtype,
    batch_size: Annotated[int, _llm("Most prompts that are written at a time.", min=1)] = _LLM.batch_size,
    host: Annotated[str, _network("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _network("0 takes a free one.", min=0, max=65535)] = 50061,
    tls_certificate: Annotated[Path | None, _network("PEM file of the server's certificate; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, _network("PEM file of its private key.")] = None,
    client_ca: Annotated[Path | None, _network("Refuse clients without a certificate of this CA (PEM).")] = None,
    token_key: Annotated[Path | None, _network("Answer only tokens of this key; see pdss token-key.")] = None,
    token_leeway: Annotated[float, _network("Seconds by which clocks may differ.", min=0)] = 60.0,
    insecure: Annotated[bool, _network("Allow plain text and anybody outside loopback.")] = False,
    reflection: Annotated[
        bool | None, _network("Describe the services to whoever asks; by default on loopback only.")
    ] = None,
    max_request_bytes: Annotated[
        int, _limit("Bytes of one request.", min=1, max=MAX_BATCH_BYTES)
    ] = _DEFAULTS.max_request_bytes,
    max_prompts: Annotated[int, _limit("Prompts of one request.", min=1, max=MAX_PROMPTS)] = _DEFAULTS.max_prompts,
    max_prompt_tokens: Annotated[
        int, _limit("Tokens of one prompt, without the instruction.", min=1)
    ] = _DEFAULTS.max_prompt_tokens,
    max_new_tokens: Annotated[
        int, _limit("Tokens of one rationale.", min=1, max=ServerInfo.max_new_tokens)
    ] = _DEFAULTS.max_new_tokens,
    max_requests: Annotated[int, _limit("Requests under way or waiting.", min=1)] = _DEFAULTS.max_requests,
    max_per_tenant: Annotated[
        int, _limit("The same of one run and node, client certificate, or address.", min=1)
    ] = _DEFAULTS.max_requests_per_tenant,
    max_queued: Annotated[int, _limit("Prompts that wait for the LLM, of all requests.", min=1)] = MAX_QUEUED,
    max_seconds: Annotated[float, _limit("Seconds that one request may take.", min=1)] = _DEFAULTS.max_seconds,
    stall_seconds: Annotated[
        float, _limit("Seconds for which a client may leave an answer unread.", min=1)
    ] = _DEFAULTS.stall_seconds,
    keepalive_seconds: Annotated[
        float, _limit("Seconds of silence after which a connection is probed.", min=1)
    ] = _DEFAULTS.keepalive_seconds,
    idle_seconds: Annotated[
        float, _limit("Seconds after which a connection without a call is closed.", min=1)
    ] = _DEFAULTS.idle_seconds,
    max_connections: Annotated[int, _limit("Connections at a time.", min=1)] = _DEFAULTS.max_connections,
    max_streams: Annotated[int, _limit("Calls at a time on one connection.", min=1)] = _DEFAULTS.max_streams,
    drain_seconds: Annotated[float, _operation("Seconds for requests under way at a stop.", min=0)] = 30.0,
    metrics_port: Annotated[int, _operation("Prometheus metrics on loopback; 0: none.", min=0, max=65535)] = 0,
    log_format: Annotated[str, _operation("text, or json for one object a line.")] = "text",
) -> None:
    """Load an LLM once and write rationales for any number of runs over gRPC.

    Without options: plain text on loopback, for anybody on this machine.

    For a network: a certificate, and a token key (which the ServerApp shares) or a client CA.

    Its health is SERVING once the LLM is loaded, and NOT_SERVING while Ctrl-C or SIGTERM ends it.
    """
    _check_choice("--log-format", log_format, ("text", "json"))
    _check_choice("--dtype", dtype, DTYPE_NAMES)
    if log_format == "json":
        log_as_json()
    security = ServiceSecurity(
        _tls(tls_certificate, tls_key, client_ca),
        read_key(token_key, "--token-key") if token_key else None,
        token_leeway, insecure, reflection,
    )  # fmt: skip
    limits = ServiceLimits(
        max_requests, max_per_tenant, max_prompts, max_prompt_tokens, max_request_bytes, max_new_tokens,
        max_seconds, stall_seconds, keepalive_seconds, idle_seconds, max_connections, max_streams,
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what it puts in the background deaf to the first
        signal.signal(number, signal.default_int_handler)
    server = start(None, host=host, port=port, limits=limits, security=security)
    stop_metrics = serve_metrics(server.metrics, metrics_port) if metrics_port else lambda: None
    generator: Scheduler | None = None
    try:
        from pdss_fl.llm.generator import load_local_generator  # takes seconds; the port is open meanwhile

        with _options_named():
            generator = load_local_generator(model, instruction, dtype, batch_size, adapter, max_queued)
        server.ready(generator)
        typer.echo(f"serving {generator.info.model} ({generator.info.dtype}) at {server.address}")
        with _status_line(server) if log_format == "text" else nullcontext():
            server.wait()
    except KeyboardInterrupt:
        logger.info("stopping; %d requests under way", server.in_flight)
    finally:
        server.stop(drain_seconds)
        if generator is not None:
            generator.close()
        stop_metrics()


def token_key(path: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")]) -> None:
    """Make the key that signs tokens, for pdss serve --token-key and the ServerApp's PDSS_TOKEN_KEY."""
    create_key(path)
    typer.echo(f"wrote {path}, readable by its owner only")


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingError(f"{option} = {value!r} is unknown; use {', '.join(known[:-1])} or {known[-1]}")


@contextmanager
def _options_named() -> Iterator[None]:
    """Call what an error names by the option that was typed here, and not by a run's setting."""
    try:
        yield
    except PdssError as error:
        public = re.sub(r"\bllm\.(model|adapter|instruction|dtype|batch-size)\b", r"--\1", error.public)
        raise type(error)(public, error.private) from None


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise SettingError("TLS needs both --tls-certificate and --tls-key; one of the two is not given")
    return ServerTls(certificate, key, client_ca)


class _Status:
    """One line about a server, counted anew whenever it is shown."""

    def __init__(self, server: RunningServer) -> None:
        self._server, self._since, self._tokens, self._rate = server, time.monotonic(), 0, 0.0

    def __rich__(self) -> Text:
        now, metrics = time.monotonic(), self._server.metrics
        if now - self._since >= 1.0:
            self._rate = (metrics.tokens - self._tokens) / (now - self._since)
            self._since, self._tokens = now, metrics.tokens
        return Text(
            f"{self._server.in_flight} requests under way | {metrics.rationales} of {metrics.prompts} prompts "
            f"answered | {self._rate:.0f} tokens/s",
            no_wrap=True, overflow="ellipsis",
        )  # fmt: skip


@contextmanager
def _status_line(server: RunningServer) -> Iterator[None]:
    """Keep one line at the foot of a terminal up to date; log lines scroll above it."""
    if not sys.stderr.isatty():
        yield
        return
    handlers = [h for h in logging.getLogger("pdss_fl").handlers if isinstance(h, logging.StreamHandler)]
    with Live(_Status(server), console=Console(stderr=True), refresh_per_second=2, transient=True):
        streams = [handler.setStream(sys.stderr) for handler in handlers]
        try:
            yield
        finally:
            for handler, stream in zip(handlers, streams, strict=True):
                if stream is not None:
                    handler.setStream(stream)
