"""The commands of the example, from the project's root: ``python -m examples.deployment run``, ``... credentials``."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from examples.deployment.credentials import make_hospital, prepare, renew_certificate, renew_node_key
from examples.deployment.federation import Federation
from examples.deployment.network import Network
from examples.deployment.parties import Party, PartyError
from pdss_fl.errors import SettingError
from pdss_fl.run_bars import RunBars

ROOT = Path(__file__).parent.parent.parent
SHORT = ["methods='pdss'", "data.train-examples=6", "data.test-examples=20", "distill.steps=10", "slm.layers=1"]
LONG = ["methods='untrained standalone pdss'", "data.train-examples=120", "distill.steps=600"]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def run(
    short: Annotated[bool, typer.Option(help="Few examples and steps: shows that it works, not more.")] = False,
    namespaces: Annotated[bool, typer.Option(help="Each party in a network namespace of its own; needs root.")] = False,
    folder: Annotated[Path | None, typer.Option(help="For the parties' files; a temporary one if not given.")] = None,
    llm: Annotated[str, typer.Option(help="Another LLM's id or path; the bundled one if not given.")] = "",
    settings: Annotated[str, typer.Option("-c", help='As for flwr run, for example "privacy.epsilon=6.0".')] = "",
) -> None:
    """Start a federation of three hospitals on this machine, run the app on it, and end every process."""
    if namespaces and (trouble := Network.trouble()):
        raise typer.BadParameter(f"this machine allows no network namespaces: {trouble}", param_hint="--namespaces")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell made it deaf to Ctrl-C
    options = ["--model", llm, "--adapter", ""] if llm else []
    typer.echo("starting a SuperLink, an LLM server and 3 hospitals, each with keys and a folder of its own")
    with tempfile.TemporaryDirectory(prefix="pdss-deployment-") as scratch:
        try:
            with Federation(folder or Path(scratch), ROOT, 3, options, Network() if namespaces else None) as federation:
                _run(federation, [*(SHORT if short else LONG), settings])
            if folder is None:
                typer.echo("every process has ended, and the files above are removed; --folder FOLDER keeps them")
        except (PartyError, SettingError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


@app.command()
def credentials(
    folder: Annotated[Path, typer.Argument(help="A new one, for the parties' folders.")],
    hospitals: Annotated[int, typer.Option(help="How many, with built-in data for a try.", min=0)] = 3,
    superlink: Annotated[str, typer.Option(help="Names and addresses of the SuperLink, with commas.")] = "127.0.0.1",
    llm: Annotated[str, typer.Option(help="Those of the LLM server.")] = "127.0.0.1",
) -> None:
    """Make the keys, certificates and policies of a new federation, a folder for each party."""
    with _told():
        prepare(folder.resolve(), hospitals, superlink.split(","), llm.split(","))
    typer.echo(f"{folder.resolve()}: ca/ superlink/ llm/, and a folder for each of {hospitals} hospitals")


@app.command()
def hospital(
    folder: Annotated[Path, typer.Argument(help="The one with ca/.")],
    name: Annotated[str, typer.Argument(help="Of the new hospital.")],
) -> None:
    """Make the key and policy of one more hospital; its data.jsonl is its own to bring."""
    with _told():
        home = make_hospital(folder.resolve(), name, [])
    typer.echo(f"{home}: register {folder.resolve() / 'superlink' / 'nodes' / (name + '.pub')}")


@app.command()
def certificate(
    folder: Annotated[Path, typer.Argument(help="The one with ca/, and ca.key in it.")],
    server: Annotated[str, typer.Argument(help="superlink or llm.")],
    addresses: Annotated[str, typer.Argument(help="Names and addresses under which it is reached, with commas.")],
) -> None:
    """Renew one server's key and certificate under the same CA; nothing else changes."""
    with _told():
        home = renew_certificate(folder.resolve(), server, addresses.split(","))
    typer.echo(f"{home}: take server.pem and server.key to that server and start it again")


@app.command()
def node_key(home: Annotated[Path, typer.Argument(help="The hospital's own folder, on its own machine.")]) -> None:
    """Renew one hospital's key; needs no CA, and the private key stays where it is made."""
    with _told():
        public = renew_node_key(home.resolve())
    typer.echo(f"{public}: register it in place of the old one")


def _run(federation: Federation, settings: list[str]) -> None:
    typer.echo(f"{len(federation.names)} hospitals and the SuperLink at {federation.superlink_address}")
    typer.echo(f"LLM server at {federation.llm_address}; files in {federation.folder}")
    if federation.network:
        _check_walls(federation, federation.network)
    party = federation.submit(settings)
    try:
        _follow(party)
    finally:
        party.stop()
    if "\nresults: " not in party.text():
        raise PartyError("the run ended without a result; the lines above say why")


def _check_walls(federation: Federation, network: Network) -> None:
    """Show what each hospital reaches; raises ``PartyError`` if that is more or less than the SuperLink."""
    for name in federation.names:
        reached = network.visible_from(name)
        typer.echo(f"{name} reaches: {', '.join(reached) or 'nobody'}")
        if reached != ["superlink"]:
            raise PartyError(f"{name} should reach the SuperLink and nobody else")


def _follow(party: Party) -> None:
    """Show what a run says as it comes, whole lines, with a bar of what it counts on a terminal."""
    shown = 0
    with RunBars() as bars:
        while True:
            ended = party.code is not None
            text = party.text()
            *lines, rest = text[shown:].split("\n")
            for line in lines:
                bars.show(f"{line}\n")
            shown = len(text) - len(rest)
            if ended:
                bars.show(rest)
                return
            with suppress(PartyError):  # it has not ended
                party.wait(0.5)


@contextmanager
def _told() -> Iterator[None]:
    """Show why something is refused in one line, and end with exit code 1."""
    try:
        yield
    except SettingError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
