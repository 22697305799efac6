"""From the LLM's rationale of a perturbed prompt to one that a client can train on.

All of it happens on the client after the release, so it is post-processing and costs no privacy.
``align`` substitutes words back; ``InContextDecoder`` lets the small model rewrite the rationale;
``filter_rationale`` compares either's result with the known answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import transformers

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.alignment import align
from pdss_fl.slm.answers import find_statement, know_the_answers, states_answer, without_mention
from pdss_fl.slm.consensus import agreeing
from pdss_fl.slm.generation import generate
from pdss_fl.slm.model import SmallModel

__all__ = ["DEMONSTRATION", "DecodeRequest", "InContextDecoder", "align", "filter_rationale", "keep_rationales"]

INSTRUCTION = (
    "Answer each question with one of its choices and give a short rationale that ends with "
    "'So the answer is' and the choice. In the second question some words of the third were replaced: "
    "write the rationale of the third in its own words."
)
DEMONSTRATION = Example(
    question="where do you put the milk to keep it cold",
    choices=("oven", "fridge", "drawer", "garden"),
    answer="fridge",
    rationale="Milk is a food that warmth spoils. A fridge keeps food cold. So the answer is fridge.",
)


@dataclass(frozen=True)
class DecodeRequest:
    """An example, what was released of it (in the order of its release), and the rationale that came back."""

    example: Example
    question: str
    choices: tuple[str, ...]
    rationale: str


class InContextDecoder:
    """The untrained small model completes the rationale of the real question, all on the client.

    It reads, in this order: the instruction and one public demonstration; the perturbed question
    and choices with the LLM's rationale, as a second demonstration; the real question and choices.
    With a chat template these are turns of a conversation, else paragraphs.

    Parameters
    ----------
    slm : SmallModel
        A pretrained model; one from scratch cannot follow a demonstration.
    max_new_tokens : int (default: 64)
        Longest decoded rationale.
    batch_size : int (default: 16)
        Requests at a time.
    """

    def __init__(self, slm: SmallModel, max_new_tokens: int = 64, batch_size: int = 16) -> None:
        self.slm, self.max_new_tokens, self.batch_size = slm, max_new_tokens, batch_size

    def decode(self, requests: Sequence[DecodeRequest]) -> list[str]:
        """Return the first line that the model writes for each request, greedily.

        Raises
        ------
        SettingError
            If a request is too long for the model even without its context; the message names
            ``slm.model``.
        """
        prompts = [self._encode(request) for request in requests]
        written = generate(self.slm, prompts, self.max_new_tokens, self.batch_size)
        return [(text.strip().splitlines() or [""])[0].strip() for text in written]

    def prompt(self, request: DecodeRequest, with_context: bool = True) -> str:
        """Return the text that the model continues, special tokens of a chat template included."""
        example = request.example
        context = f"{example.context}\n" if with_context and example.context else ""
        questions = [
            f"{INSTRUCTION}\n\n{_ask(DEMONSTRATION.question, DEMONSTRATION.choices)}",
            _ask(request.question, request.choices),
            context + _ask(example.question, example.choices),
        ]
        tokenizer = self.slm.tokenizer
        answers = [str(DEMONSTRATION.rationale), _plain(request.rationale, tokenizer)]
        if tokenizer.chat_template is None:
            shown = "".join(f"{q}\nRationale: {a}\n\n" for q, a in zip(questions, answers, strict=False))
            return f"{shown}{questions[-1]}\nRationale:"
        turns = [{"role": "user", "content": questions[0]}]
        for answer, question in zip(answers, questions[1:], strict=True):
            turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _encode(self, request: DecodeRequest) -> list[int]:
        limit = getattr(self.slm.model.config, "max_position_embeddings", None)
        for with_context in (True, False):
            ids = self._ids(self.prompt(request, with_context))
            if limit is None or len(ids) + self.max_new_tokens <= limit:
                return ids
        raise SettingError(
            f"slm.model: it takes {limit} tokens, too few for decoding in context: "
            "choose a pretrained model with a longer context, or set distill.decoder to 'align'"
        )

    def _ids(self, text: str) -> list[int]:
        if self.slm.tokenizer.chat_template is None:
            return self.slm.start_ids + self.slm.encode(text) + self.slm.end_ids
        ids: list[int] = self.slm.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


def keep_rationales(decoded: Sequence[str], examples: Sequence[Example], mode: str, max_words: int) -> list[str | None]:
    """Filter the rationales of a client's examples; ``None`` in the place of those that are left out.

    ``mode`` is one of ``filter_rationale``, or ``agree``: what other rationales outvote (``consensus.agreeing``)
    is left out, the rest is corrected. With any but ``off``, all are left out if they know the answers no better than
    chance (``know_the_answers``).
    """
    if mode != "off" and not know_the_answers(decoded, examples):
        return [None] * len(examples)
    if mode != "agree":
        pairs = zip(decoded, examples, strict=True)
        return [filter_rationale(text, example, mode, max_words) for text, example in pairs]
    triples = zip(decoded, examples, agreeing(decoded, examples), strict=True)
    return [filter_rationale(text, e, "correct", max_words) if agrees else None for text, e, agrees in triples]


def filter_rationale(rationale: str, example: Example, mode: str, max_words: int = 60) -> str | None:
    """Compare a rationale's stated answer with the known one, and cap its length.

    Parameters
    ----------
    rationale : str
        What the decoder made; its last "the answer is ..." counts.
    example : Example
        Whose answer is known.
    mode : str
        ``off`` keeps every rationale; ``drop`` those alone that state the right answer; ``correct``
        replaces a wrong last sentence, or adds a missing one: "So the answer is {answer}.", and leaves out
        what argues for the wrong answer, the sentences that name it.
    max_words : int (default: 60)
        Of the result (``distill.rationale-words``), at least 1; the words before the last sentence
        give way first.

    Returns
    -------
    str | None
        ``None`` if the rationale is dropped or empty.

    Raises
    ------
    SettingError
        If the mode or ``max_words`` is not one of these.
    """
    if mode not in ("off", "drop", "correct"):
        raise SettingError(f"distill.filter = {mode!r}: set it to 'off', 'drop' or 'correct'")
    if max_words < 1:
        raise SettingError(f"distill.rationale-words = {max_words}: set it to at least 1")
    found = find_statement(rationale)
    place, statement = found or (len(rationale), "")
    body, end = rationale[:place], rationale[place:]
    if mode != "off" and not (found and states_answer(statement, example)):
        if mode == "drop":
            return None
        body = without_mention(body, statement)
        end = f"So the answer is {example.answer}."
    return _cap(body, end, max_words) or None


def _cap(body: str, end: str, max_words: int) -> str:
    """Join two texts with the first shortened, to whole sentences where that leaves any."""
    last = end.split()[:max_words]
    first = body.split()
    room = max_words - len(last)
    if len(first) > room:
        first = first[:room]
        sentence_ends = [i for i, word in enumerate(first) if word[-1] in ".!?"]
        first = first[: sentence_ends[-1] + 1] if sentence_ends else first
    return " ".join(first + last)


def _plain(rationale: str, tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Return untrusted text in one line and without what the tokenizer would read as special tokens."""
    for token in tokenizer.added_tokens_decoder.values():
        rationale = rationale.replace(token.content, " ")
    return " ".join(rationale.split())


def _ask(question: str, choices: Sequence[str]) -> str:
    text = f"Question: {question}"
    return f"{text}\nChoices: {'; '.join(choices)}" if choices else text
