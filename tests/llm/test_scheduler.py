"""The scheduler under many callers: every prompt answered once and rightly, in fair shares, whatever fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from pdss_fl.errors import Busy, LLMFailed, LLMUnavailable, MessageError
from pdss_fl.llm.instruction import EVERYDAY, Instruction
from pdss_fl.llm.protocol import never
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch, Rationale
from tests.llm.helpers import STATEMENT, Gate, make_batch, make_llama, make_tokenizer

SETTINGS = GenerationSettings(max_new_tokens=16, stop=())
SHORT = Instruction("Say why.", EVERYDAY.demonstrations[:1])


def make_scheduler(
    batch_size: int = 8, max_queued: int = 1000, model: Any = None, max_batch_tokens: int | None = None
) -> Scheduler:
    return Scheduler(
        model or make_llama(),
        make_tokenizer(),
        name="tiny",
        instruction=SHORT,
        batch_size=batch_size,
        max_queued=max_queued,
        max_batch_tokens=max_batch_tokens,
    )


def texts(rationales: list[Rationale]) -> list[str]:
    """Return the texts in order, after a check that each prompt was answered exactly once."""
    rationales = sorted(rationales, key=lambda r: r.ordinal)
    assert [r.ordinal for r in rationales] == list(range(len(rationales)))
    return [r.text for r in rationales]


def numbered(numbers: range) -> PromptBatch:
    prompts = (PerturbedPrompt(i, f"what does robin {n} have") for i, n in enumerate(numbers))
    return PromptBatch(tuple(prompts), STATEMENT)


def count_steps(model: Any, then: Callable[[int], None] = lambda step: None) -> list[int]:
    """Return a list that grows by the number of rows at every step of the model."""
    rows: list[int] = []

    def note(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        rows.append(len(keywords["input_ids"]))
        then(len(rows))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def wait_until(said: Callable[[], bool]) -> None:
    while not said():
        time.sleep(0.001)


def test_many_callers_get_what_they_would_get_alone() -> None:
    batches = [make_batch(3 + i % 7, seed=i) for i in range(12)]
    alone = make_scheduler(batch_size=1)
    expected = [texts(list(alone.generate(batch, SETTINGS))) for batch in batches]
    shared = make_scheduler(batch_size=8)

    def ask(i: int) -> list[str]:
        return texts(list(shared.generate(batches[i], SETTINGS, tenant=str(i % 5))))

    with ThreadPoolExecutor(len(batches)) as pool:
        assert list(pool.map(ask, range(len(batches)))) == expected
    stats = shared.stats()
    assert stats.prompts_total == sum(len(b.prompts) for b in batches)
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.mean_batch > 2
    assert set(stats.per_tenant) == set("01234")
    assert sum(stats.per_tenant.values()) == stats.tokens_total
    assert sum(stats.first_tokens) == stats.prompts_total - stats.cache_hits_total


def test_prompts_join_a_running_batch() -> None:
    model, reached, arrived = make_llama(), threading.Event(), threading.Event()
    scheduler = make_scheduler(model=model)
    rows = count_steps(model, lambda step: reached.set() or arrived.wait() if step == 5 else None)
    first = scheduler.generate(numbered(range(2)), SETTINGS)
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(lambda: texts(list(first)))
        reached.wait()
        late = pool.submit(lambda: texts(list(scheduler.generate(numbered(range(2, 5)), SETTINGS))))
        wait_until(lambda: scheduler.stats().queued == 3)
        arrived.set()
        assert len(early.result()) == 2
        assert len(late.result()) == 3
    assert rows[:9] == [2, 2, 2, 2, 2, 2, 3, 5, 5]  # two rows write, three are read, five write


def test_a_cancelled_call_frees_its_places_at_the_next_token() -> None:
    model, cancelled = make_llama(), threading.Event()
    scheduler = make_scheduler(model=model)
    steps = count_steps(model, lambda step: cancelled.set() if step == 6 else None)
    assert not list(scheduler.generate(numbered(range(30)), SETTINGS, cancelled.is_set))
    scheduler.close()
    assert len(steps) == 6
    assert (scheduler.stats().queued, scheduler.stats().running) == (0, 0)


def test_cancellation_of_one_call_does_not_touch_the_others() -> None:
    model, cancelled = make_llama(), threading.Event()
    expected = texts(list(make_scheduler().generate(numbered(range(4)), SETTINGS)))
    scheduler = make_scheduler(model=model)
    rows = count_steps(model, lambda step: cancelled.set() if step == 8 else None)
    with ThreadPoolExecutor(2) as pool:
        kept = pool.submit(lambda: texts(list(scheduler.generate(numbered(range(4)), SETTINGS, tenant="a"))))
        gone = pool.submit(lambda: list(scheduler.generate(numbered(range(4)), SETTINGS, cancelled.is_set, "b")))
        assert (kept.result(), gone.result()) == (expected, [])
    assert max(rows[9:]) == 4


def test_an_iterator_that_is_closed_frees_its_places() -> None:
    model = make_llama()
    scheduler = make_scheduler(model=model)
    steps = count_steps(model)
    answers = scheduler.generate(numbered(range(500)), SETTINGS)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    scheduler.close()
    assert len(steps) < 60  # of more than 1,000 that all prompts take
    assert scheduler.stats().running == 0


def test_a_callers_own_failure_ends_its_call_only() -> None:
    scheduler = make_scheduler()

    def fail() -> bool:
        raise RuntimeError("private")

    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(lambda: list(scheduler.generate(numbered(range(20)), SETTINGS)))
        bad = pool.submit(lambda: list(scheduler.generate(numbered(range(20)), SETTINGS, fail, "b")))
        assert len(good.result()) == 20
        assert bad.exception() or bad.result() == []


def test_a_defect_of_the_loop_ends_calls_and_the_next_one_is_answered(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    quoted = "robin and other private text"

    class Defective(Scheduler):
        broken = True

        def _admit(self) -> Any:
            if self.broken and self._runner.jobs:
                raise RuntimeError(quoted)
            return super()._admit()

    scheduler = Defective(make_llama(), make_tokenizer(), name="tiny", instruction=SHORT, batch_size=2)
    with pytest.raises(LLMFailed, match=r"the scheduler failed \(RuntimeError\)") as caught:
        list(scheduler.generate(numbered(range(5)), SETTINGS))
    assert "robin" not in caught.value.public
    scheduler.broken = False
    assert len(texts(list(scheduler.generate(numbered(range(5)), SETTINGS)))) == 5
    assert (scheduler.stats().queued, scheduler.stats().running) == (0, 0)
    scheduler.close()
    assert "RuntimeError" in caplog.text
    assert "robin" not in caplog.text + "".join(capfd.readouterr()), "nothing that a client sent is logged"


def test_a_prompt_that_the_tokenizer_fails_on_is_named_by_ordinal() -> None:
    prompts = (PerturbedPrompt(0, "robin"), PerturbedPrompt(1, "kettle \ud800"))
    scheduler = make_scheduler()
    with pytest.raises(MessageError, match=r"tokenizer fails on prompts \(ordinals 1\)") as caught:
        scheduler.generate(PromptBatch(prompts, STATEMENT), SETTINGS)
    assert "kettle" not in caught.value.local
    assert len(list(scheduler.generate(numbered(range(3)), SETTINGS))) == 3


def test_equal_prompts_of_a_tenant_are_written_once() -> None:
    scheduler = make_scheduler()
    (prompt,) = numbered(range(1)).prompts
    same = PromptBatch(tuple(replace(prompt, ordinal=i) for i in range(6)), STATEMENT)
    (text,) = set(texts(list(scheduler.generate(same, SETTINGS, tenant="a"))))
    written = scheduler.stats().tokens_total
    assert scheduler.stats().cache_hits_total == 5
    assert set(texts(list(scheduler.generate(same, SETTINGS, tenant="a")))) == {text}
    assert (scheduler.stats().cache_hits_total, scheduler.stats().tokens_total) == (11, written)
    assert set(texts(list(scheduler.generate(same, GenerationSettings(5, ()), tenant="a")))) != {text}


def test_a_rationale_is_never_found_again_for_another_tenant() -> None:
    scheduler = make_scheduler()
    batch = numbered(range(3))
    first = texts(list(scheduler.generate(batch, SETTINGS, tenant="a")))
    before = scheduler.stats()
    assert texts(list(scheduler.generate(batch, SETTINGS, tenant="b"))) == first
    after = scheduler.stats()
    assert after.cache_hits_total == before.cache_hits_total == 0
    assert after.tokens_total == 2 * before.tokens_total
    assert after.per_tenant["b"] == after.per_tenant["a"]


def test_few_prompts_do_not_wait_for_many_of_another_tenant() -> None:
    model, submitted = make_llama(), threading.Event()
    scheduler = make_scheduler(batch_size=4, model=model)
    count_steps(model, lambda step: submitted.wait() if step == 3 else None)
    many = scheduler.generate(numbered(range(200)), SETTINGS, tenant="many")
    with ThreadPoolExecutor(2) as pool:
        pool.submit(lambda: list(many))
        wait_until(lambda: scheduler.stats().running == 4)
        few = pool.submit(lambda: list(scheduler.generate(numbered(range(8)), SETTINGS, tenant="few")))
        wait_until(lambda: scheduler.stats().queued == 196 + 8)
        submitted.set()
        assert len(few.result()) == 8
        assert scheduler.stats().per_tenant["many"] <= 5 * scheduler.stats().per_tenant["few"]


def written_for_a_until_b_is_done(scheduler: Scheduler, model: Any) -> int:
    """Let tenants a and b ask for four prompts each at the same time; return a's new tokens when b has its four."""
    held, before = Gate(), scheduler.stats().per_tenant["a"]
    held.close_at(model, step=2)
    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: list(scheduler.generate(numbered(range(50, 51)), SETTINGS, tenant="c")))
        assert held.reached.wait(30)
        batch = numbered(range(60, 64))
        calls = [pool.submit(lambda t=t: list(scheduler.generate(batch, SETTINGS, tenant=t))) for t in "ba"]
        wait_until(lambda: scheduler.stats().queued == 8)
        held.open.set()
        assert len(calls[0].result()) == 4
        return scheduler.stats().per_tenant["a"] - before


def test_a_cancelled_call_costs_its_tenant_no_more_than_was_written() -> None:
    model, cancelled = make_llama(), threading.Event()
    scheduler = make_scheduler(batch_size=1, model=model)
    count_steps(model, lambda step: cancelled.set() if step == 3 else None)
    long = GenerationSettings(512, ())
    assert not list(scheduler.generate(numbered(range(4)), long, cancelled.is_set, "a"))
    written = scheduler.stats()
    assert written.per_tenant == {"a": 3} == {"a": written.tokens_total}
    assert written_for_a_until_b_is_done(scheduler, model) > 16, "a had its turns meanwhile"


def test_a_tenant_that_was_away_is_not_owed_what_it_did_not_use() -> None:
    model = make_llama()
    scheduler = make_scheduler(batch_size=1, model=model)
    assert len(list(scheduler.generate(numbered(range(12)), SETTINGS, tenant="a"))) == 12
    assert written_for_a_until_b_is_done(scheduler, model) > 16, "a had its turns meanwhile"


def test_more_than_may_wait_is_refused_at_once() -> None:
    scheduler = make_scheduler(max_queued=10)
    with pytest.raises(Busy, match=r"exceed its bound of 10") as caught:
        next(iter(scheduler.generate(numbered(range(11)), SETTINGS)))
    assert isinstance(caught.value, LLMUnavailable)
    assert scheduler.stats().rejected_total == 11
    assert len(list(scheduler.generate(numbered(range(10)), SETTINGS))) == 10


def test_a_tenant_that_fills_the_queue_keeps_nobody_else_out() -> None:
    model, held = make_llama(), Gate()
    scheduler = make_scheduler(batch_size=1, max_queued=12, model=model)
    held.close_at(model, step=2)
    with ThreadPoolExecutor() as pool:
        greedy = pool.submit(lambda: list(scheduler.generate(numbered(range(12)), SETTINGS, tenant="greedy")))
        assert held.reached.wait(30)  # one is being written, eleven wait
        modest = [
            pool.submit(lambda t=t: list(scheduler.generate(numbered(range(3)), SETTINGS, tenant=t))) for t in "abc"
        ]
        wait_until(lambda: scheduler.stats().queued == 11 + 3 * 3)
        for tenant, prompts in (("greedy", 2), ("a", 1), ("d", 3)):  # more than a share of 3, 3 and 12 / 5
            with pytest.raises(Busy) as caught:
                next(iter(scheduler.generate(numbered(range(20, 20 + prompts)), SETTINGS, tenant=tenant)))
            others = {"greedy": 9, "a": 17, "d": 20}[tenant]
            assert str(others) not in caught.value.public, "tells nothing of how many prompts of others wait"
        held.open.set()
        assert [len(call.result()) for call in (greedy, *modest)] == [12, 3, 3, 3]
    assert len(list(scheduler.generate(numbered(range(30, 42)), SETTINGS, tenant="greedy"))) == 12


def test_close_finishes_what_is_under_way() -> None:
    scheduler = make_scheduler()
    answers = scheduler.generate(numbered(range(20)), SETTINGS)
    first = next(answers)
    scheduler.close(drain_seconds=60)
    assert len(texts([first, *answers])) == 20
    with pytest.raises(LLMUnavailable, match="stopping"):
        list(scheduler.generate(numbered(range(1)), SETTINGS))


def test_close_ends_calls_that_take_longer() -> None:
    scheduler = make_scheduler(batch_size=2)
    answers = scheduler.generate(numbered(range(900)), SETTINGS)
    next(answers)
    scheduler.close(drain_seconds=0.0)
    with pytest.raises(LLMUnavailable, match="stopping"):
        list(answers)
    assert threading.active_count() == 1 or all(t.name != "llm" for t in threading.enumerate())


def widest(max_batch_tokens: int) -> int:
    """Return the most rows x tokens of a row's own that a step of 20 prompts of 5 to 100 words came to."""
    model = make_llama()
    scheduler = make_scheduler(batch_size=50, model=model, max_batch_tokens=max_batch_tokens)
    shared, sizes = scheduler._decoder.shared_tokens, []

    def note(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        rows, tokens = keywords["attention_mask"].shape
        sizes.append(rows * (tokens - shared))

    model.register_forward_pre_hook(note, with_kwargs=True)
    batch = PromptBatch(tuple(PerturbedPrompt(i, "robin " * (5 * i + 5)) for i in range(20)), STATEMENT)
    assert len(texts(list(scheduler.generate(batch, SETTINGS)))) == 20
    return max(sizes)


def test_long_prompts_share_the_batch_within_its_budget() -> None:
    assert 300 < widest(600) <= 600
    assert widest(1_000_000) > 1_200


def test_of_two_equal_requests_at_a_time_one_is_cancelled_and_the_other_answered() -> None:
    expected = texts(list(make_scheduler().generate(numbered(range(4)), SETTINGS)))
    for cancel_first in (True, False):
        model, held, cancelled = make_llama(), Gate(), threading.Event()
        scheduler = make_scheduler(model=model)
        held.close_at(model, step=4)
        stops = [cancelled.is_set, never] if cancel_first else [never, cancelled.is_set]
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(lambda: list(scheduler.generate(numbered(range(4)), SETTINGS, stops[0], "a")))  # noqa: B023
            assert held.reached.wait(30)
            second = pool.submit(lambda: list(scheduler.generate(numbered(range(4)), SETTINGS, stops[1], "a")))  # noqa: B023
            wait_until(lambda: scheduler.stats().cache_hits_total == 4)  # noqa: B023
            cancelled.set()
            held.open.set()
            gone, kept = (first.result(), second.result()) if cancel_first else (second.result(), first.result())
        assert gone == []
        assert texts(kept) == expected
        assert scheduler.stats().running == 0


def test_a_thousand_requests_leave_nothing_behind() -> None:
    scheduler = make_scheduler()
    settings = GenerationSettings(2, ())

    def ask(numbers: range) -> None:
        for n in numbers:
            assert len(list(scheduler.generate(numbered(range(n % 7, n % 7 + 1)), settings, tenant=str(n % 3)))) == 1

    ask(range(200))
    tracemalloc.start()
    ask(range(200, 400))
    before, _ = tracemalloc.get_traced_memory()
    ask(range(400, 1200))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 300_000  # bytes; one request that is kept whole has about 3,000
    assert not scheduler._requests
    assert not scheduler._answers.under_way


def test_whoever_loads_an_llm_keeps_no_threads_of_openmp() -> None:
    """Those of two threads are more than there are cores, and OpenMP then sends them to sleep after every product."""
    program = """
import psutil, time, torch
from pdss_fl.llm.instruction import EVERYDAY
from pdss_fl.llm.protocol import never
from pdss_fl.llm.scheduler import Scheduler
torch.set_num_threads(2)
scheduler = Scheduler.load("smollm2-135m-instruct", instruction=EVERYDAY)
time.sleep(2)  # threads that read files end
threads = psutil.Process().num_threads()
torch.ones(1000, 1000).exp()
print(psutil.Process().num_threads() - threads)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert int(shown.stdout) == 1, "the caller's first own computation is what starts its helper"
