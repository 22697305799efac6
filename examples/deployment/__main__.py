"""The commands of the example, from the project's root: ``python -m examples.deployment run``, ``... credentials``."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from examples.deployment.credentials import make_hospital, prepare
from examples.deployment.federation import Federation
from examples.deployment.network import Network
from examples.deployment.parties import Party, PartyError

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
    with tempfile.TemporaryDirectory(prefix="pdss-deployment-") as scratch:
        federation = Federation(folder or Path(scratch), ROOT, 3, options, Network() if namespaces else None)
        try:
            with federation:
                _run(federation, [*(SHORT if short else LONG), settings])
        except PartyError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


@app.command()
def credentials(
    folder: Annotated[Path, typer.Argument(help="For the parties' folders; what exists there is left alone.")],
    hospitals: Annotated[int, typer.Option(help="How many, with built-in data for a try.", min=1)] = 3,
    superlink: Annotated[str, typer.Option(help="Names and addresses of the SuperLink, with commas.")] = "127.0.0.1",
    llm: Annotated[str, typer.Option(help="Those of the LLM server.")] = "127.0.0.1",
) -> None:
    """Make the keys, certificates and policies of a federation, a folder for each party."""
    prepare(folder.resolve(), hospitals, superlink.split(","), llm.split(","))
    typer.echo(f"{folder.resolve()}: ca/ superlink/ llm/ hospital-1/ to hospital-{hospitals}/")


@app.command()
def hospital(
    folder: Annotated[Path, typer.Argument(help="The one that `credentials` filled.")],
    name: Annotated[str, typer.Argument(help="Of the new hospital.")],
) -> None:
    """Make the key and policy of one more hospital; its data.jsonl is its own to bring."""
    home = make_hospital(folder.resolve(), name, [])
    typer.echo(f"{home}: register {folder.resolve() / 'superlink' / 'nodes' / (name + '.pub')}")


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
    """Show what a run says as it comes."""
    shown = 0
    while True:
        ended = party.code is not None
        text = party.text()
        typer.echo(text[shown:], nl=False)
        shown = len(text)
        if ended:
            return
        try:
            party.wait(0.5)
        except PartyError:
            continue


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
