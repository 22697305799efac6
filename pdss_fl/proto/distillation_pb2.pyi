from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class PerturbedPrompt(_message.Message):
    __slots__ = ("ordinal", "question", "choices")
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    ordinal: int
    question: str
    choices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ordinal: _Optional[int] = ..., question: _Optional[str] = ..., choices: _Optional[_Iterable[str]] = ...) -> None: ...

class PrivacyStatement(_message.Message):
    __slots__ = ("mechanism", "kind", "epsilon_per_token", "epsilon_per_document", "delta", "tokens_per_document", "composition", "kept_tokens", "parameters", "vocabulary_sha256")
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EPSILON_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPSILON_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_FIELD_NUMBER: _ClassVar[int]
    KEPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SHA256_FIELD_NUMBER: _ClassVar[int]
    mechanism: str
    kind: str
    epsilon_per_token: float
    epsilon_per_document: float
    delta: float
    tokens_per_document: int
    composition: str
    kept_tokens: float
    parameters: str
    vocabulary_sha256: str
    def __init__(self, mechanism: _Optional[str] = ..., kind: _Optional[str] = ..., epsilon_per_token: _Optional[float] = ..., epsilon_per_document: _Optional[float] = ..., delta: _Optional[float] = ..., tokens_per_document: _Optional[int] = ..., composition: _Optional[str] = ..., kept_tokens: _Optional[float] = ..., parameters: _Optional[str] = ..., vocabulary_sha256: _Optional[str] = ...) -> None: ...

class PerturbedPromptBatch(_message.Message):
    __slots__ = ("schema_version", "prompts", "privacy")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    prompts: _containers.RepeatedCompositeFieldContainer[PerturbedPrompt]
    privacy: PrivacyStatement
    def __init__(self, schema_version: _Optional[int] = ..., prompts: _Optional[_Iterable[_Union[PerturbedPrompt, _Mapping]]] = ..., privacy: _Optional[_Union[PrivacyStatement, _Mapping]] = ...) -> None: ...

class GenerationSettings(_message.Message):
    __slots__ = ("max_new_tokens", "stop")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_new_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class Rationale(_message.Message):
    __slots__ = ("ordinal", "text", "finish_reason", "tokens")
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ordinal: int
    text: str
    finish_reason: FinishReason
    tokens: int
    def __init__(self, ordinal: _Optional[int] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., tokens: _Optional[int] = ...) -> None: ...

class RationaleBatch(_message.Message):
    __slots__ = ("schema_version", "rationales", "model")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    RATIONALES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    rationales: _containers.RepeatedCompositeFieldContainer[Rationale]
    model: str
    def __init__(self, schema_version: _Optional[int] = ..., rationales: _Optional[_Iterable[_Union[Rationale, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ("schema_version",)
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    def __init__(self, schema_version: _Optional[int] = ...) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("schema_version", "model", "version", "dtype", "max_prompts", "max_request_bytes", "max_new_tokens")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    model: str
    version: str
    dtype: str
    max_prompts: int
    max_request_bytes: int
    max_new_tokens: int
    def __init__(self, schema_version: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., dtype: _Optional[str] = ..., max_prompts: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class GenerateRationalesRequest(_message.Message):
    __slots__ = ("batch", "settings")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    batch: PerturbedPromptBatch
    settings: GenerationSettings
    def __init__(self, batch: _Optional[_Union[PerturbedPromptBatch, _Mapping]] = ..., settings: _Optional[_Union[GenerationSettings, _Mapping]] = ...) -> None: ...

class GenerateRationalesResponse(_message.Message):
    __slots__ = ("rationale",)
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    rationale: Rationale
    def __init__(self, rationale: _Optional[_Union[Rationale, _Mapping]] = ...) -> None: ...
