"""How a run is found again after it died: its name, the settings that must be equal, and its directory.

A new ``flwr run`` has a new run id. So the ServerApp gives a run a name (its first run id and 128 random bits), keeps
it in the run directory, and sends it with every message. A client keeps its files of a run under that name together
with the fingerprint of the run's settings, which it computes itself: under another name, or with other settings, it
finds nothing of the run and starts anew, with its ledger charged as for any run. Who knows the name can have done
again only what the run had done already: what was released is sent as it was, what was reported is reported as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ConfigRecord

from pdss_fl.config import RunSettings
from pdss_fl.errors import MessageError, SettingError
from pdss_fl.llm_settings import AUTO, DTYPE_NAMES, LLMSettings

LOADED = "loaded.json"
"""The file of a run directory that says in which number format the run's LLM was loaded first."""

_RUN = "run"
_NAME = re.compile(r"(\d{1,20})-[0-9a-f]{32}")
_MAY_DIFFER = {
    "resume", "output-dir", "perturb-timeout", "distill-timeout", "quorum", "min-available-nodes", "llm.timeout",
    "llm.address", "llm.root-certificates", "llm.insecure", "llm.token-lifetime", "llm.base-url", "llm.batch-size",
    "llm.concurrency", "llm.max-run-tokens", "llm.max-run-cost", "llm.input-price", "llm.output-price",
}  # fmt: skip
"""Settings that may have been why a run died, and that say nothing of what it computes."""


@dataclass(frozen=True)
class RunName:
    """Names a run over all its starts.

    Parameters
    ----------
    run_id : int
        Flower's id of the first start.
    text : str
        The whole name, ``RUN_ID-RANDOM``; "" for a strategy that sends none, whose runs cannot be resumed.
    """

    run_id: int
    text: str = ""

    @classmethod
    def new(cls, run_id: int) -> RunName:
        """Return a name that nobody can guess."""
        return cls(run_id, f"{run_id}-{secrets.token_hex(16)}")

    @classmethod
    def parse(cls, text: object) -> RunName:
        """Check a received name; raises ``MessageError``."""
        found = _NAME.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise MessageError("the request's run has no name that can be one")
        return cls(int(found[1]), found[0])

    @classmethod
    def find_in(cls, config: object, run_id: int) -> RunName:
        """Return the name in a message's config record, or one that stands for this start alone."""
        return cls.parse(config[_RUN]) if isinstance(config, ConfigRecord) and _RUN in config else cls(run_id)

    def add_to(self, config: ConfigRecord) -> None:
        """Put the name into a message's config."""
        if self.text:
            config[_RUN] = self.text

    def folder(self, settings: RunSettings) -> str:
        """Return what a client's files of this run with these settings are kept under, a plain file name."""
        if not self.text:
            return str(self.run_id)
        return f"{self.run_id}-{hashlib.sha256(f'{self.text} {fingerprint(settings)}'.encode()).hexdigest()[:32]}"


def fingerprint(settings: RunSettings) -> str:
    """Return a hash of all settings that decide what a run computes."""
    return hashlib.sha256(json.dumps(_deciding(settings.flat()), sort_keys=True).encode()).hexdigest()


def unfinished_run(settings: RunSettings) -> tuple[RunName, Path]:
    """Return the name and directory of the last run below ``output-dir`` that has not ended and can go on.

    Raises
    ------
    SettingError
        If there is none; says what differs in the last one that has not ended.
    """
    base, wanted, differing = settings.run_directory(0).parent, _deciding(settings.flat()), ""
    for path in sorted(base.glob("run-*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            found = _deciding(json.loads((path.parent / "settings.json").read_text(encoding="utf-8")))
            if run["ended"]:
                continue
            name = RunName.parse(run["name"])
        except (OSError, ValueError, KeyError, TypeError, MessageError):
            continue  # died before it had begun
        if found == wanted:
            return name, path.parent
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        differing = differing or f"; {path.parent.name} has not ended, but differs in {', '.join(keys)}"
    raise SettingError(
        f"resume = true, but below output-dir = {str(base)!r} there is no unfinished run with these settings"
        f"{differing}: give the settings of the run that died, or start a new one without resume"
    )


def as_first_loaded(llm: LLMSettings, folder: Path) -> LLMSettings:
    """Return an LLM's settings with the number format that the run's first start measured to be the fastest.

    The same measurement may end otherwise the next time, and the LLM then write otherwise.

    Parameters
    ----------
    llm : LLMSettings
        The run's; unchanged unless ``dtype = "auto"`` has something measured.
    folder : Path
        The run directory, where ``LOADED`` holds what was chosen; unchanged if it holds nothing yet.
    """
    if llm.backend != "local" or llm.dtype != AUTO:
        return llm
    try:
        kept = json.loads((folder / LOADED).read_text(encoding="utf-8"))["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        return llm  # died before it had loaded one
    return replace(llm, dtype=kept) if kept in DTYPE_NAMES else llm


def _deciding(flat: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    return {key: value for key, value in flat.items() if key not in _MAY_DIFFER}
