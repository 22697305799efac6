from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class NodeRequest(_message.Message):
    __slots__ = ("schema_version", "message", "run_id", "node_id", "run_config")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    message: bytes
    run_id: int
    node_id: int
    run_config: str
    def __init__(self, schema_version: _Optional[int] = ..., message: _Optional[bytes] = ..., run_id: _Optional[int] = ..., node_id: _Optional[int] = ..., run_config: _Optional[str] = ...) -> None: ...

class NodeReply(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    def __init__(self, message: _Optional[bytes] = ...) -> None: ...
