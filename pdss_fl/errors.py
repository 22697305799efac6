"""The project's exceptions: a public message that may leave the machine, a private detail that may not.

PdssError
├── SettingError        a setting is missing, unknown or out of range
├── PolicyRefusal       the run asks for more than the node allows
├── DataError           a data file cannot be read or an example is malformed
├── BudgetExhausted     every example has spent what its node allows
├── MessageError        a batch is empty, truncated, oversized, of another version or out of order
├── LLMUnavailable      the LLM cannot be loaded or reached, or gave up
│   ├── Busy            as many prompts wait for the LLM as its bound allows
│   └── LLMFailed       the LLM failed on every prompt of a request
├── StoreError          the node's own files cannot be written or read
└── QuorumLost          too few clients answered a step for the run to go on
"""

from __future__ import annotations


class PdssError(Exception):
    """Base of all errors that this project raises on purpose.

    Parameters
    ----------
    public : str
        What any party may read: names of settings, limits and remedies, never text of the data.
    private : str (default: "")
        What only the machine that raised it may show, for example a path or a line number.
        It is not part of ``str(error)``, so that an error that travels carries none of it.
    """

    code = 100

    def __init__(self, public: str, private: str = "") -> None:
        super().__init__(public)
        self.public = public
        self.private = private

    @property
    def local(self) -> str:
        """Both parts in one line, for the screen and the log of this machine only."""
        return f"{self.public} ({self.private})" if self.private else self.public


class SettingError(PdssError):
    """A setting is missing, unknown or out of range; the message names it, its value and a remedy."""

    code = 101


class PolicyRefusal(PdssError):
    """The run asks for more than the node's own policy allows; the message names the limit."""

    code = 102


class DataError(PdssError):
    """A data file cannot be read or an example is malformed."""

    code = 103


class BudgetExhausted(PdssError):
    """No example of the client has any budget left under the node's policy."""

    code = 104


class MessageError(PdssError):
    """A batch of prompts or rationales is not what its schema says."""

    code = 105


class LLMUnavailable(PdssError):
    """The LLM cannot be loaded or reached, or failed while it wrote."""

    code = 106


class Busy(LLMUnavailable):
    """As many prompts wait for the LLM as its bound allows; asking again later may help."""

    code = 109


class LLMFailed(LLMUnavailable):
    """The LLM failed on every prompt of a request; asking the same again does not help."""

    code = 110


class StoreError(PdssError):
    """The node's own files cannot be written or read."""

    code = 107


class QuorumLost(PdssError):
    """Too few clients answered a step for the run to go on."""

    code = 108
