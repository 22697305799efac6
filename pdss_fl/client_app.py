"""The Flower ClientApp: ``query.perturb``, ``train.distill`` and ``evaluate``.

Over the direct channel ``train.distill`` carries an offer: the client then perturbs, asks the LLM server itself
and trains, in this one action, with the same bytes, charges and checks as over the relay.

In a deployment every message starts a process. Importing the libraries of models takes longer than anything else here,
so it waits until a client works: where ``pdss node`` is the client, only a message is handed on.

``app`` is what ``pyproject.toml`` names. To build your own, call ``create_client_app`` and add actions
or mods to what it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from pdss_fl.asking import ask
from pdss_fl.config import METHODS, RunSettings
from pdss_fl.direct import DirectReport, Offer
from pdss_fl.errors import MessageError
from pdss_fl.journal import Journal
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.tls import ClientTls
from pdss_fl.logs import configure_logging
from pdss_fl.messages import PromptBatch
from pdss_fl.mods import check_mods, error_guard_mod
from pdss_fl.policy import NodePolicy
from pdss_fl.relay import relay_mod
from pdss_fl.replies import ARRAYS, CLIENT
from pdss_fl.resume import RunName, fingerprint
from pdss_fl.simulation import in_simulation

if TYPE_CHECKING:
    from pdss_fl.client import DistillationClient, Metrics

PROMPTS, RATIONALES, CONFIG, METRICS, PAYLOAD = "prompts", "rationales", "config", "metrics", "payload"


def create_client_app(mods: Sequence[Mod] = ()) -> ClientApp:
    """Return a ClientApp with the three actions of a distillation.

    Parameters
    ----------
    mods : Sequence[Mod] (default: ())
        Run inside the error guard, which stays the outermost mod; not where a node relays to its own process.

    Raises
    ------
    SettingError
        For a mod that would do nothing here without saying so.
    """
    configure_logging()
    check_mods(mods)
    app = ClientApp(mods=[error_guard_mod, relay_mod, *mods])

    @app.query("perturb")
    def perturb(msg: Message, context: Context) -> Message:
        method, server_round = _asked(msg)
        client = _client(context, msg)
        with client.store.busy("perturb"):
            payload = client.perturb(method, server_round)
        return Message(RecordDict({PROMPTS: ConfigRecord({PAYLOAD: payload})}), reply_to=msg)

    @app.train("distill")
    def distill(msg: Message, context: Context) -> Message:
        from pdss_fl.sharing import UNTRAINED, adopt_average, weights_record

        method, server_round = _asked(msg)
        if method == UNTRAINED:
            raise MessageError("the untrained model is what all methods start from: it is not trained")
        offer, content, client = Offer.find_in(msg.content), RecordDict(), _client(context, msg)
        with client.store.busy("train"):
            if client.store.slm_round(method) < server_round:  # else a retry would lose what was trained
                adopt_average(client, method, msg)
            if offer is None:
                metrics = client.distill(method, server_round, _payload(msg))
            else:
                metrics, report = distill_directly(client, method, server_round, offer)
                report.add_to(content)
            if client.shares:
                content[ARRAYS] = weights_record(client.models.shared(method, server_round))
        content[METRICS] = MetricRecord(dict(metrics))
        return Message(content, reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        from pdss_fl.sharing import adopt_average

        method, server_round = _asked(msg)
        client = _client(context, msg)
        with client.store.busy("train"):
            adopt_average(client, method, msg)
            metrics = client.evaluate(method, server_round)
        if client.policy.simulated:  # so that results name it as the files of the run do
            metrics[CLIENT] = client.partition_id
        return Message(RecordDict({METRICS: MetricRecord(dict(metrics))}), reply_to=msg)

    return app


def distill_directly(
    client: DistillationClient, method: str, server_round: int, offer: Offer
) -> tuple[Metrics, DirectReport]:
    """Perturb a round's prompts, ask the LLM server of an offer, and train; on a retry ask and train nothing.

    The node's policy decides before anything is charged: whether the address may be asked at all, and which CA
    is trusted there. The server has to answer before the ledger is charged, too.

    Raises
    ------
    PolicyRefusal
        If the node does not allow the address.
    LLMUnavailable
        If the server cannot be reached or gives up.
    """
    policy = client.policy
    policy.check_llm_address(offer.address)
    roots = policy.llm_root_certificates
    remote = RemoteGenerator(
        offer.address,
        client.settings.llm.timeout,
        tls=ClientTls(roots, policy.llm_certificate, policy.llm_key) if roots else None,
        token=(lambda: offer.token) if offer.token else None,
    )
    try:
        _ = remote.info  # it is there
        batch = PromptBatch.parse(client.perturb(method, server_round))
        journal = Journal(client.store.directory / "answers.jsonl")
        answers = ask(remote, {0: batch}, offer.generation, journal, f"{method}/{server_round}/")[0]
    finally:
        remote.close()
    report = DirectReport(batch.privacy, len(answers.rationales), sum(r.tokens for r in answers.rationales))
    return client.distill(method, server_round, answers.serialize()), report


def _payload(msg: Message) -> bytes | None:
    record = msg.content.get(RATIONALES)
    if record is None:
        return None
    payload = record.get(PAYLOAD) if isinstance(record, ConfigRecord) else None
    if not isinstance(payload, bytes):
        raise MessageError("the request's rationales are not bytes")
    return payload


def _client(context: Context, msg: Message) -> DistillationClient:
    from pdss_fl.client import DistillationClient

    settings = RunSettings.from_run_config(context.run_config)
    name = RunName.find_in(msg.content.get(CONFIG), context.run_id)
    node = context.node_config
    if "state-dir" not in node and "policy" not in node and in_simulation():
        partition_id = int(node["partition-id"])
        state_dir = settings.run_directory(name.run_id) / "clients" / f"client-{partition_id}"
        policy = NodePolicy.simulation(state_dir, settings, partition_id)
        return DistillationClient(settings, policy, str(name.run_id), partition_id, int(node["num-partitions"]))
    client = DistillationClient(settings, NodePolicy.from_node_config(node), name.folder(settings))
    # Whether it shares is the client's own choice, too: what was trained while it did not may never leave.
    client.store.keep_to(fingerprint(replace(settings, sharing=client.settings.sharing)))
    client.store.note_settings(client.settings.flat())
    return client


def _asked(msg: Message) -> tuple[str, int]:
    config = msg.content.get(CONFIG)
    method = config.get("method") if config is not None else None
    server_round = config.get("server-round") if config is not None else None
    if method not in METHODS or type(server_round) is not int or server_round < 0:  # nor True
        raise MessageError("the request's config has no known `method`, or no `server-round`")
    return str(method), server_round


app = create_client_app()
