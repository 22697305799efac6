"""The comparison as the ServerApp runs it: over a served LLM, with subsets of methods and all forms of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import LLMUnavailable, QuorumLost, SettingError
from pdss_fl.llm.service import serve
from pdss_fl.server_app import load_generator, run_comparison
from tests.harness import EchoGenerator, LoopbackGrid, context, node, small_run, times_asked


def records(kind: str) -> list[dict[str, Any]]:
    choices = {"open": [], "labels": ["yes", "no"], "many": ["one", "two", "three", "four", "five", "six"]}.get(kind)
    uneven = [["one", "two"], ["one", "two", "three"]]
    rows = []
    for i in range(100):
        options = uneven[i % 2] if choices is None else choices
        rows.append({"question": f"what is the number {i}?", "choices": options, "answer": (options or ["two"])[0]})
    return rows


def settings_of(tmp_path: Path, tiny: Path, **changes: Any) -> RunSettings:
    own = {"output-dir": str(tmp_path / "runs"), "llm.backend": "grpc", **changes}
    return RunSettings.from_run_config(small_run(tiny, **own))


def compare(
    tmp_path: Path, tiny: Path, kind: str = "uneven", policy: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """Run a comparison of two clients against a served LLM; return its summary and what the LLM was shown."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records(kind)))
    shown = EchoGenerator()
    server = serve(shown, host="127.0.0.1", port=0)
    try:
        settings = settings_of(tmp_path, tiny, **{"llm.address": server.address, **changes})
        limits = {"allowed-models": f"scratch {tiny}", **(policy or {})}
        contexts = {i: context(i, node(tmp_path / f"s{i}", path, **limits), settings.flat()) for i in (1, 2)}
        run = Path(run_comparison(LoopbackGrid(create_client_app(), contexts), settings, run_id=7))
    finally:
        server.stop(0)
    return json.loads((run / "summary.json").read_text()), shown


def test_a_served_llm_answers_a_run_and_dss_is_left_out_where_policies_forbid_it(tmp_path: Path, tiny: Path) -> None:
    summary, shown = compare(tmp_path, tiny)
    assert summary["llm"]["model"] == "echo"
    assert summary["accuracy"]["dss"] is None
    assert [summary["accuracy"][m]["n"] for m in ("untrained", "standalone", "pdss")] == [48, 48, 48]
    assert summary["llm"]["prompts"] == 16 >= times_asked(shown.seen) > 0


def test_only_what_is_asked_for_is_run(tmp_path: Path, tiny: Path) -> None:
    summary, shown = compare(tmp_path, tiny, methods="standalone")
    assert set(summary["accuracy"]) == {"standalone"}
    assert summary["privacy"] is None
    assert not shown.seen


@pytest.mark.parametrize("kind", ["open", "many", "uneven"])
def test_open_questions_and_any_number_of_choices_make_the_whole_trip(tmp_path: Path, tiny: Path, kind: str) -> None:
    summary, shown = compare(
        tmp_path,
        tiny,
        kind,
        methods="pdss",
        **{"privacy.choices": 0 if kind == "open" else 4, "privacy.question-words": 12},
    )
    assert summary["accuracy"]["pdss"]["n"] == 48
    assert {len(p.choices) for batch in shown.seen for p in batch.prompts} == {0 if kind == "open" else 4}
    assert summary["privacy"]["tokens_per_document"] == 12 + (0 if kind == "open" else 4)


def test_labels_that_the_nodes_call_public_are_sent_as_they_are(tmp_path: Path, tiny: Path) -> None:
    policy = {"public-choices": "yes,no"}
    summary, shown = compare(
        tmp_path, tiny, "labels", policy, methods="pdss", **{"data.public-choices": True, "privacy.question-words": 12}
    )
    assert {p.choices for batch in shown.seen for p in batch.prompts} <= {("no", "yes"), ("yes", "no")}
    assert summary["privacy"]["tokens_per_document"] == 12


def test_a_server_that_is_not_there_and_clients_that_do_not_come_are_named(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(LLMUnavailable, match=r"llm\.address"):
        load_generator(settings_of(tmp_path, tiny, **{"llm.address": "127.0.0.1:1"}).llm)
    settings = settings_of(tmp_path, tiny, **{"perturb-timeout": 0.1, "methods": "standalone"})
    with pytest.raises(QuorumLost, match="min-available-nodes = 2"):
        run_comparison(LoopbackGrid(create_client_app(), {}), settings, run_id=1)


def test_an_output_directory_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "runs").write_text("")
    grid = LoopbackGrid(create_client_app(), {})
    with pytest.raises(SettingError, match="output-dir"):
        run_comparison(grid, settings_of(tmp_path, tiny), run_id=1)
    assert not grid.requests


def test_the_quickstart_builds_on_the_plug_ins(tmp_path: Path) -> None:
    """The example's two files import and name the plug-ins that they say they use."""
    import importlib.util

    folder = Path(__file__).parent.parent / "examples" / "quickstart" / "quickstart"
    for name in ("client_app", "server_app"):
        spec = importlib.util.spec_from_file_location(f"quickstart_{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert type(module.app).__name__ == ("ClientApp" if name == "client_app" else "ServerApp")


def test_a_resumed_run_loads_the_llm_in_the_number_format_that_was_fastest_at_first(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client is there, so that the run dies once its LLM is loaded; another measurement would end otherwise."""
    loaded: list[str] = []
    measured = iter((torch.bfloat16, torch.float32))

    def loading(*arguments: Any) -> Any:
        generator = load_generator(*arguments)
        loaded.append(generator.info.dtype)
        return generator

    monkeypatch.setattr("pdss_fl.server_app.load_generator", loading)
    monkeypatch.setattr("pdss_fl.llm.loading.fastest_dtype", lambda *_: next(measured))
    own = {"llm.backend": "local", "llm.model": str(tiny), "llm.adapter": "", "perturb-timeout": 0.1}
    for run_id, resume in ((7, False), (8, True), (9, True)):
        settings = settings_of(tmp_path, tiny, **{**own, "resume": resume})
        with pytest.raises(QuorumLost):
            run_comparison(LoopbackGrid(create_client_app(), {}), settings, run_id)
    assert loaded == ["bfloat16"] * 3
    with pytest.raises(QuorumLost):
        run_comparison(LoopbackGrid(create_client_app(), {}), settings_of(tmp_path, tiny, **own), 7)
    assert loaded[3:] == ["float32"], "a new run measures anew, also in the folder of an old one"
