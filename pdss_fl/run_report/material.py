"""What a page about a run is made of, read from the files that the run left; nothing is computed anew.

The server's files hold the comparison and what each client reported. A client's own hold its ledger, and what was
sent and came back of each example; they lie in the run directory after a simulation only, else on the client.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdss_fl.client_data import data_format, node_format
from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.sources import whole_data
from pdss_fl.data_settings import BUILT_IN_DATA
from pdss_fl.errors import SettingError, StoreError
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import BLANK
from pdss_fl.privacy.counts import TEST_SPLIT
from pdss_fl.privacy.ledger import Totals
from pdss_fl.privacy.ledger_file import read_ledger
from pdss_fl.store import OWN_SETTINGS

METHOD = "pdss"

Curves = Mapping[str, Mapping[int, Sequence[tuple[int, float]]]]
"""A method: a node: (round, share of right answers), in the order of rounds."""


@dataclass(frozen=True)
class Shown:
    """One example from end to end; ``decoded`` is ``None`` where the rationale was left out of the training."""

    question: str
    choices: tuple[str, ...]
    answer: str
    sent: str
    rationale: str
    decoded: str | None


@dataclass(frozen=True)
class Client:
    """A client's own part: what it has spent over all runs, and some examples.

    ``raw`` of its ``releases`` were sent as they are, for the bound without privacy; the rest was of ``examples``.
    ``limit`` is ``None`` where there is none, as in a simulation; ``left`` is that of the example that spent most.
    """

    name: str
    releases: int
    raw: int
    examples: int
    most_spent: float
    limit: float | None
    trouble: str
    shown: tuple[Shown, ...]

    @property
    def left(self) -> float | None:
        """Epsilon that the example that spent most has left."""
        return None if self.limit is None else max(0.0, self.limit - self.most_spent)


@dataclass(frozen=True)
class Material:
    """Everything that a page shows; without ``summary`` it is a client's own page."""

    name: str
    summary: Mapping[str, Any] | None
    settings: RunSettings | None
    curves: Curves
    clients: tuple[Client, ...]
    corpus: tuple[Example, ...]


def read_run(run: Path, policy: NodePolicy | None = None, examples: int = 5) -> Material:
    """Read a run directory.

    Parameters
    ----------
    run : Path
        The server's ``RUN``, or on a client ``STATE-DIR/runs/RUN-ID``.
    policy : NodePolicy | None (default: None)
        Of the client whose directory this is; names its data and its ledger.
    examples : int (default: 5)
        Examples shown of a client.

    Raises
    ------
    SettingError
        If the folder holds no run.
    StoreError
        If a file of it is damaged.
    """
    summary = _json(run / "summary.json")
    if summary is None and not (policy and (run / "asked").is_dir()):
        raise SettingError(
            f"{str(run)!r} holds no run: name the folder that `results:` shows, or on a client STATE-DIR/runs/RUN-ID "
            "with --policy"
        )
    settings = _settings(run / ("settings.json" if summary is not None else OWN_SETTINGS))
    corpus = _corpus(settings, policy, simulated=(run / "clients").is_dir())
    if policy is not None:
        clients: tuple[Client, ...] = (
            _client(run, policy.state_dir, policy.max_epsilon_per_example, corpus, examples),
        )
    else:
        folders = sorted((run / "clients").glob("client-*"), key=lambda p: int(p.name.removeprefix("client-")))
        clients = tuple(_client(folder, folder, math.inf, corpus, examples) for folder in folders)
    return Material(run.name, summary, settings, _curves(run / "metrics.jsonl"), clients, tuple(corpus.values()))


def _settings(path: Path) -> RunSettings | None:
    found = _json(path)
    return None if found is None else RunSettings.from_run_config(found)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:
        raise StoreError(f"{path.name} of this run is damaged") from None


def _corpus(settings: RunSettings | None, policy: NodePolicy | None, simulated: bool) -> dict[str, Example]:
    """Return the examples that this machine may show, by key; none on a server that holds no data.

    Whoever submitted a run chose its ``data.path``, so it is read after a simulation only, as the run itself did.
    """
    path = policy.data_path if policy is not None else None
    if path is None and settings is not None:
        if settings.data.source == BUILT_IN_DATA:
            return {example.key: example for example in private_examples()}
        path = Path(settings.data.path) if simulated else None
    if path is None or not path.exists():
        return {}
    form = node_format(policy) if policy is not None else data_format((settings or RunSettings()).data)
    return {example.key: example for examples in whole_data(path, form).values() for example in examples}


def _curves(path: Path) -> Curves:
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["phase"] == "evaluate" and row.get("num-examples"):
            share = row["correct"] / row["num-examples"]
            curves.setdefault(row["method"], {}).setdefault(row["node"], []).append((row["round"], share))
    return curves


def _client(folder: Path, state_dir: Path, limit: float, corpus: Mapping[str, Example], examples: int) -> Client:
    ledger = state_dir / "ledger.jsonl"
    found = read_ledger(ledger) if ledger.exists() else None
    lines = [line for line in found.lines if line["example"] != TEST_SPLIT] if found else []
    prompts = [line for line in lines if "question" in line["released"]]  # else weights were trained on the example
    totals = Totals()
    for line in lines:
        if not _is_raw(line):
            totals.add(line)
    return Client(
        folder.name,
        len(prompts),
        sum(map(_is_raw, prompts)),
        len(totals.example),
        max(totals.example.values(), default=0.0),
        None if math.isinf(limit) else limit,
        found.trouble if found else "",
        tuple(_shown(folder, _sent(prompts), corpus, examples)),
    )


def _sent(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return what was last released of each example, by its release key."""
    found = {}
    for line in lines:
        released = line["released"]
        if not _is_raw(line):
            found[line["example"]] = " / ".join(_said(words) for words in (released["question"], *released["choices"]))
    return found


def _is_raw(line: Mapping[str, Any]) -> bool:
    """Tell what the bound without privacy sent, which has no epsilon to add up."""
    return str(line["recipe"]).startswith(f"{IDENTITY} ")


def _said(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word != BLANK)


def _shown(folder: Path, sent: Mapping[str, str], corpus: Mapping[str, Example], examples: int) -> Iterable[Shown]:
    rationales = _json(folder / "rationales" / f"{METHOD}.json") or {}
    known = [key for key in rationales if key in corpus and corpus[key].release_key in sent]
    for key in known[:examples]:
        example, row = corpus[key], rationales[key]
        words = sent[example.release_key]
        yield Shown(example.question, example.choices, example.answer, words, row["raw"], row["decoded"])
