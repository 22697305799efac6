"""``pdss audit --slm``: whether a small model tells who was in its training data."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pdss_fl.data.example import Example
from pdss_fl.data.sources import read_jsonl
from pdss_fl.errors import DataError, SettingError
from pdss_fl.privacy.attacks import Membership, membership_attack
from pdss_fl.privacy.attacks.results import CONFIDENCE
from pdss_fl.slm.evaluate import answer_losses
from pdss_fl.slm.model import SmallModel


def report_membership(
    slm: Path | None, members: Path | None, non_members: Path | None, reference: Path | None, console: Console
) -> None:
    """Attack a small model and print how well each attack does.

    Parameters
    ----------
    slm, reference : Path | None
        Folders in Hugging Face format; the reference is a model that saw neither file,
        best one trained on other data of the kind (another client's).
    members, non_members : Path | None
        JSON lines; what is in both is a member.
    console : Console
        Where to print.

    Raises
    ------
    SettingError
        If one of the three that are needed is missing, or a folder holds no small model.
    DataError
        If a file cannot be read, or there are fewer than two examples of either.
    """
    if slm is None or members is None or non_members is None:
        raise SettingError("membership inference needs all of --slm DIR, --members FILE and --non-members FILE")
    inside = list(dict.fromkeys(read_jsonl(members)))
    outside = [e for e in dict.fromkeys(read_jsonl(non_members)) if e not in set(inside)]
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
