"""``StepByStepDistillation``: the Flower strategy that trades perturbed prompts for rationales.

A round of ``FedAvg.start`` becomes: ask every client for perturbed prompts (``query.perturb``), let the
LLM write one rationale for each, send them back (``train.distill``), let clients evaluate. What this
side sees is perturbed prompts, counts, and the metrics that a node's policy allows. Over the direct channel
clients ask the LLM themselves, so that ``train.distill`` is the only trip before they train.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from pdss_fl.attendance import Attendance
from pdss_fl.averages import AVERAGES, Averages
from pdss_fl.averaging import OWN_MODEL
from pdss_fl.direct import Offer, direct_reports
from pdss_fl.journal import Journal
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.messages import MAX_PROMPTS, GenerationSettings
from pdss_fl.participants import connected, draw
from pdss_fl.prompting import PERTURB, read_prompts, write_rationales
from pdss_fl.replies import ARRAYS, reported_client, reported_counts
from pdss_fl.resume import RunName
from pdss_fl.rounds import MethodState, begun_with
from pdss_fl.sharing_settings import PLAIN, SharingSettings

logger = logging.getLogger("pdss_fl.strategy")

STANDALONE = "standalone"


class StepByStepDistillation(FedAvg):
    """Ask clients for perturbed prompts, answer with rationales, let them train.

    Source: PDSS (https://arxiv.org/abs/2406.12403). Unless ``sharing`` is on no weights travel: each client keeps
    a small model of its own, and ``ArrayRecord`` stays empty.

    Parameters
    ----------
    generator : RationaleGenerator | None
        Writes the rationales, in process or behind an address; ``None`` for ``method="standalone"``.
    method : str (default: "pdss")
        Sent to clients, which keep one small model a method. ``standalone`` asks for no prompts.
    generation : GenerationSettings
        How the LLM is asked to write.
    quorum : int (default: 1)
        The run ends with ``QuorumLost`` when fewer clients than this answered a step; lost, late and
        failing clients are named in the log and left out of the round otherwise.
    perturb_timeout : float (default: 600.0)
        Seconds to wait for perturbed prompts, and before each step for ``quorum`` clients to be connected.
    max_prompts : int (default: MAX_PROMPTS)
        A client that sends more than it can have been asked for is left out, so that none floods the LLM.
    offer : Callable[[int], Offer] | None (default: None)
        Makes a node's way to the LLM server; turns the direct channel on, in which ``generator`` is not asked.
    run : RunName | None (default: None)
        Under which clients keep their files; without one a run cannot be resumed.
    journal : Journal | None (default: None)
        Keeps what this run has done: no whole round of it is done again, no answered prompt sent to the LLM again.
    sharing : bool (default: False)
        Clients send their small model's weights after each round, and go on from the average; who sends none keeps
        its own. After a round in which too few sent any, the average of the round before stays.
    average : SharingSettings (default: PLAIN)
        With ``sharing``, which of Flower's strategies makes the average, by its ``mode``; ``PLAIN`` is FedAvg.
    fraction_train, fraction_evaluate : float
        As in ``FedAvg``, but drawn by ``participants.draw``: every method trains the same clients in a round.
    seed : int (default: 0)
        Decides which clients are drawn.

    Attributes
    ----------
    usage : Usage
        Prompts, tokens and seconds so far.
    statements : dict[int, PrivacyStatement]
        What each client claimed about its last batch, by node id.
    client_metrics : list[dict]
        One row a client and phase, as the clients reported.
    left_out : list[dict]
        Who took no part in which step of which round, and why.
    unshared : list[dict]
        With ``sharing``, who trained in which round without being in the average, and why.
    failure_codes : set[int]
        Codes of the errors that clients answered with.
    on_metrics : Callable[[str, int, str, Mapping[str, float]], None] | None
        Told of each step's method, round, phase and sums; see ``pdss_fl.tracking.Callback``.
    """

    def __init__(
        self,
        generator: RationaleGenerator | None,
        *,
        method: str = "pdss",
        generation: GenerationSettings | None = None,
        quorum: int = 1,
        perturb_timeout: float = 600.0,
        max_prompts: int = MAX_PROMPTS,
        offer: Callable[[int], Offer] | None = None,
        run: RunName | None = None,
        journal: Journal | None = None,
        sharing: bool = False,
        average: SharingSettings = PLAIN,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=quorum,
            min_evaluate_nodes=quorum,
            min_available_nodes=quorum,
        )
        self.generator = generator
        self.method = method
        self.generation = generation or GenerationSettings()
        self.quorum = quorum
        self.perturb_timeout = perturb_timeout
        self.max_prompts = max_prompts
        self.offer = offer
        self.run = run
        self.journal = journal
        self.sharing = sharing
        self.seed = seed
        self._state = MethodState.restored(journal, method)
        self._whole = frozenset(self._state.results)  # rounds of an earlier start, which are not done again
        self.usage, self.statements = self._state.usage, self._state.statements
        self.client_metrics = self._state.client_metrics
        self._attendance = Attendance(method, quorum, self._state.left_out)
        self.left_out, self.failure_codes = self._state.left_out, self._attendance.failure_codes
        self.unshared = self._state.unshared
        folder = journal.path.parent / AVERAGES / method if journal is not None else None
        self._averages = Averages(folder, average, max(self._whole, default=0)) if sharing else None
        self.on_metrics: Callable[[str, int, str, Mapping[str, float]], None] | None = None
        self._sent: list[Message] = []
        self._sent_at = time.monotonic()

    def summary(self) -> None:
        """Log what this strategy does, in one line instead of FedAvg's table."""
        logger.info("method %s, quorum of %d clients", self.method, self.quorum)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Collect perturbed prompts and address the LLM's answers to their clients, or send them to the LLM."""
        if server_round in self._whole:
            return []
        node_ids = self._sample(grid, server_round)
        config = self._config(config, server_round)
        if self.method == STANDALONE or self.offer is not None:
            contents = self._orders(node_ids, config)
        else:
            contents = self._rationales(grid, node_ids, config, server_round)
        self._hand_out(arrays, contents)
        return self._remember(_requests(contents, "train.distill", server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep what clients reported; average their weights if they share them."""
        if server_round in self._whole:
            return (self._averages.kept(server_round) if self._averages else None), None
        answered = self._attendance.answered("distill", server_round, self._sent, replies)
        self._state.trained |= set(answered)
        if self.offer is not None and self.method != STANDALONE:
            for node, report in direct_reports(answered).items():
                self.statements[node] = report.statement
                self.usage.prompts += report.prompts
                self.usage.tokens += report.tokens
        average, unshared = self._averages.add(server_round, answered) if self._averages else (None, {})
        for node, why in unshared.items():
            self.unshared.append({"method": self.method, "round": server_round, "node": node, "why": why})
        return average, self._aggregate("distill", server_round, answered)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to evaluate the method's small model on their own held-out questions."""
        if server_round in self._whole:
            return []
        # A client that has not trained has nothing to evaluate.
        node_ids = [
            node for node in self._draw(grid, self.fraction_evaluate, server_round) if node in self._state.trained
        ]
        config = self._config(config, server_round)
        contents = {node: RecordDict({"config": config}) for node in node_ids}
        self._hand_out(arrays, contents)
        return self._remember(_requests(contents, "evaluate", server_round))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add up right answers and questions over the clients; the round is whole then."""
        if server_round not in self._whole:
            answered = self._attendance.answered("evaluate", server_round, self._sent, replies)
            total = self._aggregate("evaluate", server_round, answered)
            self._state.keep(self.journal, self.method, server_round, dict(total))
        return MetricRecord(self._state.results[server_round])

    def evaluate_only(self, grid: Grid, timeout: float, rounds: int = 1) -> MetricRecord | None:
        """Evaluate without training, for the untrained model of all clients that ``rounds`` rounds would train."""
        for server_round in range(1, rounds + 1):
            self._state.trained |= set(self._draw(grid, self.fraction_train, server_round))
        requests = list(self.configure_evaluate(0, ArrayRecord(), ConfigRecord(), grid))
        return self.aggregate_evaluate(0, grid.send_and_receive(requests, timeout=timeout))

    def _sample(self, grid: Grid, server_round: int) -> list[int]:
        """Return the clients of a round: those it began with before it was interrupted, if all of them are there."""
        begun = begun_with(self.journal, self.method, server_round, list(grid.get_node_ids()))
        if begun is not None:
            return begun
        nodes = self._draw(grid, self.fraction_train, server_round)
        if self.journal is not None:
            self.journal.add("sample", method=self.method, round=server_round, nodes=nodes)
        return nodes

    def _draw(self, grid: Grid, fraction: float, server_round: int) -> list[int]:
        there = connected(grid, self.quorum, "quorum", self.perturb_timeout)
        return draw(there, max(int(len(there) * fraction), self.quorum), self.seed, server_round)

    def _config(self, config: ConfigRecord, server_round: int) -> ConfigRecord:
        config = ConfigRecord({**config, "method": self.method, "server-round": server_round})
        if self.run is not None:
            self.run.add_to(config)
        return config

    def _remember(self, requests: list[Message]) -> list[Message]:
        self._sent, self._sent_at = requests, time.monotonic()
        return requests

    def _hand_out(self, arrays: ArrayRecord, contents: Mapping[int, RecordDict]) -> None:
        """Put the average into what clients are sent, unless they are known to have a small model of their own."""
        if self.sharing and arrays:
            apart = {row["node"] for row in self.unshared if row["why"] == OWN_MODEL}
            for node in contents.keys() - apart:
                contents[node][ARRAYS] = arrays

    def _orders(self, node_ids: Iterable[int], config: ConfigRecord) -> dict[int, RecordDict]:
        """Tell clients to train: on their labels alone, or with what the LLM server tells them directly."""
        contents = {node: RecordDict({"config": config}) for node in node_ids}
        if self.offer is not None and self.method != STANDALONE:
            for node, content in contents.items():
                self.offer(node).add_to(content)
        return contents

    def _rationales(
        self, grid: Grid, node_ids: Iterable[int], config: ConfigRecord, server_round: int
    ) -> dict[int, RecordDict]:
        """Collect perturbed prompts, let the LLM answer them, and return what each client is sent."""
        if self.generator is None:
            raise ValueError(f"method {self.method!r} needs a generator")
        started = time.monotonic()
        requests = _requests(dict.fromkeys(node_ids, RecordDict({"config": config})), PERTURB, server_round)
        replies = grid.send_and_receive(requests, timeout=self.perturb_timeout)
        batches = read_prompts(requests, replies, server_round, self.max_prompts, self._attendance, self.usage)
        self.statements |= {node: batch.privacy for node, batch in batches.items()}
        self.usage.add_seconds("perturb", started)
        answers = write_rationales(
            self.generator, batches, self.generation, self.journal, server_round, self._attendance, self.usage
        )
        payloads = {node: batch.serialize() for node, batch in answers.items()}
        self.usage.rationale_bytes += sum(map(len, payloads.values()))
        return {
            node: RecordDict({"config": config, "rationales": ConfigRecord({"payload": payload})})
            for node, payload in payloads.items()
        }

    def _aggregate(self, phase: str, server_round: int, answered: Mapping[int, Message]) -> MetricRecord:
        self.usage.add_seconds(phase, self._sent_at)
        total: dict[str, int | float] = {"num-examples": 0}
        for node, reply in answered.items():
            metrics = reported_counts(reply)
            row: dict[str, str | int] = {"method": self.method, "round": server_round, "phase": phase, "node": node}
            self.client_metrics.append({**row, **reported_client(reply), **metrics})
            for key, value in metrics.items():
                total[key] = total.get(key, 0) + value
        if self.on_metrics is not None:
            self.on_metrics(self.method, server_round, phase, total)
        return MetricRecord(dict(total))


def _requests(contents: Mapping[int, RecordDict], message_type: str, server_round: int) -> list[Message]:
    return [Message(content, node, message_type, group_id=str(server_round)) for node, content in contents.items()]
