"""A row that fails loses its own rationale and no other, in its own request or in anybody else's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pdss_fl.errors import LLMFailed, LLMUnavailable
from pdss_fl.llm.jobs import GIVE_UP
from pdss_fl.llm.kv_cache import RoomyLayer
from pdss_fl.llm.memory import MAX_BATCH_TOKENS, batch_tokens, bytes_per_token
from pdss_fl.llm.protocol import never
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.llm.service import serve
from pdss_fl.messages import Finish, GenerationSettings, PerturbedPrompt, PromptBatch, Rationale
from tests.llm.helpers import STATEMENT, make_llama, make_tokenizer
from tests.llm.test_scheduler import SHORT, make_scheduler, numbered, texts

SETTINGS = GenerationSettings(max_new_tokens=16, stop=())
POISON = 101
"""The prompt that the models below fail on: \"what does robin 101 have\"."""


class Counting(Scheduler):
    """A scheduler that notes the size of every request."""

    sizes: list[int]

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        self.sizes.append(len(batch.prompts))
        return super().generate(batch, settings, is_cancelled, tenant)


def poisoned(late: bool = False, kind: type[Scheduler] = Scheduler) -> Scheduler:
    """Make a scheduler whose model raises wherever the poison is read, or once its row has four tokens."""
    model = make_llama()
    scheduler = kind(model, make_tokenizer(), name="tiny", instruction=SHORT, batch_size=32)
    marker = make_tokenizer()(f" robin {POISON} have", add_special_tokens=False)["input_ids"]

    def raise_on_marker(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        rows = keywords["input_ids"].tolist()
        if late:  # while rows of several calls write, not when one call's prompts are read
            running = scheduler._runner.jobs if len(rows[0]) == 1 else []
            rows = [list(job.prompt) for job in running if len(job.written) > 3]
        if any(row[i : i + len(marker)] == marker for row in rows for i in range(len(row))):
            raise RuntimeError("a kernel failed on private text")

    model.register_forward_pre_hook(raise_on_marker, with_kwargs=True)
    return scheduler


def break_down(scheduler: Scheduler) -> None:
    """Let a scheduler's model raise whatever it reads."""

    def fail(*_: Any) -> None:
        raise RuntimeError("a kernel failed on private text")

    scheduler._decoder._model.register_forward_pre_hook(fail)


def answers(batch: PromptBatch) -> list[str]:
    """Return what a model without a fault writes."""
    return texts(list(make_scheduler().generate(batch, SETTINGS)))


@pytest.mark.parametrize("late", [False, True])
def test_a_row_on_which_the_model_raises_loses_its_own_rationale_only(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, bad = poisoned(late), numbered(range(100, 103))
    good = [numbered(range(5 * i, 5 * i + 5)) for i in range(4)]
    with ThreadPoolExecutor(5) as pool:
        calls = [
            pool.submit(lambda t=t, b=b: list(scheduler.generate(b, SETTINGS, tenant=str(t))))
            for t, b in enumerate([bad, *good])
        ]
        found = [call.result() for call in calls]
    assert [texts(rationales) for rationales in found[1:]] == [answers(batch) for batch in good]
    first, _, third = answers(bad)
    assert texts(found[0]) == [first, "", third]
    (lost,) = (r for r in found[0] if r.ordinal == 1)
    assert (lost.finish, lost.tokens) == (Finish.LENGTH, 0)
    assert "1 prompts of a request get an empty rationale" in caplog.text
    assert "private" not in caplog.text
    assert len(list(scheduler.generate(numbered(range(3)), SETTINGS, tenant="later"))) == 3
    assert (scheduler.stats().queued, scheduler.stats().running) == (0, 0)


@pytest.mark.parametrize("late", [False, True])
def test_a_request_of_bad_prompts_only_is_answered_as_long_as_the_model_works(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, alone = poisoned(late), numbered(range(POISON, POISON + 1))
    (lost,) = scheduler.generate(alone, SETTINGS)
    assert (lost.text, lost.finish, lost.tokens) == ("", Finish.LENGTH, 0)
    assert "1 prompts of a request get an empty rationale" in caplog.text
    bad = tuple(PerturbedPrompt(i, alone.prompts[0].question, ("one",) * i) for i in range(GIVE_UP + 3))
    assert texts(list(scheduler.generate(PromptBatch(bad, STATEMENT), SETTINGS))) == [""] * len(bad)
    assert texts(list(scheduler.generate(numbered(range(3)), SETTINGS))) == answers(numbered(range(3)))
    assert (scheduler.stats().queued, scheduler.stats().running) == (0, 0)
    break_down(scheduler)
    with pytest.raises(LLMFailed, match="failed on 1 prompts and wrote none"):
        list(scheduler.generate(alone, SETTINGS))


def test_one_bad_row_among_many_of_the_only_request_costs_one_rationale() -> None:
    """As on the relay, where the prompts of all clients are one request."""
    batch = numbered(range(80, 120))
    expected = answers(batch)
    expected[POISON - 80] = ""
    assert texts(list(poisoned().generate(batch, SETTINGS))) == expected


@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_that_the_memory_is_too_small_for_is_written_in_parts(alone: bool) -> None:
    model, batch = make_llama(), numbered(range(20))
    scheduler = make_scheduler(batch_size=32, model=model)
    expected = answers(batch)

    def run_out(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        if len(keywords["input_ids"]) > 4:
            raise torch.OutOfMemoryError("tried to allocate 8 GiB")

    model.register_forward_pre_hook(run_out, with_kwargs=True)
    parts = [batch] if alone else [numbered(range(i, i + 5)) for i in range(0, 20, 5)]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda part: texts(list(scheduler.generate(part, SETTINGS))), parts))
    assert [text for part in found for text in part] == expected


@pytest.mark.parametrize("method", ["append", "reorder_cache"])
def test_memory_that_runs_out_while_rows_are_moved_costs_no_rationale(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of four requests come and go; whenever they were moved once, the next time fails in the second layer."""
    batches = [numbered(range(10 * i, 10 * i + 6)) for i in range(4)]
    limits = [GenerationSettings(8 + 4 * i, ()) for i in range(4)]
    expected = [texts(list(make_scheduler().generate(b, s))) for b, s in zip(batches, limits, strict=True)]
    move, moves = getattr(RoomyLayer, method), itertools.count(1)

    def run_out(layer: RoomyLayer, rows: Any) -> None:
        if next(moves) % 4 == 0:
            raise torch.OutOfMemoryError("tried to allocate 8 GiB")
        move(layer, rows)

    monkeypatch.setattr(RoomyLayer, method, run_out)
    scheduler = make_scheduler(batch_size=8)

    def ask(i: int) -> list[str]:
        return texts(list(scheduler.generate(batches[i], limits[i], tenant=str(i))))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == expected
    assert next(moves) > 4, "it did run out"
    assert (scheduler.stats().queued, scheduler.stats().running) == (0, 0)


def test_a_row_without_numbers_loses_its_own_rationale_only() -> None:
    model, good = make_llama(), numbered(range(9))
    expected = answers(good)
    sign = next(sign for sign in "~^|#@{}" if sign not in "".join(expected))
    poison = make_tokenizer()(sign, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
    scheduler = make_scheduler(model=model)
    bad = PromptBatch((*good.prompts, PerturbedPrompt(9, f"robin {sign}")), STATEMENT)
    assert texts(list(scheduler.generate(bad, SETTINGS))) == [*expected, ""]


def test_a_tokenizer_that_fails_on_what_was_written_loses_that_rationale_only() -> None:
    batch = numbered(range(6))
    whole = sorted(make_scheduler().generate(batch, SETTINGS), key=lambda r: r.ordinal)
    expected = [r.text for r in whole]
    tokenizer = make_tokenizer()

    class Failing(type(tokenizer)):  # type: ignore[misc]
        def decode(self, tokens: Any, **options: Any) -> str:
            text = str(super().decode(tokens, **options))
            if text.strip() == expected[2]:
                raise ValueError("cannot decode private text")
            return text

    assert expected.count(expected[2]) == 1
    tokenizer.__class__ = Failing
    scheduler = Scheduler(make_llama(), tokenizer, name="tiny", instruction=SHORT, batch_size=8)
    assert texts(list(scheduler.generate(batch, SETTINGS))) == [*expected[:2], "", *expected[3:]]


def test_a_model_that_fails_on_every_row_is_given_up_after_some() -> None:
    model, calls = make_llama(), []
    scheduler = make_scheduler(batch_size=128, model=model)

    def fail(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("a kernel failed on private text")

    hook = model.register_forward_pre_hook(fail)
    for prompts in (1, 3, 500):
        with pytest.raises(LLMFailed, match=rf"failed on {min(prompts, GIVE_UP)} prompts.*RuntimeError") as caught:
            list(scheduler.generate(numbered(range(prompts)), SETTINGS))
        assert "private" not in caught.value.public
    assert len(calls) < 1 + 5 + 2 * 128
    hook.remove()
    assert texts(list(scheduler.generate(numbered(range(3)), SETTINGS))) == answers(numbered(range(3)))


def test_over_the_network_a_bad_row_costs_one_rationale_and_one_request() -> None:
    scheduler = poisoned(kind=Counting)
    scheduler.sizes = []  # type: ignore[attr-defined]
    server = serve(scheduler, port=0)
    remote, bad = RemoteGenerator(server.address, 60.0, backoff=0.01), numbered(range(100, 103))
    first, _, third = answers(bad)
    assert texts(list(remote.generate(bad, SETTINGS))) == [first, "", third]
    assert scheduler.sizes == [3]  # type: ignore[attr-defined]
    alone = numbered(range(POISON, POISON + 1))
    assert texts(list(remote.generate(alone, SETTINGS))) == [""], "as in a batch"
    break_down(scheduler)
    with pytest.raises(LLMUnavailable, match="failed with INTERNAL"):
        list(remote.generate(alone, SETTINGS))
    assert scheduler.sizes == [3, 1, 1], "what fails as a whole is not asked for again"  # type: ignore[attr-defined]
    remote.close()
    server.stop(grace=0)


@pytest.mark.parametrize(
    ("free", "expected"),
    [(10**12, MAX_BATCH_TOKENS), (256_000, 500), (0, 0)],
)
def test_the_batchs_budget_follows_from_the_memory(free: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    assert bytes_per_token(model) == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes of float32
    assert bytes_per_token(model.to(torch.bfloat16)) == 2 * 2 * 2 * 8 * 2
    monkeypatch.setattr("pdss_fl.llm.memory.psutil.virtual_memory", lambda: type("Memory", (), {"available": free}))
    assert batch_tokens(model.to(torch.float32)) == expected


def test_what_a_token_takes_is_what_the_cache_takes() -> None:
    model = make_llama()
    output = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True)
    states = [states for layer in output.past_key_values.layers for states in (layer.keys, layer.values)]
    assert sum(s.numel() * s.element_size() for s in states) == 3 * bytes_per_token(model)


def test_a_prompt_longer_than_the_budget_is_written_by_itself() -> None:
    batch = numbered(range(3))
    assert texts(list(make_scheduler(max_batch_tokens=0).generate(batch, SETTINGS))) == answers(batch)
