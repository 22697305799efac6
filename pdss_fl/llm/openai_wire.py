"""The OpenAI-compatible API's requests, answers and refusals as this project's own objects.

Answers are untrusted text: every field is checked, and no error quotes one.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from pdss_fl.errors import LLMUnavailable, MessageError, PdssError
from pdss_fl.llm.budget import Tokens
from pdss_fl.llm.endpoint import BadStatus, unreadable
from pdss_fl.llm.instruction import Instruction
from pdss_fl.messages import MAX_RATIONALE_CHARS, Finish, GenerationSettings, PerturbedPrompt, Rationale, printable

CHAT, COMPLETION = "chat", "completion"
PATHS = {CHAT: "chat/completions", COMPLETION: "completions"}
MAX_STOPS = 4
"""Stop texts that the API takes; answers are cut here at the others."""
MAX_COUNT = 2**31

_BUSY = ("is busy, or its quota is used up", "lower llm.concurrency, or try again later")
_ELSEWHERE = ("has no such model or path", "check llm.model and llm.endpoint-form; most llm.base-url end in /v1")
_PROBLEMS = {
    3: ("redirects, which is not followed", "set llm.base-url to where it leads"),
    4: ("refuses the request", "check llm.model and llm.endpoint-form"),
    5: ("fails", "see its log, and try again later"),
}


def request_body(
    model: str, instruction: Instruction, form: str, prompt: PerturbedPrompt, settings: GenerationSettings
) -> bytes:
    """Return the JSON that asks greedily for one rationale, in the form ``chat`` or ``completion``."""
    asked: dict[str, Any] = (
        {"messages": instruction.messages(prompt)} if form == CHAT else {"prompt": instruction.plain(prompt)}
    )
    common = {"model": model, "temperature": 0, "stream": False, "max_tokens": settings.max_new_tokens}
    return json.dumps({**common, "stop": list(settings.stop[:MAX_STOPS]), **asked}).encode()


def read_usage(answer: Any, most: Tokens) -> Tokens:
    """Return what an answer says was used; ``most`` for each number that is missing or none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    found = usage if isinstance(usage, dict) else {}
    return Tokens(_count(found.get("prompt_tokens"), most.read), _count(found.get("completion_tokens"), most.written))


def read_rationale(answer: Any, form: str, settings: GenerationSettings, tokens: int) -> Rationale:
    """Return an answer's text as the rationale of ordinal 0, without white space around it.

    It is cut at the stop texts and at ``MAX_RATIONALE_CHARS`` here too, and loses control characters. An answer
    without any text, for example of a content filter, is an empty rationale.

    Raises
    ------
    LLMUnavailable
        If it has no choice, or one of another form.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise unreadable("no choices")
    holder, field = (choice.get("message"), "content") if form == CHAT else (choice, "text")
    text = holder.get(field) if isinstance(holder, dict) else 0
    text = "" if text is None and form == CHAT else text
    if not isinstance(text, str):
        raise unreadable(f"no {form} text")
    text = text.lstrip()
    stop = min((text.index(s) for s in settings.stop if s and s in text), default=None)
    finish = Finish.LENGTH if choice.get("finish_reason") == "length" and stop is None else Finish.STOP
    return Rationale(0, printable(text[:stop], MAX_RATIONALE_CHARS).rstrip(), finish, tokens)


def explain(error: BaseException, has_key: bool) -> BaseException:
    """Return what ended a request as the project's own error, which names settings and quotes nothing.

    Parameters
    ----------
    error : BaseException
        A ``BadStatus`` or an error of ``httpx``; any other is returned as it is.
    has_key : bool
        Whether a key was sent.
    """
    if isinstance(error, httpx.TransportError):
        return LLMUnavailable(
            f"the LLM endpoint does not answer ({type(error).__name__}); start it, or set llm.base-url to where it runs"
        )
    if not isinstance(error, BadStatus):
        return error
    if error.status in (400, 413, 422):
        return MessageError(
            f"the LLM endpoint refuses a prompt ({error}); if it is too long, shorten it or lower "
            "llm.max-new-tokens, else check llm.model and llm.endpoint-form"
        )
    if error.status in (401, 403):
        return _without_a_key(error, has_key)
    problem, remedy = _PROBLEMS.get(error.status // 100, _PROBLEMS[5])
    if error.status in (404, 405, 429, 501):
        problem, remedy = _BUSY if error.status == 429 else _ELSEWHERE
    return LLMUnavailable(f"the LLM endpoint {problem} ({error}); {remedy}")


def _without_a_key(answer: BadStatus, has_key: bool) -> PdssError:
    problem = "refuses the API key" if has_key else "wants an API key, and none was found for it"
    return LLMUnavailable(
        f"the LLM endpoint {problem} ({answer}); set PDSS_LLM_API_KEY in the environment of the server, "
        "and PDSS_LLM_BASE_URL there to llm.base-url"
    )


def _count(value: Any, otherwise: int) -> int:
    return value if type(value) is int and 0 <= value < MAX_COUNT else otherwise
