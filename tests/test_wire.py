"""Nothing private leaves a client: canaries are planted everywhere and searched in everything that leaves."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from scipy.stats import binom

from pdss_fl.client_app import create_client_app
from pdss_fl.direct import Offer
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import ServiceSecurity, serve
from pdss_fl.llm.tokens import TokenIssuer
from pdss_fl.messages import GenerationSettings, PromptBatch
from pdss_fl.privacy import available_mechanisms
from pdss_fl.privacy.mechanism import mechanism_class
from pdss_fl.privacy.rewriting import RewritingMechanism
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, payload_bytes, small_run, texts_seen
from tests.llm.network import Proxy

CANARIES = ("zanzibarqx", "quuxington", "4471993", "zürichsee", "日本語秘密", "kanarienvogel", "hôpital")
LENGTHS = ("fixed", "bucket", "exact")


def private_file(directory: Path) -> Path:
    """Twelve examples with canaries in every field, below a folder that is a canary itself."""
    folder = directory / "kanarienvogel"
    folder.mkdir(parents=True)
    path = folder / "private.jsonl"
    records = [
        {
            "id": f"kanarienvogel-{i}",
            "question": f"Does Zanzibarqx owe 4471993 to Mr. Quuxington{i} of Zürichsee or 日本語秘密?",
            "choices": [f"Quuxington{i}", "the Hôpital 4471993", "no"],
            "answer": f"Quuxington{i}",
            "context": "Zanzibarqx is ill.",
            "person": f"Quuxington {i}",
            "rationale": "Because of Zürichsee.",
        }
        for i in range(12)
    ]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    return path


def run_config(tiny: Path, **changes: Any) -> dict[str, Any]:
    own = {
        "privacy.vocabulary-size": 300, "privacy.words": "all", "privacy.question-words": 12, "privacy.choices": 4,
        "data.train-examples": 6, "data.test-examples": 4, "distill.batch-size": 4,
    }  # fmt: skip
    return small_run(tiny, **{**own, **changes})


def grid_of(
    tmp_path: Path, tiny: Path, clients: int = 2, extra: dict[str, Any] | None = None, **changes: Any
) -> LoopbackGrid:
    contexts = {}
    for i in range(1, clients + 1):
        allowed: dict[str, Any] = {"allowed-models": f"scratch {tiny}", "allowed-lengths": "fixed bucket exact"}
        named = changes.get("privacy.mechanism")
        if named:  # some promise nothing that adds up, so that a node has to name them and to set no bound
            allowed |= {"allowed-mechanisms": named, "max-epsilon-per-example": math.inf}
        policy = node(tmp_path / f"state{i}", private_file(tmp_path / str(i)), **allowed, **(extra or {}))
        contexts[i] = context(i, policy, run_config(tiny, **changes))
    return LoopbackGrid(create_client_app(), contexts)


def found_in(data: bytes | str) -> list[str]:
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return [canary for canary in CANARIES if canary in text.lower()]


def closing_mechanisms() -> list[tuple[str, str, str]]:
    """All that release words of the vocabulary, whatever they guarantee, with a ``privacy.length`` and a decoder.

    Those that rewrite do it with the built-in encoder, at one length as it takes its time, and its decoder decodes.
    """
    names = [name for name in available_mechanisms() if name != "identity"]
    rewriting = [name for name in names if issubclass(mechanism_class(name), RewritingMechanism)]
    plain = [(name, length, "align") for name in names if name not in rewriting for length in LENGTHS]
    return plain + [(name, LENGTHS[i % len(LENGTHS)], "trained") for i, name in enumerate(rewriting)]


def test_the_search_finds_a_canary_that_is_there() -> None:
    message = Message(RecordDict({"c": ConfigRecord({"payload": b"x 4471993"})}), 1, "query.perturb")
    assert found_in(payload_bytes(message)) == ["4471993"]


@pytest.mark.parametrize(("mechanism", "length", "decoder"), closing_mechanisms())
def test_no_canary_leaves_a_client_in_a_whole_round(
    tmp_path: Path,
    tiny: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: str,
    length: str,
    decoder: str,
) -> None:
    changes = {"privacy.mechanism": mechanism, "privacy.length": length, "privacy.epsilon": 30.0}
    if decoder == "trained":
        changes |= {"distill.decoder": decoder, "privacy.question-words": 4, "privacy.choices": 1}
    grid = grid_of(tmp_path, tiny, **changes)
    generator = EchoGenerator()
    strategy = StepByStepDistillation(generator, quorum=2)
    monkeypatch.setattr(logging.getLogger("pdss_fl"), "propagate", True)
    with caplog.at_level(logging.DEBUG):
        strategy.start(grid, ArrayRecord(), num_rounds=1)
        strategy.evaluate_only(grid, timeout=60)
    assert len(grid.replies) == 8
    assert not any(reply.has_error() for reply in grid.replies)
    for message in (*grid.replies, *grid.requests):
        assert found_in(payload_bytes(message)) == []
    assert found_in(texts_seen(generator.seen)) == []
    assert found_in(caplog.text) == []


def test_the_only_choices_and_questions_that_leave_are_vocabulary_words(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, **{"privacy.epsilon": 30.0})
    generator = EchoGenerator()
    StepByStepDistillation(generator, quorum=2).start(grid, ArrayRecord(), num_rounds=1)
    words = set(re.split(r"[\s]+", texts_seen(generator.seen)))
    from pdss_fl.vocabularies import load_vocabulary

    assert words <= set(load_vocabulary("english", 300, str(tiny)).tokens) | {"_"}


def test_grpc_frames_carry_no_canary(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny)
    shown = EchoGenerator()
    server = serve(shown, host="127.0.0.1", port=0)
    try:
        strategy = StepByStepDistillation(RemoteGenerator(server.address), quorum=2)
        strategy.start(grid, ArrayRecord(), num_rounds=1)
    finally:
        server.stop(0)
    assert sum(len(batch.prompts) for batch in shown.seen) == 12
    assert all(found_in(batch.serialize()) == [] for batch in shown.seen)


def test_the_direct_channel_carries_no_canary_either(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte that clients send to the LLM server is read off the connection, frames and all."""
    shown = EchoGenerator()
    server = serve(shown, port=0, security=ServiceSecurity(token_key=b"k" * 64))
    proxy = Proxy(server.address)
    issuer = TokenIssuer(b"k" * 64, 1, 600)
    settings = {"llm.backend": "grpc", "llm.channel": "direct", "llm.address": proxy.address}
    grid = grid_of(tmp_path, tiny, extra={"allowed-llm-addresses": proxy.address}, **settings)
    strategy = StepByStepDistillation(
        None, quorum=2, offer=lambda i: Offer(proxy.address, issuer.token(i), GenerationSettings())
    )
    monkeypatch.setattr(logging.getLogger("pdss_fl"), "propagate", True)
    try:
        with caplog.at_level(logging.DEBUG):
            strategy.start(grid, ArrayRecord(), num_rounds=1)
    finally:
        proxy.close()
        server.stop(0)
    assert sum(len(batch.prompts) for batch in shown.seen) == 12
    question = shown.seen[0].prompts[0].question
    assert question.encode() in proxy.sent, "what was sent can be read here"
    assert found_in(bytes(proxy.sent)) == []
    for message in (*grid.replies, *grid.requests):
        assert not (isinstance(message, Message) and message.has_error())
        assert found_in(payload_bytes(message)) == []
        assert question.encode() not in payload_bytes(message), "prompts do not pass the strategy"
    assert found_in(caplog.text) == []
    assert question not in caplog.text


def test_labels_are_not_sent_and_choices_come_in_a_fresh_order(tmp_path: Path, tiny: Path) -> None:
    """With the identity mechanism, where the text is readable, the answer's place is still random."""
    places = set()
    for i in range(4):
        config = run_config(tiny, **{"privacy.mechanism": "identity", "privacy.vocabulary-size": 300})
        (tmp_path / f"d{i}").mkdir()
        path = tmp_path / f"d{i}" / "d.jsonl"
        records = [
            {"question": f"what is it {w}?", "choices": ["yes", "man", "time"], "answer": "yes"}
            for w in ("one", "two", "who", "she", "they", "when", "our", "all")
        ]
        path.write_text("\n".join(json.dumps(r) for r in records))
        limits = {"allowed-mechanisms": "identity", "max-epsilon-per-example": math.inf}
        policy = node(tmp_path / f"s{i}", path, **limits, **{"allowed-models": f"scratch {tiny}"})
        app = create_client_app()
        request = Message(
            RecordDict({"config": ConfigRecord({"method": "dss", "server-round": 1})}), 1, "query.perturb"
        )
        reply = app(request, context(1, policy, config))
        batch = PromptBatch.parse(reply.content["prompts"]["payload"])  # type: ignore[index,arg-type]
        places |= {prompt.choices.index("yes") for prompt in batch.prompts}
    assert len(places) >= 3


@pytest.mark.parametrize("broken", ["data", "code"])
def test_errors_keep_private_text_on_the_client(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    if broken == "data":
        path = next(tmp_path.glob("*/kanarienvogel/private.jsonl"))
        path.write_text('{"question": "Zanzibarqx"', encoding="utf-8")
    else:
        # A failure in the middle of the client's own code, carrying the text that it worked on.
        def fail(self: object, text: str) -> list[str]:
            raise ValueError(f"cannot split {text!r}")

        monkeypatch.setattr("pdss_fl.privacy.Vocabulary.split", fail)
    request = Message(RecordDict({"config": ConfigRecord({"method": "pdss", "server-round": 1})}), 1, "query.perturb")
    reply = grid.app(request, grid.contexts[1])
    assert reply.has_error()
    assert found_in(payload_bytes(reply)) == []
    assert str(tmp_path) not in str(reply.error.reason)
    assert reply.error.code >= 100


def test_at_a_small_epsilon_no_more_of_the_text_survives_than_chance(tmp_path: Path, tiny: Path) -> None:
    """Kept runs of three words stay within the exact binomial bound at epsilon 0.1."""
    from pdss_fl.config import RunSettings
    from pdss_fl.data.example import Example
    from pdss_fl.vocabularies import load_perturber

    settings = RunSettings.from_run_config(
        run_config(tiny, **{"privacy.epsilon": 0.1, "privacy.vocabulary-size": 30, "privacy.neighbours": 2})
    )
    perturber = load_perturber(settings, "staircase")
    words = perturber.vocabulary.tokens[:30]
    examples = [Example(" ".join(words[(i + j) % 30] for j in range(12)), (), "x") for i in range(2000)]
    released = [payload["question"] for payload in perturber.perturb(examples)]
    runs = [
        (e.question.split()[j : j + 3], out[j : j + 3])
        for e, out in zip(examples, released, strict=True)
        for j in (0, 3, 6, 9)
    ]
    kept = sum(raw == out for raw, out in runs)
    p = perturber.mechanism.kept_tokens**3
    assert binom.ppf(1e-7, len(runs), p) <= kept <= binom.isf(1e-7, len(runs), p)
    assert binom.isf(1e-7, len(runs), p) < 12


def test_no_run_makes_a_client_send_its_choices_unperturbed(tmp_path: Path, tiny: Path) -> None:
    """One example a slice always shares its set of choices with itself; only the node names public labels."""
    changes = {"data.public-choices": True, "data.train-examples": 1}
    grid = grid_of(tmp_path, tiny, clients=1, **changes)
    request = Message(RecordDict({"config": ConfigRecord({"method": "pdss", "server-round": 1})}), 1, "query.perturb")
    reply = grid.app(request, grid.contexts[1])
    assert reply.error.code == 102
    policy = {**grid.contexts[1].node_config, "public-choices": "yes,no"}
    reply = grid.app(request, context(1, policy, run_config(tiny, **changes)))
    assert reply.error.code == 103
    assert found_in(payload_bytes(reply)) == []
