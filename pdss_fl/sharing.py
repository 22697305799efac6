"""The client's side of sharing weights: whether it may, and what goes into and comes out of a message."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, Message

from pdss_fl.client import DistillationClient
from pdss_fl.errors import MessageError
from pdss_fl.replies import ARRAYS

UNTRAINED = "untrained"


def adopt_average(client: DistillationClient, method: str, msg: Message) -> None:
    """Put the averaged weights of a message, if it carries any, into the client's small model of a method.

    A client whose small model is another one leaves them alone: a strategy does not know that before its first round.

    Raises
    ------
    MessageError
        If the run does not share weights, they are for the untrained model, which all others start from, or they
        are not of this client's model.
    """
    record = msg.content.get(ARRAYS)
    if record is None or client.unshared:
        return
    if not client.shares or method == UNTRAINED:
        raise MessageError("the request carries weights where none are shared (sharing.mode, method)")
    try:
        if not isinstance(record, ArrayRecord):
            raise TypeError
        state = {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}
    except Exception:  # whatever bytes a server may send
        raise MessageError("the request's weights cannot be read") from None
    client.models.adopt(method, state)


def weights_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Return weights as they travel."""
    return ArrayRecord(OrderedDict(state))
