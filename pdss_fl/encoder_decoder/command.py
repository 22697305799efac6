"""``pdss train-encoder-decoder``: its options; what it does is imported when it is called, since that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SCRATCH, BUILT_IN = "scratch", "built-in"


def train_command(
    output: Annotated[Path, typer.Argument(help="Folder for the trained model.")],
    model: Annotated[str, typer.Option(help="'scratch', or the id or folder of a Hugging Face model.")] = SCRATCH,
    public: Annotated[str, typer.Option(help="'built-in', or public JSONL: a file or a folder.")] = BUILT_IN,
    policy: Annotated[
        list[Path] | None, typer.Option(help="The policy file of each node whose data lies on this machine.")
    ] = None,
    no_node: Annotated[bool, typer.Option("--no-node", help="No node's data lies on this machine.")] = False,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="privacy.* and llm.*, as for flwr run.")
    ] = None,
    mechanism: Annotated[str, typer.Option(help="'groups', or what makes pairs, such as 'exponential'.")] = "groups",
    epsilon: Annotated[float, typer.Option(help="Per word, for the pairs.")] = 7.0,
    copies: Annotated[int, typer.Option(min=1, help="Perturbed copies of each prompt.")] = 2,
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(help="A pretrained model wants 0.0001 or less.")] = 0.003,
    encoder_weight: Annotated[float, typer.Option(help="Of the encoder's loss, in (0, 1].")] = 0.5,
    hidden_size: Annotated[int, typer.Option(help="Width of a model from scratch.")] = 96,
    layers: Annotated[int, typer.Option(help="Depth of a model from scratch.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Longest row of both families.")] = 192,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on where a killed training was.")] = True,
) -> None:
    """Train one small model to rewrite prompts and to restore rationales, on public data only.

    The defaults make the built-in model.
    """
    from pdss_fl.encoder_decoder.making import train_as_asked

    train_as_asked(
        output, model, public, policy, no_node, run_config, mechanism, epsilon, copies,
        steps, batch_size, learning_rate, encoder_weight, hidden_size, layers, max_tokens, seed, resume,
    )  # fmt: skip
