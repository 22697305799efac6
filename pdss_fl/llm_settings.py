"""The run's settings of the large language model (``llm.*``), and what holds between them."""

from __future__ import annotations

from dataclasses import dataclass

from pdss_fl.bundled import BUNDLED_MODEL
from pdss_fl.errors import SettingError
from pdss_fl.rules import A_WEEK, ADDRESS, AT_LEAST_0, AT_LEAST_1, NOT_EMPTY, NOT_NEGATIVE, POSITIVE, one_of, within
from pdss_fl.rules import setting as _setting

AUTO = "auto"
DTYPE_NAMES = (AUTO, "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LLMSettings:
    """The large language model on the server's side (``llm.*``).

    ``channel``: how prompts reach it. ``relay``: in Flower's messages, through the strategy. ``direct``: each
    client sends its own to the LLM server (``backend = "grpc"``) at ``address``, with a token that the strategy
    hands out and that is good for ``token_lifetime`` seconds, a week at most; a node has to allow the address, and
    trusts its own CA only. ``root_certificates`` is the PEM file of the CA that the strategy trusts (empty: plain
    text, on loopback only, or anywhere with ``insecure``). What signs tokens, and the strategy's own certificate, are
    named in the ServerApp's environment, since every node receives these settings.

    From ``base_url`` on for ``backend = "openai"`` only, with ``model`` as the endpoint names it; ``insecure`` allows
    plain ``http`` off loopback there. A prompt that might lead beyond ``max_run_tokens`` (read and written) or
    ``max_run_cost`` (in the unit of the prices, which are for a million tokens) is not sent and gets an empty
    rationale; 0 means no limit. There is no setting for the API key: see
    ``pdss_fl.llm.endpoint.api_key``.
    """

    backend: str = _setting("local", one_of("local", "grpc", "openai"))
    model: str = _setting(BUNDLED_MODEL, NOT_EMPTY)
    address: str = _setting("127.0.0.1:50061", ADDRESS)
    channel: str = _setting("relay", one_of("relay", "direct"))
    root_certificates: str = _setting("")
    insecure: bool = _setting(False)
    token_lifetime: float = _setting(3600.0, A_WEEK)
    adapter: str = _setting("auto")
    instruction: str = _setting("")
    dtype: str = _setting("auto", one_of(*DTYPE_NAMES))
    batch_size: int = _setting(128, AT_LEAST_1)
    max_new_tokens: int = _setting(40, within(1, 512))
    timeout: float = _setting(1800.0, POSITIVE)
    base_url: str = _setting("http://127.0.0.1:8000/v1", NOT_EMPTY)
    endpoint_form: str = _setting("chat", one_of("chat", "completion"))
    concurrency: int = _setting(16, within(1, 1024))
    max_run_tokens: int = _setting(10_000_000, AT_LEAST_0)
    max_run_cost: float = _setting(0.0, NOT_NEGATIVE)
    input_price: float = _setting(0.0, NOT_NEGATIVE)
    output_price: float = _setting(0.0, NOT_NEGATIVE)


def check_endpoint(llm: LLMSettings) -> None:
    """Refuse a ``base-url`` that could hold a secret, and a cost limit without prices; raises ``SettingError``."""
    if set("@?#") & set(llm.base_url):  # the value is not shown, since it may hold a secret
        raise SettingError(
            "llm.base-url may not carry a user name, password, query or fragment, since every node receives a "
            "run's settings: give https://HOST/PATH and put the key into the server's environment (PDSS_LLM_API_KEY)"
        )
    if llm.max_run_cost and not llm.input_price + llm.output_price:
        raise SettingError(
            f"llm.max-run-cost = {llm.max_run_cost!r} has no effect without prices: set llm.input-price and "
            "llm.output-price, each for a million tokens"
        )
