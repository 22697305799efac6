"""Flower mods of the client side."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from traceback import extract_tb

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable, Mod

from pdss_fl.errors import PdssError, SettingError
from pdss_fl.simulation import in_simulation

logger = logging.getLogger("pdss_fl.client")

UNEXPECTED = PdssError.code
_MASKING = ("secagg_mod", "secaggplus_mod")


def check_mods(mods: Iterable[Mod]) -> None:
    """Refuse mods of Flower that know ``train`` alone and hand on ``train.distill`` as it is, weights unmasked."""
    named = [name for name in _MASKING if name in {getattr(mod, "__name__", "") for mod in mods}]
    if named:
        raise SettingError(
            f"mods: {', '.join(named)} does not know this app's messages and would let shared weights pass unmasked: "
            "leave it out; sharing.epsilon keeps weights private"
        )


def error_guard_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer a failure with a code, and with text only where it was written to be public.

    Flower mails ``str(exception)``, and in simulation the whole traceback, to the server. This mod has
    to be the outermost one: of this project's own errors the public message leaves, of any other only
    that something failed (code 100). The rest stays in this machine's log.
    """
    try:
        return call_next(msg, context)
    except PdssError as err:
        # The private part holds paths, line numbers and system errors, never text of the data. A simulated
        # client's log reaches the SuperLink, which is on the submitter's machine like the data.
        logger.error("%s: %s", type(err).__name__, err.local)
        return Message(Error(err.code, err.public), reply_to=msg)
    except Exception as err:
        logger.error("%s in %s", type(err).__name__, msg.metadata.message_type, exc_info=not in_simulation())
        if in_simulation():
            logger.error("".join(f"{f.filename}:{f.lineno} in {f.name}\n" for f in extract_tb(err.__traceback__)))
        return Message(Error(UNEXPECTED, "the client failed; its own log says where"), reply_to=msg)
