"""What each client got out of a run: its accuracy by method, and what it gained over training on labels alone.

Computed from the counts that clients report, which their own ``metrics`` policy decides about: a client that
reports none is listed as such, and neither best nor worst.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from pdss_fl.messages import PrivacyStatement
from pdss_fl.results import accuracy

BASELINE = "standalone"
SHOWN = 20


def by_client(
    rows: Iterable[Mapping[str, Any]], statements: Mapping[str, Mapping[int, PrivacyStatement]]
) -> list[dict[str, Any]]:
    """Return one entry a client.

    Parameters
    ----------
    rows : Iterable[Mapping[str, Any]]
        As in ``metrics.jsonl``; the last evaluation of each client and method counts.
    statements : Mapping[str, Mapping[int, PrivacyStatement]]
        Of each method, by node id.

    Returns
    -------
    list[dict[str, Any]]
        Sorted by name: ``client`` (its number in a simulation, else its node id), ``node``, ``accuracy`` (a method:
        ``value``, ``low``, ``high``, ``n``; ``None`` where it reports nothing), ``gain`` (a method: percentage points
        of accuracy above Standalone, where both are reported) and ``privacy`` (of PDSS, as the client claimed).
    """
    evaluated = [row for row in rows if row["phase"] == "evaluate"]
    # A resumed simulation's clients have other node ids and the same numbers; one that two claim at once is nobody's.
    given = Counter((row.get("client"), row["method"], row.get("round")) for row in evaluated)
    doubtful = {client for (client, *_), nodes in given.items() if nodes > 1}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    claims: dict[tuple[str, int], PrivacyStatement] = {}
    for row in evaluated:
        node, client = int(row["node"]), row.get("client")
        key = ("node", node) if client is None or client in doubtful else ("client", int(client))
        entry = found.setdefault(key, {"client": row.get("client", node), "node": node, "accuracy": {}})
        entry["node"] = node
        total = int(row.get("num-examples", 0)) if "correct" in row else 0
        noise = float(row.get("noise-variance", 0.0))
        entry["accuracy"][row["method"]] = accuracy(int(row["correct"]), total, noise) if total else None
        if node in statements.get("pdss", {}):
            claims[key] = statements["pdss"][node]
    for key, entry in found.items():
        entry["gain"] = _gains(entry["accuracy"])
        claimed = claims.get(key)
        entry["privacy"] = dataclasses.asdict(claimed) if claimed else None
    return sorted(found.values(), key=lambda entry: entry["client"])


def spread(clients: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return of every method the ``worst`` and the ``best`` client's accuracy, and of its gains the least and the most.

    ``reported`` counts the clients that these are about, ``silent`` those that reported nothing.
    """
    entries = list(clients)
    found: dict[str, Any] = {}
    for method in dict.fromkeys(method for entry in entries for method in entry["accuracy"]):
        rows = [entry["accuracy"][method] for entry in entries if method in entry["accuracy"]]
        values = [row["value"] for row in rows if row]
        gains = [entry["gain"][method] for entry in entries if method in entry["gain"]]
        found[method] = {
            "worst": min(values, default=None),
            "best": max(values, default=None),
            "least_gain": min(gains, default=None),
            "most_gain": max(gains, default=None),
            "reported": len(values),
            "silent": len(rows) - len(values),
        }
    return found


def client_table(clients: list[Mapping[str, Any]]) -> Table:
    """Return the accuracies and gains of clients, the ``SHOWN`` that gained least if there are more."""
    methods = list(dict.fromkeys(method for entry in clients for method in entry["accuracy"]))
    gaining = [method for method in methods if any(method in entry["gain"] for entry in clients)]
    shown = sorted(clients, key=_least_first)[:SHOWN] if len(clients) > SHOWN else clients
    left_out = f" (the {SHOWN} of {len(clients)} that gained least)" if len(clients) > SHOWN else ""
    table = Table(title=f"By client{left_out}" + ("; gain over Standalone in points" if gaining else ""))
    table.add_column("client")
    for name in (*methods, *(f"{m} gain" for m in gaining), "epsilon"):
        table.add_column(name, justify="right")
    for entry in shown:
        cells = [_share(entry["accuracy"].get(method)) for method in methods]
        cells += [f"{entry['gain'][m]:+.1f}" if m in entry["gain"] else "" for m in gaining]
        privacy = entry["privacy"]
        table.add_row(str(entry["client"]), *cells, f"{privacy['epsilon_per_token']:.4g}" if privacy else "")
    return table


def spread_lines(found: Mapping[str, Any]) -> list[str]:
    """Return one line a method: worst and best client, and what they gained."""
    lines = []
    for method, row in found.items():
        silent = f"; {row['silent']} clients report nothing" if row["silent"] else ""
        if row["worst"] is None:
            lines.append(f"{method}: no client reports its accuracy")
            continue
        gained = ""
        if row["least_gain"] is not None:
            gained = f"; gain over Standalone {row['least_gain']:+.1f} to {row['most_gain']:+.1f} points"
        lines.append(f"{method}: worst client {row['worst']:.1%}, best {row['best']:.1%}{gained}{silent}")
    return lines


def _gains(accuracies: Mapping[str, Any]) -> dict[str, float]:
    base = accuracies.get(BASELINE)
    if not base:
        return {}
    trained = {m: row for m, row in accuracies.items() if row and m not in (BASELINE, "untrained")}
    return {method: 100 * (row["value"] - base["value"]) for method, row in trained.items()}


def _least_first(entry: Mapping[str, Any]) -> tuple[bool, float]:
    gains = entry["gain"].values()
    return (not gains, min(gains, default=0.0))


def _share(row: Mapping[str, Any] | None) -> str:
    return f"{row['value']:.1%}" if row else "not told"
