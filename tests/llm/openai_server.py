"""Servers that speak the OpenAI-compatible API on loopback: llama.cpp's own, and one that fails as it is told."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pdss_fl.llm.endpoint import Endpoint
from pdss_fl.llm.instruction import Demonstration, Instruction
from pdss_fl.llm.openai import OpenAIGenerator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch
from tests.llm.helpers import STATEMENT

KEY = "sk-very-secret-0123456789"
SHORT = Instruction("Explain.", (Demonstration("what is ice", ("cold", "hot"), "Ice is frozen water. It is cold."),))
SETTINGS = GenerationSettings(max_new_tokens=12)

_LLAMA = """
import sys, threading
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.api_keys = sys.argv[1], [sys.argv[2]]
settings.hostnames, settings.port = ["127.0.0.1"], 0
settings.n_parallel, settings.n_ctx, settings.warmup = 4, 4 * 1024, False
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


def bundled_gguf() -> Path:
    """Return the file of the bundled LLM that llama.cpp reads."""
    from pdss_fl.bundled import _GGUF, _wheel_folder

    return _wheel_folder() / _GGUF


@contextmanager
def llama_server() -> Iterator[str]:
    """Run llama.cpp's own server with the bundled LLM in a process of its own; yields its base URL."""
    command = [sys.executable, "-c", _LLAMA, str(bundled_gguf()), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), "llama.cpp's server did not start"
            yield f"{address}/v1"
        finally:
            process.kill()


@dataclass
class Reply:
    """What the scripted server answers."""

    content: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """How long it takes."""


@dataclass
class Call:
    """One request that the scripted server got."""

    path: str
    body: dict[str, Any]
    key: str
    at: float

    @property
    def asked(self) -> str:
        """The last thing that was said."""
        return str(self.body["messages"][-1]["content"] if "messages" in self.body else self.body["prompt"])


Script = Callable[[Call], Reply]


class ScriptedServer:
    """A real HTTP server whose answers a test chooses; keeps every request, and counts those under way and cut off."""

    def __init__(self, script: Script) -> None:
        self.calls: list[Call] = []
        self.under_way = self.most_under_way = self.cut_off = 0
        self._lock, self._script = threading.Lock(), script
        self._stopped = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(Reply(b'{"data": []}'))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = Call(self.path, body, self.headers.get("Authorization", ""), time.monotonic())
                reply = outer._handle(call, self.connection)
                if reply is None:
                    self.close_connection = True
                else:
                    self._send(reply)

            def _send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # the client may be gone
                    self.wfile.write(reply.content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 128, True

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _handle(self, call: Call, connection: socket.socket) -> Reply | None:
        """Return the script's answer when its time has come, nothing once the client has closed the connection."""
        with self._lock:
            self.calls.append(call)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        reply = self._script(call)
        due, gone = time.monotonic() + reply.seconds, False
        while time.monotonic() < due and not gone and not self._stopped.is_set():
            readable, _, _ = select.select([connection], [], [], min(0.02, due - time.monotonic()))
            gone = bool(readable) and not connection.recv(1, socket.MSG_PEEK)
        with self._lock:
            self.under_way -= 1
            self.cut_off += gone
        return None if gone else reply

    def stop(self) -> None:
        """End it; what is under way ends too."""
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedServer]:
    """Run a scripted server."""
    server = ScriptedServer(script)
    try:
        yield server
    finally:
        server.stop()


def said(text: Any, finish: Any = "stop", usage: Any = None) -> Reply:
    """Return a proper answer that both forms can read."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": finish}
    counted = {"prompt_tokens": 100, "completion_tokens": 7} if usage is None else usage
    return Reply(json.dumps({"choices": [choice], "usage": counted}).encode())


def failed(status: int, kind: str = "server_error", **headers: str) -> Reply:
    """Return an error whose message quotes the prompt, as servers do."""
    error = {"message": "cannot read: what does a robin have", "type": kind, "code": status}
    return Reply(json.dumps({"error": error}).encode(), status, {n.replace("_", "-"): v for n, v in headers.items()})


@contextmanager
def generator_at(url: str, key: str = KEY, **options: Any) -> Iterator[OpenAIGenerator]:
    environment = {"PDSS_LLM_API_KEY": key, "PDSS_LLM_BASE_URL": url}
    reached = Endpoint(url, options.get("concurrency", 16), environment=environment)
    generator = OpenAIGenerator(reached, model="smollm2", instruction=SHORT, **options)
    try:
        yield generator
    finally:
        generator.close()


def numbered(prompts: int) -> PromptBatch:
    return PromptBatch(tuple(PerturbedPrompt(i, f"number {i} of them") for i in range(prompts)), STATEMENT)


def number_of(call: Call) -> int:
    return int(call.asked.split("number ")[1].split(" ")[0])
