"""``pdss``: the commands of this project."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pdss_fl.encoder_decoder.command import train_command
from pdss_fl.errors import PdssError, SettingError
from pdss_fl.logs import configure_logging
from pdss_fl.privacy_commands import add_privacy_commands
from pdss_fl.run_config import app_settings, read_overrides
from pdss_fl.serve_command import serve, token_key


class _OneLineErrors(typer.core.TyperGroup):
    """Show this project's own errors as one line on standard error, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PdssError as err:
            typer.echo(f"error: {err.local}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Privacy-preserving step-by-step distillation of small language models with Flower.",
)  # fmt: skip


ledger_app = typer.Typer(no_args_is_help=True, help="A node's record of what it released.")
app.add_typer(ledger_app, name="ledger")


@ledger_app.callback()
def _ledger() -> None:
    """Keep ``show`` a sub-command; typer would run a lone one in its group's place."""


@ledger_app.command("show")
def ledger_show(
    path: Annotated[Path, typer.Argument(help="A node's STATE-DIR/ledger.jsonl.")],
    limit: Annotated[float | None, typer.Option(min=0, help="The node's max-epsilon-per-example.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Examples and persons to show, biggest spenders first.")] = 50,
) -> None:
    """Print who has spent what, what is left, and whether the ledger is all there."""
    from pdss_fl.ledger_report import describe_ledger

    typer.echo(describe_ledger(path, limit, rows))


@app.callback()
def _start() -> None:
    configure_logging()


@app.command()
def prepare() -> None:
    """Convert the bundled LLM and build the default vocabulary once, so that no run has to wait for them."""
    from pdss_fl.bundled import bundled_model_path
    from pdss_fl.config import RunSettings
    from pdss_fl.vocabularies import load_perturber

    typer.echo(f"bundled LLM: {bundled_model_path()}")
    settings = RunSettings()
    load_perturber(settings, settings.privacy.mechanism)


@app.command()
def run(
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", help="As for flwr run, e.g. 'privacy.epsilon=6.0', or a TOML file."),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 2,
    app_directory: Annotated[Path, typer.Option("--app", help="The Flower app's folder.")] = Path("."),
    output: Annotated[Path, typer.Option(help="Where run directories are made, unless -c gives output-dir.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last unfinished run of equal settings.")
    ] = False,
) -> None:
    """Simulate a whole run with a SuperLink of its own, and end that SuperLink."""
    from pdss_fl.launcher import run_simulation
    from pdss_fl.report import render_summary
    from pdss_fl.run_checks import check_simulation

    own = [f"output-dir={json.dumps(str(output.resolve()), ensure_ascii=False)}", *(["resume=true"] if resume else [])]
    overrides = [*own, *(run_config or [])]
    check_simulation(app_settings(app_directory), read_overrides(overrides), clients)
    path = run_simulation(app_directory.resolve(), overrides, clients)
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    typer.echo(render_summary(summary))
    typer.echo(f"results: {path}")


@app.command()
def doctor(
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="As for flwr run: the run to look at.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A node's policy file: looks at the node's machine.")] = None,
    node_socket: Annotated[Path | None, typer.Option(help="A SuperNode's node-socket: who answers?")] = None,
) -> None:
    """Look at everything that a run will need of this machine, and say what to do; exit code 1 if anything fails."""
    from pdss_fl.config import RunSettings
    from pdss_fl.run_checks import check_names

    asked = read_overrides(run_config or [])
    check_names(asked, RunSettings().flat())
    settings = RunSettings.from_run_config(asked)

    from pdss_fl.doctor import examine  # only now: it brings the libraries of models along
    from pdss_fl.doctor_checks import FAIL

    findings = []
    for finding in examine(settings, policy, node_socket):
        findings.append(finding)
        typer.echo(f"{finding.verdict:4}  {finding.what:18} {finding.found}")
        if finding.remedy:
            typer.echo(f"{'':25}-> {finding.remedy}")
    failed = sum(finding.verdict == FAIL for finding in findings)
    if failed:
        typer.echo(f"{failed} of {len(findings)} checks fail", err=True)
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder; on a client STATE-DIR/runs/RUN-ID, with --policy.")],
    policy: Annotated[Path | None, typer.Option(help="The policy file of the client whose own page this is.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="The client's own examples to show.")] = 5,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write a run as one self-contained page: the comparison, each client, the budget, what an attacker finds.

    With the client's own files, as after a simulation, it shows private texts: only this user may read the page.
    """
    from pdss_fl.files import write_privately
    from pdss_fl.policy import NodePolicy
    from pdss_fl.run_report.material import read_run
    from pdss_fl.run_report.page import render_page

    own = NodePolicy.from_node_config({"policy": str(policy)}) if policy else None
    page = render_page(read_run(run, own, examples))
    try:
        write_privately(output, page)
    except OSError as err:
        raise SettingError(
            f"--output = {str(output)!r} cannot be written ({err.strerror}): name another file"
        ) from None
    typer.echo(f"wrote {output}")


@app.command()
def node(
    policy: Annotated[Path, typer.Argument(help="The node's policy (TOML): state-dir, data-path, the two limits.")],
    socket: Annotated[Path, typer.Option(help="Unix socket to make, for the SuperNode's node-socket.")],
    socket_group: Annotated[str, typer.Option(help="Group that may write to it; has the SuperNode's user.")] = "",
) -> None:
    """Be the client, as a process of its own that alone reads the data; the ClientApp only relays.

    Start the SuperNode as another user and with --node-config 'node-socket="SOCKET"' alone.
    """
    from pdss_fl.node import listening

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt), listening(policy, socket, socket_group) as server:
        typer.echo(f"node at {socket}")
        server.wait_for_termination()


app.command()(serve)
app.command()(token_key)


@app.command()
def predict(
    slm: Annotated[Path, typer.Argument(help="A small model's folder, e.g. RUN/clients/client-0/slm/pdss.")],
    questions: Annotated[Path, typer.Argument(help="JSON lines with question and choices.")],
) -> None:
    """Answer questions with a saved small model; prints one JSON object a line."""
    from pdss_fl.data.sources import read_questions
    from pdss_fl.slm.evaluate import predict as answer
    from pdss_fl.slm.model import SmallModel

    logging.getLogger("pdss_fl").setLevel(logging.WARNING)
    if not (slm / "config.json").is_file():
        raise SettingError(
            f"{str(slm)!r} holds no saved small model: name a folder such as RUN/clients/client-0/slm/pdss"
        )
    examples = read_questions(questions)
    for example, prediction in zip(examples, answer(SmallModel.load(slm), examples), strict=True):
        typer.echo(json.dumps({"question": example.question, "prediction": prediction}, ensure_ascii=False))


@app.command()
def privacy(
    epsilon: Annotated[float | None, typer.Option(help="Per token; the run's default if not given.")] = None,
    neighbours: Annotated[int | None, typer.Option(help="Size of a word's nearest set.")] = None,
    vocabulary_size: Annotated[int | None, typer.Option(help="Words of the public vocabulary.")] = None,
) -> None:
    """Print what the default mechanism protects on the built-in set, and how well the best attack does."""
    from pdss_fl.privacy_report import describe_default

    typer.echo(describe_default(epsilon, neighbours, vocabulary_size))


add_privacy_commands(app)
app.command("train-encoder-decoder")(train_command)

if __name__ == "__main__":
    app()
