"""Decoding in context, and the filter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.decoder import DEMONSTRATION, DecodeRequest, InContextDecoder, filter_rationale, keep_rationales
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm

EXAMPLE = Example("what does a robin have", ("fins", "feathers", "red feathers"), "feathers", context="In a wood.")
REQUEST = DecodeRequest(EXAMPLE, "what does a trout own", ("scales", "hooves"), "A trout\nhas scales.")
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def llama(make_pretrained: Callable[..., Path]) -> SmallModel:
    return create_slm(SlmSettings(model=str(make_pretrained("llama", positions=1024)), max_tokens=64), [])


def _in_order(text: str, parts: list[str]) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


ORDER = [
    "third in its own words", DEMONSTRATION.question, "; ".join(DEMONSTRATION.choices),
    str(DEMONSTRATION.rationale),
    "what does a trout own", "scales; hooves", "A trout has scales.",
    "In a wood.", "what does a robin have", "fins; feathers; red feathers",
]  # fmt: skip


def test_the_prompt_shows_demonstration_round_trip_and_question_in_this_order(llama: SmallModel) -> None:
    text = InContextDecoder(llama).prompt(REQUEST)
    assert _in_order(text, ORDER)
    assert text.endswith("Choices: fins; feathers; red feathers\nRationale:")


def test_a_chat_template_makes_turns_of_it(llama: SmallModel) -> None:
    llama.tokenizer.chat_template = CHAT_TEMPLATE
    text = InContextDecoder(llama).prompt(REQUEST)
    assert _in_order(text, ORDER)
    assert "<assistant>A trout has scales.</assistant>" in text
    assert text.endswith("</user><assistant>")


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_special_tokens_in_an_untrusted_rationale_are_taken_out(llama: SmallModel, template: str | None) -> None:
    llama.tokenizer.chat_template = template
    request = DecodeRequest(EXAMPLE, "which", (), f"It has{llama.tokenizer.eos_token}scales.")
    text = InContextDecoder(llama).prompt(request)
    assert "It has scales." in text
    assert str(llama.tokenizer.eos_token) not in text


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_decoding_gives_one_line_per_request_whatever_the_batches(llama: SmallModel, template: str | None) -> None:
    llama.tokenizer.chat_template = template
    other = DecodeRequest(Example("what", (), "x"), "which", (), "Because.")
    decoded = [InContextDecoder(llama, 8, size).decode([REQUEST, other, REQUEST]) for size in (1, 3)]
    assert decoded[0] == decoded[1]
    assert len(decoded[0]) == 3
    assert decoded[0][0] == decoded[0][2]
    assert "\n" not in "".join(decoded[0])


def test_a_context_that_does_not_fit_is_left_out(llama: SmallModel) -> None:
    example = Example("what", ("a", "b"), "a", context="wood " * 2000)
    request = DecodeRequest(example, "which", ("c", "d"), "Because.")
    shorter = DecodeRequest(Example("what", ("a", "b"), "a"), "which", ("c", "d"), "Because.")
    decoder = InContextDecoder(llama, 8)
    assert decoder.decode([request]) == decoder.decode([shorter])


def test_a_model_too_short_for_the_demonstrations_is_refused(slm: SmallModel) -> None:
    with pytest.raises(SettingError, match=r"slm\.model.*64 tokens.*distill\.decoder"):
        InContextDecoder(slm).decode([REQUEST])


GOOD = "Birds have feathers. So the answer is feathers."
WRONG = "Fish have fins. So the answer is fins."
SILENT = "Birds have feathers."


@pytest.mark.parametrize(
    ("rationale", "mode", "expected"),
    [
        (GOOD, "off", GOOD),
        (GOOD, "drop", GOOD),
        (GOOD, "correct", GOOD),
        (WRONG, "off", WRONG),
        (WRONG, "drop", None),
        (WRONG, "correct", "So the answer is feathers."),
        (
            "A robin flies. Fish swim. So the answer is fins.",
            "correct",
            "A robin flies. Fish swim. So the answer is feathers.",
        ),
        ("A robin flies. Fins swim. So the answer is fins.", "correct", "A robin flies. So the answer is feathers."),
        (SILENT, "off", SILENT),
        (SILENT, "drop", None),
        (SILENT, "correct", GOOD),
        ("", "off", None),
        ("", "drop", None),
        ("", "correct", "So the answer is feathers."),
    ],
)
def test_modes_of_the_filter(rationale: str, mode: str, expected: str | None) -> None:
    assert filter_rationale(rationale, EXAMPLE, mode) == expected


@pytest.mark.parametrize(
    ("rationale", "agrees"),
    [
        ("The answer is: the Feathers!", True),
        ("the answer is 'feathers', since birds fly", True),
        ("the answer is fins. No, the answer is feathers", True),
        ("the answer is feathers. No, the answer is fins", False),
        ("the answer is red feathers", False),
        ("the answer is feathers, not fins", True),
        ("the answer is not feathers", False),
        ("the answer is featherstone", False),
        ("the answer is. feathers", False),
        ("feathers", False),
    ],
)
def test_the_last_stated_answer_counts_word_by_word(rationale: str, agrees: bool) -> None:
    assert (filter_rationale(rationale, EXAMPLE, "drop") is not None) == agrees


def test_open_answers_are_compared_too() -> None:
    example = Example("which river", (), "the Blue Nile")
    assert filter_rationale("So the answer is Blue Nile.", example, "drop") is not None
    assert filter_rationale("So the answer is White Nile.", example, "drop") is None


@pytest.mark.parametrize("mode", ["off", "drop", "correct"])
def test_the_cap_spares_the_last_sentence_and_whole_sentences(mode: str) -> None:
    rationale = "Robins are birds. Birds all have wings. So the answer is feathers."
    assert filter_rationale(rationale, EXAMPLE, mode, 9) == "Robins are birds. So the answer is feathers."
    assert filter_rationale(rationale, EXAMPLE, mode, 7) == "Robins are So the answer is feathers."
    assert filter_rationale(rationale, EXAMPLE, mode, 3) == "So the answer"


def test_unknown_settings_are_refused_without_quoting_the_rationale() -> None:
    with pytest.raises(SettingError, match=r"distill\.filter = 'keep'") as error:
        filter_rationale(GOOD, EXAMPLE, "keep")
    assert "feathers" not in error.value.local
    with pytest.raises(SettingError, match=r"distill\.rationale-words = 0"):
        filter_rationale(GOOD, EXAMPLE, "off", 0)


def asked(count: int) -> list[Example]:
    return [Example(f"what is thing {i}", ("fins", "fur", "wheels", "wings"), "fins") for i in range(count)]


@pytest.mark.parametrize("mode", ["drop", "correct", "agree"])
def test_rationales_that_guess_are_left_out_altogether(mode: str) -> None:
    examples = asked(40)
    guesses = [f"It is. So the answer is {e.choices[i % 4]}." for i, e in enumerate(examples)]
    assert keep_rationales(guesses, examples, mode, 40) == [None] * 40
    assert None not in keep_rationales(guesses, examples, "off", 40)
    assert keep_rationales(["So the answer is a bus."] * 40, examples, mode, 40) == [None] * 40


@pytest.mark.parametrize("mode", ["drop", "correct", "agree"])
def test_rationales_that_know_more_than_chance_are_kept(mode: str) -> None:
    examples = asked(40)
    half_right = [f"It is. So the answer is {e.choices[i % 4 if i % 2 else 0]}." for i, e in enumerate(examples)]
    assert sum(text is not None for text in keep_rationales(half_right, examples, mode, 40)) >= 20


def test_too_few_examples_cannot_tell_guesses_from_knowledge() -> None:
    examples = asked(8)
    guesses = [f"It is. So the answer is {e.choices[i % 4]}." for i, e in enumerate(examples)]
    assert sum(text is not None for text in keep_rationales(guesses, examples, "drop", 40)) == 2
