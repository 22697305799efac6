"""``pdss node``: the client as a process of its own, which alone reads the data and the ledger.

A run brings its code along, and a SuperNode runs it: who submits a run could change the app so that it reads the
client's files. Behind a socket, this process runs the code that was installed on the client, under the client's
policy, and as a user of its own. The run's code, as the SuperNode's user, gets from it only answers to messages; it can
read that user's own files, the SuperNode's key among them, and open connections.

What a changed app can still do is what any run can ask for: perturbed prompts as long as the ledger pays for them,
and what the node's ``metrics`` policy reports.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from filelock import FileLock, Timeout
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as FlowerMessage

from pdss_fl.client_app import create_client_app
from pdss_fl.errors import MessageError, SettingError
from pdss_fl.mods import UNEXPECTED
from pdss_fl.policy import NodePolicy
from pdss_fl.proto import node_pb2 as pb
from pdss_fl.proto.node_pb2_grpc import NodeServiceServicer, add_NodeServiceServicer_to_server
from pdss_fl.relay import MAX_MESSAGE_BYTES, SCHEMA_VERSION

logger = logging.getLogger("pdss_fl.node")

_WAITING = 8  # messages at a time, of which one is worked on


class Node(NodeServiceServicer):
    """Answers Flower's messages with this installation's ClientApp under one policy file.

    Parameters
    ----------
    policy : Path
        TOML file; see ``NodePolicy.from_node_config``. Read anew for every message, so that a changed limit holds
        from then on.

    Raises
    ------
    SettingError
        If the policy cannot be read or lacks something, before anything is listened to.
    """

    def __init__(self, policy: Path) -> None:
        self._node_config: dict[str, bool | float | int | str] = {"policy": str(policy.resolve())}
        NodePolicy.from_node_config(self._node_config)
        self._app = create_client_app()

    def Handle(self, request: pb.NodeRequest, context: grpc.ServicerContext) -> pb.NodeReply:
        """Answer one message; what is no message of Flower's is refused with ``INVALID_ARGUMENT``."""
        try:
            message, run_config = _parse(request)
        except MessageError as err:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, err.public)
        told = Context(request.run_id, request.node_id, self._node_config, RecordDict(), run_config)
        reply = _answer(self._app, message, told)
        return pb.NodeReply(message=message_to_proto(reply).SerializeToString())


def _parse(request: pb.NodeRequest) -> tuple[Message, dict[str, Any]]:
    if request.schema_version != SCHEMA_VERSION:
        raise MessageError(
            f"the relaying app speaks version {request.schema_version}, this node {SCHEMA_VERSION}: install equal ones"
        )
    try:
        message = message_from_proto(FlowerMessage.FromString(request.message))
        run_config = json.loads(request.run_config)
    except Exception:  # Flower's own parsers raise whatever comes
        raise MessageError("the relaying app sent what is no message of Flower's") from None
    if not (isinstance(run_config, dict) and message.has_content()):
        raise MessageError("the relaying app sent a message without content, or without a run's settings")
    return message, run_config


def _answer(app: ClientApp, message: Message, context: Context) -> Message:
    logger.info("run %d asks for %r", context.run_id, message.metadata.message_type)
    try:
        return app(message, context)
    except Exception as err:  # an unknown type of message is refused outside the app's own guard
        logger.error("%s: the message is not answered", type(err).__name__)
        return Message(Error(UNEXPECTED, "this node knows no such message"), reply_to=message)


@contextmanager
def listening(policy: Path, socket: Path, group: str = "") -> Iterator[grpc.Server]:
    """Serve a node at a Unix socket for as long as the context lasts.

    Parameters
    ----------
    policy : Path
        The node's.
    socket : Path
        Absolute; made readable and writable for the owner and the group only, and removed at the end.
    group : str (default: "")
        Owns the socket, so that the SuperNode's user, as a member, may write to it; else this process's own group.

    Raises
    ------
    SettingError
        If the policy or the group is wrong, the socket cannot be made there, or another node listens at it.
    """
    node = Node(policy)
    lock = FileLock(f"{socket}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SettingError("--socket: another `pdss node` listens there already", str(socket)) from None
    except OSError as err:
        raise SettingError("--socket: its folder is not there or cannot be written", str(err)) from None
    server = grpc.server(
        ThreadPoolExecutor(1),  # one at a time: messages train models and share the ledger
        options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)],
        maximum_concurrent_rpcs=_WAITING,
    )
    add_NodeServiceServicer_to_server(node, server)  # type: ignore[no-untyped-call]
    try:
        _bind(server, socket, group)
        server.start()
        logger.info("listening for the ClientApp")
        yield server
    finally:
        server.stop(None).wait()
        socket.unlink(missing_ok=True)
        lock.release()


def _bind(server: grpc.Server, socket: Path, group: str) -> None:
    before = os.umask(0o117)  # nobody else gets a moment to connect
    try:
        server.add_insecure_port(f"unix:{socket.resolve()}")
        if group:
            shutil.chown(socket, group=group)
    except (RuntimeError, OSError, LookupError) as err:
        raise SettingError(
            "--socket cannot be made: name a path of at most 100 letters in a folder that can be written, and a "
            "--socket-group that exists",
            str(err),
        ) from None
    finally:
        os.umask(before)
