"""The ClientApp of a node whose data another process reads: it hands on Flower's messages and the replies.

With ``node-socket`` in a SuperNode's config, what runs as the ClientApp (code that came with the run) does nothing
else: the process behind the socket, ``pdss node``, is the client. See ``pdss_fl.node``.
"""

from __future__ import annotations

import json
from pathlib import Path

import grpc
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as FlowerMessage

from pdss_fl.errors import SettingError, StoreError
from pdss_fl.proto import node_pb2 as pb
from pdss_fl.proto.node_pb2_grpc import NodeServiceStub
from pdss_fl.rules import NOT_EMPTY, checked

SCHEMA_VERSION = 1
SOCKET = "node-socket"
MAX_MESSAGE_BYTES = 2**30
_CONNECT_SECONDS = 10.0
_FLOWERS = {"partition-id", "num-partitions"}


def relay_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let the client's own process answer, if the SuperNode's config names its socket.

    Raises
    ------
    SettingError
        If nothing listens at the socket, or the config names more than that: this process could read it.
    StoreError
        If the node ended before it answered.
    """
    if SOCKET not in context.node_config:
        return call_next(msg, context)
    more = sorted(set(context.node_config) - {SOCKET} - _FLOWERS)
    if more:
        raise SettingError(
            f"this SuperNode's config names {SOCKET} and also {', '.join(more)}: put these into the policy file of "
            "`pdss node`, so that what runs here is told of no data"
        )
    return _ask(checked(SOCKET, context.node_config[SOCKET], str, NOT_EMPTY), msg, context)


def _ask(socket: str, msg: Message, context: Context) -> Message:
    request = pb.NodeRequest(
        schema_version=SCHEMA_VERSION,
        message=message_to_proto(msg).SerializeToString(),
        run_id=context.run_id,
        node_id=context.node_id,
        run_config=json.dumps(dict(context.run_config)),
    )
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix:{socket}", options) as channel:
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise SettingError(
                f"nothing listens at this SuperNode's {SOCKET}: start `pdss node` on this machine, and let the "
                "SuperNode's user write to the socket",
                str(Path(socket)),
            ) from None
        try:
            # No deadline: training may take hours.
            reply = NodeServiceStub(channel).Handle(request)  # type: ignore[no-untyped-call]
        except grpc.RpcError as err:
            raise StoreError("this client's `pdss node` did not answer; its own log says why", str(err)) from None
    return message_from_proto(FlowerMessage.FromString(reply.message))
