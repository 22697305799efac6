"""Prompts, rows and batches: what is cut, what is masked, what is padded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdss_fl.data.example import Example
from pdss_fl.slm.collator import Row, collate, encode_prompt, encode_row
from pdss_fl.slm.loss import IGNORED, LABEL, RATIONALE
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.prompts import label_prompt, rationale_prompt

EXAMPLE = Example("who sings", ("a robin", "a trout"), "a robin")


def test_prompts_hold_the_context_the_question_and_the_choices_but_not_the_answer() -> None:
    in_context = Example("who sings", ("a robin", "a trout"), "a robin", context="Birds sing.")
    assert str(label_prompt(EXAMPLE)) == "predict: who sings choices: a robin ; a trout answer:"
    expected = "explain: Birds sing. who sings choices: a robin ; a trout rationale:"
    assert str(rationale_prompt(in_context)) == expected
    assert str(label_prompt(Example("who sings", (), "a robin"))) == "predict: who sings answer:"


def test_a_long_prompt_loses_the_beginning_of_its_body_and_no_choice(slm: SmallModel) -> None:
    long = Example("robin " * 100 + "trout", ("hammer", "tulip"), "tulip")
    row = encode_row(slm, label_prompt(long), long.answer, LABEL)
    text = str(slm.tokenizer.decode(row.prompt))
    assert row.truncated
    assert row.tokens == slm.max_tokens
    assert text.startswith(" predict: robin")
    assert text.endswith("robin trout choices: hammer ; tulip answer:")


def test_choices_that_do_not_fit_are_cut_and_counted_and_raise_nothing(slm: SmallModel) -> None:
    """An error that leaves a client must not depend on the length of its text."""
    long = Example("who", ("robin " * 40, "trout " * 40), "trout")
    ids, cut = encode_prompt(slm, label_prompt(long), reserve=2)
    assert cut
    assert len(ids) == slm.max_tokens - 2
    assert str(slm.tokenizer.decode(ids)).endswith("answer:")


def test_a_completion_ends_with_the_end_token_unless_it_was_cut(slm: SmallModel) -> None:
    whole = encode_row(slm, rationale_prompt(EXAMPLE), "a robin", RATIONALE)
    cut = encode_row(slm, rationale_prompt(EXAMPLE), "robin " * 100, RATIONALE)
    assert whole.completion == [*slm.encode(" a robin"), slm.tokenizer.eos_token_id]
    assert (whole.truncated, cut.truncated) == (False, True)
    assert slm.tokenizer.eos_token_id not in cut.completion
    assert len(cut.completion) == slm.max_tokens // 2
    assert encode_row(slm, rationale_prompt(EXAMPLE), " ", RATIONALE).completion == []


def test_prompt_and_padding_are_masked_by_place_and_the_end_token_is_not(
    make_pretrained: Callable[..., Path],
) -> None:
    slm = create_slm(SlmSettings(model=str(make_pretrained("gpt2")), max_tokens=64), [])
    end = slm.tokenizer.eos_token_id
    assert slm.tokenizer.pad_token_id == end
    batch = collate([Row([5, end, 6], [end, 7, end], LABEL, False), Row([8], [9, end], RATIONALE, False)], end)
    n = IGNORED
    assert batch.input_ids.tolist() == [[5, end, 6, end, 7, end], [end, end, end, 8, 9, end]]
    assert batch.labels.tolist() == [[n, n, n, end, 7, end], [n, n, n, n, 9, end]]
    assert batch.attention_mask.tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
    assert batch.task.tolist() == [LABEL, RATIONALE]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_does_not_change_a_rows_logits(family: str, make_pretrained: Callable[..., Path]) -> None:
    slm = create_slm(SlmSettings(model=str(make_pretrained(family)), max_tokens=64), [])
    row = Row([5, 6, 7], [8, 9], LABEL, False)
    longer = Row(list(range(20)), [1, 2, 3, 4, 5], RATIONALE, False)
    pad = slm.tokenizer.pad_token_id
    with torch.no_grad():
        plain = slm.model(torch.tensor([row.prompt + row.completion])).logits[0]
        logits, labels = collate([row, longer], pad).run(slm.model)
    assert logits.shape[:2] == labels.shape == (2, 6)
    torch.testing.assert_close(logits[0, -3:], plain[-3:], rtol=1e-4, atol=1e-5)
