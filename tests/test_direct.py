"""The direct channel: the same rationales as over the relay, and nothing else that leaves or is believed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.direct import DirectReport, Offer
from pdss_fl.errors import LLMUnavailable, MessageError, SettingError
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import RunningServer, ServiceSecurity, serve
from pdss_fl.llm.tokens import TokenIssuer, create_key, read_key
from pdss_fl.messages import GenerationSettings, PrivacyStatement
from pdss_fl.server_app import load_generator, run_comparison
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, number_questions, small_run, times_asked
from tests.llm.helpers import make_generator
from tests.llm.network import make_certificates

KEY = b"a key of the test, long enough. " * 2
GENERATION = GenerationSettings(8)
STATEMENT = PrivacyStatement("staircase", "pure-ldp", 8.0, 80.0, 0.0, 10, "basic", 0.5, "epsilon=8", "00")


def settings_of(tmp_path: Path, tiny: Path, **changes: Any) -> dict[str, Any]:
    direct = {"distill.filter": "off", "llm.backend": "grpc", "llm.channel": "direct", "llm.max-new-tokens": 8}
    return small_run(tiny, **{"output-dir": str(tmp_path / "runs"), **direct, **changes})


def grid_of(tmp_path: Path, tiny: Path, address: str, **changes: Any) -> LoopbackGrid:
    tmp_path.mkdir(exist_ok=True, parents=True)
    path = number_questions(tmp_path / "data.jsonl")
    config = settings_of(tmp_path, tiny, **{"llm.address": address, **changes.pop("config", {})})
    policy = {"allowed-models": f"scratch {tiny}", "allowed-llm-addresses": address, **changes}
    contexts = {i: context(i, node(tmp_path / f"s{i}", path, **policy), config) for i in (1, 2)}
    return LoopbackGrid(create_client_app(), contexts)


def offers(address: str, key: bytes = KEY, seconds: float = 60.0) -> Any:
    issuer = TokenIssuer(key, 1, seconds)
    return lambda node_id: Offer(address, issuer.token(node_id), GENERATION)


def run(grid: LoopbackGrid, address: str, **options: Any) -> StepByStepDistillation:
    offer = options.pop("offer", None) or offers(address)
    strategy = StepByStepDistillation(None, quorum=2, offer=offer, generation=GENERATION, **options)
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    return strategy


@pytest.fixture
def shown() -> EchoGenerator:
    return EchoGenerator()


@pytest.fixture
def server(shown: EchoGenerator) -> Iterator[RunningServer]:
    running = serve(shown, port=0, security=ServiceSecurity(token_key=KEY))
    yield running
    running.stop(0)


def test_one_trip_instead_of_two_and_the_strategy_never_sees_a_prompt(
    tmp_path: Path, tiny: Path, server: RunningServer, shown: EchoGenerator
) -> None:
    grid = grid_of(tmp_path, tiny, server.address)
    strategy = run(grid, server.address)
    assert [m.metadata.message_type for m in grid.requests] == ["train.distill"] * 2 + ["evaluate"] * 2
    assert not any(reply.has_error() for reply in grid.replies)
    assert len(shown.seen) == 2
    assert all(0 < len(batch.prompts) <= 8 for batch in shown.seen), "equal prompts are asked once"
    trained = grid.replies[0].content
    assert set(trained) == {"metrics", "privacy", "usage"}
    assert strategy.usage.prompts == 16
    assert strategy.usage.tokens > 0
    assert {s.epsilon_per_token for s in strategy.statements.values()} == {7.0}
    for i in (1, 2):
        assert len((tmp_path / f"s{i}" / "ledger.jsonl").read_text().splitlines()) == 8, "charged"


def test_both_channels_bring_the_same_rationales(tmp_path: Path, tiny: Path) -> None:
    """A real model in float32, and clients that hold what they released already, so that both send the same."""
    server = serve(make_generator(batch_size=4), port=0)
    config = {"methods": "pdss"}
    grids = [grid_of(tmp_path, tiny, server.address, config={**config, "llm.channel": c}) for c in ("relay", "direct")]
    found = []
    for run_id, grid in enumerate(grids):
        for own in grid.contexts.values():
            own.run_id = run_id  # another run, so nothing but the ledger is shared
    relay = StepByStepDistillation(RemoteGenerator(server.address), quorum=2, generation=GENERATION)
    relay.start(grids[0], ArrayRecord(), num_rounds=1)
    run(grids[1], server.address, offer=lambda node_id: Offer(server.address, "", GENERATION))
    for run_id in (0, 1):
        rows = {}
        for i in (1, 2):
            path = tmp_path / f"s{i}" / "runs" / str(run_id) / "rationales" / "pdss.json"
            rows |= {f"{i}/{key}": value["raw"] for key, value in json.loads(path.read_text()).items()}
        found.append(rows)
    assert found[0] == found[1]
    assert len(found[0]) == 16
    assert len(set(found[0].values())) > 4, "rationales of a real model, which differ"
    server.stop(0)


def test_a_retried_message_charges_asks_and_trains_nothing(
    tmp_path: Path, tiny: Path, server: RunningServer, shown: EchoGenerator
) -> None:
    grid = grid_of(tmp_path, tiny, server.address)
    run(grid, server.address)
    ledger = (tmp_path / "s1" / "ledger.jsonl").read_text()
    asked = len(shown.seen)
    reply = grid.app(grid.requests[0], grid.contexts[1])
    assert reply.content["metrics"] == grid.replies[0].content["metrics"]
    assert DirectReport.find_in(reply.content).statement == DirectReport.find_in(grid.replies[0].content).statement
    assert (tmp_path / "s1" / "ledger.jsonl").read_text() == ledger
    assert len(shown.seen) == asked


def distill(grid: LoopbackGrid, offer: Offer) -> Message:
    content = RecordDict({"config": ConfigRecord({"method": "pdss", "server-round": 1})})
    offer.add_to(content)
    return grid.app(Message(content, 1, "train.distill"), grid.contexts[1])


def test_a_node_sends_nothing_to_an_address_that_it_does_not_name(
    tmp_path: Path, tiny: Path, server: RunningServer, shown: EchoGenerator
) -> None:
    allowed = grid_of(tmp_path / "a", tiny, "127.0.0.1:1", config={"llm.channel": "relay"})
    reply = distill(allowed, offers(server.address)(1))
    assert reply.error.code == 102
    assert "allowed-llm-addresses" in str(reply.error.reason)
    none = grid_of(tmp_path / "b", tiny, server.address, **{"allowed-llm-addresses": ""})
    assert distill(none, offers(server.address)(1)).error.code == 102
    assert not shown.seen
    assert not (tmp_path / "a" / "s1" / "ledger.jsonl").read_text(), "refused before anything was charged"


def test_nothing_is_charged_for_a_server_that_does_not_let_the_client_in(
    tmp_path: Path, tiny: Path, server: RunningServer, shown: EchoGenerator
) -> None:
    grid = grid_of(tmp_path, tiny, server.address)
    expired = Offer(server.address, TokenIssuer(KEY, 1, 60, lambda: 1e9).token(1), GENERATION)
    for offer in (expired, Offer(server.address, "", GENERATION), offers(server.address, key=KEY[::-1])(1)):
        reply = distill(grid, offer)
        assert reply.error.code == LLMUnavailable.code
        assert "does not accept the token" in str(reply.error.reason)
        assert offer.token == "" or offer.token not in str(reply.error.reason)
    assert not (tmp_path / "s1" / "ledger.jsonl").read_text()
    assert not shown.seen


def test_a_node_trusts_its_own_ca_and_none_of_the_run(tmp_path: Path, tiny: Path) -> None:
    own, other = make_certificates(tmp_path / "own"), make_certificates(tmp_path / "other")
    shown = EchoGenerator()
    mutual = ServiceSecurity(own.server_tls(mutual=True), token_key=KEY)
    server = serve(shown, port=0, security=mutual)
    with_run = {"config": {"llm.root-certificates": str(own.ca)}}
    wrong = grid_of(tmp_path / "w", tiny, server.address, **{"llm-root-certificates": str(other.ca), **with_run})
    reply = distill(wrong, offers(server.address)(1))
    assert reply.error.code == LLMUnavailable.code
    plain = grid_of(tmp_path / "p", tiny, server.address, **with_run)
    assert distill(plain, offers(server.address)(1)).error.code == LLMUnavailable.code
    assert not shown.seen
    policy = {"llm-root-certificates": own.ca, "llm-certificate": own.client, "llm-key": own.client_key}
    right = grid_of(tmp_path / "r", tiny, server.address, **{key: str(path) for key, path in policy.items()})
    assert not distill(right, offers(server.address)(1)).has_error()
    assert len(shown.seen) == 1
    server.stop(0)


def test_a_node_does_not_carry_a_token_to_another_machine_in_plain_text(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, "192.0.2.7:50061", config={"llm.insecure": True})
    reply = distill(grid, offers("192.0.2.7:50061")(1))
    assert reply.error.code == SettingError.code
    assert "plain text" in str(reply.error.reason)


def test_a_whole_comparison_over_tls_with_the_key_of_the_environment(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    create_key(tmp_path / "key")
    security = ServiceSecurity(certificates.server_tls(), read_key(tmp_path / "key", "--token-key"))
    shown = EchoGenerator()
    server = serve(shown, host="0.0.0.0", port=0, security=security)
    address = server.address.replace("0.0.0.0", "127.0.0.1")
    config = {"methods": "standalone pdss", "llm.root-certificates": str(certificates.ca)}
    grid = grid_of(tmp_path, tiny, address, config=config, **{"llm-root-certificates": str(certificates.ca)})
    settings = RunSettings.from_run_config(settings_of(tmp_path, tiny, **{"llm.address": address, **config}))
    with pytest.raises(LLMUnavailable, match="PDSS_TOKEN_KEY"):
        load_generator(settings.llm)
    monkeypatch.setenv("PDSS_TOKEN_KEY", str(tmp_path / "key"))
    path = Path(run_comparison(grid, settings, run_id=9))
    summary = json.loads((path / "summary.json").read_text())
    assert summary["llm"]["model"] == "echo"
    assert summary["llm"]["prompts"] == 16 >= times_asked(shown.seen) > 0
    assert summary["privacy"]["epsilon_per_token"] == 7.0
    assert summary["accuracy"]["pdss"]["n"] == 48
    written = "".join(file.read_text() for file in path.glob("*.json*"))
    assert read_key(tmp_path / "key", "k").decode() not in written
    server.stop(0)


@pytest.mark.parametrize(
    "record",
    [
        {"address": 3, "token": "", "max-new-tokens": 4, "stop": ["x"]},
        {"address": "a:1", "token": "two\nlines", "max-new-tokens": 4, "stop": ["x"]},
        {"address": "a:1", "token": "é", "max-new-tokens": 4, "stop": ["x"]},
        {"address": "a:1", "token": "", "max-new-tokens": 0, "stop": ["x"]},
        {"address": "a:1", "token": "", "max-new-tokens": True, "stop": ["x"]},
        {"address": "a:1", "token": "", "max-new-tokens": 4, "stop": "x"},
        {},
    ],
)
def test_what_is_no_offer_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        Offer.find_in(RecordDict({"llm": ConfigRecord(record)}))


def test_offers_and_reports_come_back_as_they_went() -> None:
    content = RecordDict()
    assert Offer.find_in(content) is None
    offer = Offer("llm.example.org:50061", "a.b.c", GenerationSettings(5, ("\n", "x")))
    offer.add_to(content)
    assert Offer.find_in(content) == offer
    assert "a.b.c" not in repr(offer)
    with pytest.raises(MessageError):
        DirectReport.find_in(content)
    report = DirectReport(STATEMENT, 3, 40)
    report.add_to(content)
    assert DirectReport.find_in(content) == report
