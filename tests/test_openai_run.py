"""A whole run whose LLM is an OpenAI-compatible endpoint: what it writes, and what it never writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pdss_fl.client_app import create_client_app
from pdss_fl.errors import LLMUnavailable
from pdss_fl.server_app import run_comparison
from tests.harness import LoopbackGrid, context, node
from tests.llm.openai_server import KEY, Call, Reply, said, scripted
from tests.test_server_app import records, settings_of


def run(tmp_path: Path, tiny: Path, url: str, **changes: object) -> Path:
    """Run PDSS with two clients of eight questions against an endpoint; return the run's directory."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records("uneven")))
    endpoint = {"llm.backend": "openai", "llm.base-url": url, "llm.model": "teacher", "methods": "pdss"}
    words = {"privacy.question-words": 12}  # prompts of few words may become equal, and equal ones are asked once
    settings = settings_of(tmp_path, tiny, **{**endpoint, **words, **changes})
    limits = {"allowed-models": f"scratch {tiny}"}
    contexts = {i: context(i, node(tmp_path / f"s{i}", path, **limits), settings.flat()) for i in (1, 2)}
    return Path(run_comparison(LoopbackGrid(create_client_app(), contexts), settings, run_id=7))


def test_an_endpoint_answers_a_run_and_its_key_is_in_no_file_and_no_log(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def script(call: Call) -> Reply:
        return said("It is two. So the answer is two.")

    with scripted(script) as server:
        monkeypatch.setenv("PDSS_LLM_API_KEY", KEY)
        monkeypatch.setenv("PDSS_LLM_BASE_URL", server.url)
        directory = run(tmp_path, tiny, server.url)
    assert {call.key for call in server.calls} == {f"Bearer {KEY}"}
    summary = json.loads((directory / "summary.json").read_text())
    used = {key: summary["llm"][key] for key in ("model", "prompts", "tokens")}
    assert used == {"model": "teacher", "prompts": 16, "tokens": 7 * len(server.calls)}
    assert json.loads((directory / "settings.json").read_text())["llm.base-url"] == server.url
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text


def test_at_its_cap_a_run_goes_on_with_what_was_answered_and_names_the_setting(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reply = said("It is two. So the answer is two.", usage={"prompt_tokens": 600, "completion_tokens": 7})
    with scripted(lambda _: reply) as server:
        directory = run(tmp_path, tiny, server.url, **{"llm.max-run-tokens": 5_000})
    asked = len(server.calls)
    assert 0 < asked < 16
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["llm"]["tokens"] == 7 * asked
    assert summary["accuracy"]["pdss"] is not None
    kept = [json.loads(path.read_text()) for path in tmp_path.rglob("rationales/pdss.json")]
    assert sum(bool(row["raw"]) for rows in kept for row in rows.values()) >= asked, "equal prompts are asked once"
    assert f"llm.max-run-tokens = 5000 would be exceeded by one more prompt, after {600 * asked}" in caplog.text
    assert f"{asked} of " in caplog.text.partition("llm.max-run-tokens")[2]


def test_a_cap_below_one_prompt_ends_the_run_and_names_it(tmp_path: Path, tiny: Path) -> None:
    with (
        scripted(lambda _: said("It is two.")) as server,
        pytest.raises(LLMUnavailable, match=r"llm\.max-run-tokens = 100 would be exceeded"),
    ):
        run(tmp_path, tiny, server.url, **{"llm.max-run-tokens": 100})
    assert not server.calls
