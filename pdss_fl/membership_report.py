"""``pdss audit --slm``: whether a small model tells who was in its training data."""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pdss_fl.choices import own_settings
from pdss_fl.client_data import whole_corpus
from pdss_fl.config import RunSettings
from pdss_fl.data.example import Example
from pdss_fl.data.sources import read_jsonl
from pdss_fl.errors import DataError, SettingError
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy.attacks import Membership, membership_attack
from pdss_fl.privacy.attacks.results import CONFIDENCE
from pdss_fl.slm.evaluate import answer_losses
from pdss_fl.slm.model import SmallModel
from pdss_fl.store import SPLIT, ClientStore


def report_membership(
    slm: Path | None,
    members: Path | None,
    non_members: Path | None,
    reference: Path | None,
    policy: Path | None,
    console: Console,
) -> None:
    """Attack a small model and print how well each attack does.

    Parameters
    ----------
    slm, reference : Path | None
        Folders in Hugging Face format; the reference is a model that saw neither file,
        best one trained on other data of the kind (another client's).
    members, non_members : Path | None
        JSON lines; what is in both is a member. Without them they are what the run that made ``slm`` trained on and
        what it kept for tests.
    policy : Path | None
        The policy file of the deployed node whose model it is, which says where its data lies.
    console : Console
        Where to print.

    Raises
    ------
    SettingError
        If no model or only one of the two files is given, a folder holds no small model, or no run left it.
    DataError
        If a file cannot be read, or there are fewer than two examples of either.
    """
    if slm is None or (members is None) != (non_members is None):
        raise SettingError(
            "membership inference needs --slm DIR, and for a model that no run left here both --members FILE and "
            "--non-members FILE"
        )
    if members is not None and non_members is not None:
        trained, kept = read_jsonl(members), read_jsonl(non_members)
    else:
        trained, kept = _split_of_run(slm, policy, console)
    inside = list(dict.fromkeys(trained))
    outside = [e for e in dict.fromkeys(kept) if e not in set(inside)]
    if min(len(inside), len(outside)) < 2:
        raise DataError(
            f"membership inference needs at least two different examples of either: {len(inside)} members and "
            f"{len(outside)} others are given"
        )
    lost = _losses(slm, inside, outside)
    found = {"loss": membership_attack(*_scores(lost))}
    if reference is not None:
        before = _losses(reference, inside, outside)
        gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(before, lost, strict=True)]
        found["loss against the reference"] = membership_attack(gains[0], gains[1])
    _print(found, console)


def _split_of_run(slm: Path, policy: Path | None, console: Console) -> tuple[list[Example], list[Example]]:
    """Return what a run trained a client's model on and what it kept for tests, as the client itself noted it."""
    folder = slm.absolute().parent.parent  # a client keeps its models in FOLDER/slm/METHOD
    if not (folder / SPLIT).is_file():
        raise SettingError(
            f"{str(folder)!r} does not tell what {slm.name!r} was trained on: name RUN/clients/client-N/slm/METHOD, "
            "a node's STATE-DIR/runs/RUN-ID/slm/METHOD with --policy, or give --members and --non-members"
        )
    corpus = whole_corpus(*(_of_node(policy) if policy else _of_simulation(folder)))
    split = ClientStore(folder).load_split()
    gone = sum(key not in corpus for keys in split.values() for key in keys)
    if gone:
        console.print(f"Left out: {gone} examples of the run are no longer in this client's data.")
    trained, kept = ([corpus[key] for key in split[side] if key in corpus] for side in ("train", "test"))
    return trained, kept


def _of_node(path: Path) -> tuple[RunSettings, NodePolicy]:
    policy = NodePolicy.from_node_config({"policy": str(path)})
    return own_settings(RunSettings(), policy.choices, simulated=False), policy


def _of_simulation(folder: Path) -> tuple[RunSettings, NodePolicy]:
    file, number = folder.parent.parent / "settings.json", folder.name.removeprefix("client-")
    if not (file.is_file() and number.isdecimal()):
        raise SettingError(f"{str(folder)!r} is no simulated client's: give its node's policy file with --policy")
    settings = RunSettings.from_run_config(json.loads(file.read_text(encoding="utf-8")))
    policy = NodePolicy.simulation(folder, settings, int(number))
    return own_settings(settings, policy.choices, simulated=True), policy


def _losses(folder: Path, inside: list[Example], outside: list[Example]) -> tuple[list[float], list[float]]:
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"{str(folder)!r} holds no saved small model: name a folder such as RUN/clients/client-0/slm/pdss"
        )
    slm = SmallModel.load(folder)
    return answer_losses(slm, inside), answer_losses(slm, outside)


def _scores(lost: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    return [-loss for loss in lost[0]], [-loss for loss in lost[1]]


def _print(found: dict[str, Membership], console: Console) -> None:
    first = next(iter(found.values()))
    table = Table(
        title=f"Membership inference: {first.members} members, {first.others} others, {CONFIDENCE:.0%} intervals",
        box=SIMPLE_HEAD,
    )
    table.add_column("attack by")
    table.add_column("AUC (0.5 is a guess)", justify="right")
    for rate in first.true_positives:
        table.add_column(f"members found at {rate:.1%} false", justify="right")
    for name, result in found.items():
        cells = [f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})" for rate in result.true_positives.values()]
        table.add_row(name, f"{result.auc:.3f} ({result.low:.3f} to {result.high:.3f})", *cells)
    console.print(table)
    best = max(found.values(), key=lambda result: result.low)
    told = "tells members from others" if best.low > 0.5 else "is not seen to tell members from others"
    console.print(f"This model {told}. Stronger attacks exist: it is a lower bound of what the weights tell.")
