"""What a strategy knows after each round of one method: kept in the journal, taken over when a run is resumed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pdss_fl.journal import Journal
from pdss_fl.messages import PrivacyStatement
from pdss_fl.usage import Usage


@dataclass
class MethodState:
    """All that a method's strategy has to know to go on after its last whole round.

    Parameters
    ----------
    results : dict[int, dict]
        Summed metrics of every whole round.
    trained : set[int]
        Nodes that have a small model of this method.
    client_metrics, left_out, unshared, statements, usage
        As in ``StepByStepDistillation``.
    """

    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    trained: set[int] = field(default_factory=set)
    client_metrics: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    unshared: list[dict[str, Any]] = field(default_factory=list)
    statements: dict[int, PrivacyStatement] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def restored(cls, journal: Journal | None, method: str) -> MethodState:
        """Return the state after the last whole round that a journal knows; a fresh one if there is none."""
        found = journal.last("round", method) if journal else None
        if found is None:
            return cls()
        return cls(
            {int(number): metrics for number, metrics in found["results"].items()},
            set(found["trained"]),
            found["client_metrics"],
            found.get("left_out", []),
            found.get("unshared", []),
            {int(node): PrivacyStatement(**claim) for node, claim in found["statements"].items()},
            Usage(**found["usage"]),
        )

    def keep(self, journal: Journal | None, method: str, server_round: int, result: dict[str, Any]) -> None:
        """Call a round whole, with its summed metrics."""
        self.results[server_round] = result
        if journal is not None:
            journal.add(
                "round",
                method=method,
                round=server_round,
                results=self.results,
                trained=sorted(self.trained),
                client_metrics=self.client_metrics,
                left_out=self.left_out,
                unshared=self.unshared,
                statements={node: vars(claim) for node, claim in self.statements.items()},
                usage=vars(self.usage),
            )


def begun_with(journal: Journal | None, method: str, server_round: int, there: Collection[int]) -> list[int] | None:
    """Return the nodes that an interrupted round had begun with; ``None`` if unknown, or if one is not there."""
    found = journal.last("sample", method, server_round) if journal else None
    return list(found["nodes"]) if found is not None and set(found["nodes"]) <= set(there) else None
