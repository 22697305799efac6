"""What a client does in a run: perturb, decode, distil, evaluate; without Flower and without the LLM.

What each party sees: ``perturb`` returns the only bytes made from examples that leave the client
(perturbed words under the ledger's charge). ``distill`` takes the LLM's untrusted text and returns the number
of training examples. ``evaluate`` returns counts, if the node's policy allows.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence

from pdss_fl.choices import own_settings
from pdss_fl.client_data import load_data
from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import public_labels
from pdss_fl.errors import MessageError, SettingError, StoreError
from pdss_fl.evaluation import NOTHING, Counts, allowed_level, noisy_counts
from pdss_fl.messages import RationaleBatch
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import BLANK, Ledger
from pdss_fl.private_training import train_under_charge
from pdss_fl.release import (
    Perturber,
    ReleasePlan,
    plan_release,
    release_prompts,
    resend_prompts,
    stored_payload,
    word_pairs,
)
from pdss_fl.sharing_settings import OFF
from pdss_fl.slm.decoder import DecodeRequest, InContextDecoder, align, keep_rationales
from pdss_fl.slm.encoder_decoder import TrainedDecoder, load_encoder_decoder
from pdss_fl.slm.evaluate import evaluate
from pdss_fl.slm.trainer import TrainingItem, train
from pdss_fl.small_models import SmallModels
from pdss_fl.store import ClientStore
from pdss_fl.training import train_settings, training_progress
from pdss_fl.vocabularies import load_perturber

logger = logging.getLogger("pdss_fl.client")

Metrics = Counts


class DistillationClient:
    """One client in one run.

    Parameters
    ----------
    settings : RunSettings
        What the run asks for; the node's own choices take their place.
    policy : NodePolicy
        What the node allows; checked here, before any work.
    run_id : int | str
        Names the client's files of this run: Flower's id, or ``RunName.folder`` for a run that can be resumed.
    partition_id, num_partitions : int
        Which part of the data a simulated client holds; 0 and 1 for a deployed one.

    Attributes
    ----------
    unshared : bool
        Whether the run averages small models, but not this client's, which is another one.
    """

    def __init__(
        self,
        settings: RunSettings,
        policy: NodePolicy,
        run_id: int | str,
        partition_id: int = 0,
        num_partitions: int = 1,
    ) -> None:
        averages = settings.sharing.mode != OFF
        settings = own_settings(settings, policy.choices, policy.simulated)
        self.unshared = averages and settings.sharing.mode == OFF
        policy.check_run(settings)
        self.settings, self.policy = settings, policy
        self.partition_id = partition_id
        self.name = str(run_id)
        directory = policy.state_dir if policy.simulated else policy.state_dir / "runs" / self.name
        self.store = ClientStore(directory)
        self.ledger = Ledger(policy.state_dir / "ledger.jsonl", policy.max_epsilon_per_example)
        self.train_examples, self.test_examples = load_data(settings, policy, partition_id, num_partitions)
        self.models = SmallModels(settings, policy, self.store, self.train_examples)
        if "pdss" in settings.method_names:  # a wrong mechanism is refused before any work, whatever comes first
            self._perturber("pdss", 1)

    def perturb(self, method: str, server_round: int) -> bytes:
        """Return the serialized batch of perturbed prompts of one round; the same again on a retry.

        Raises
        ------
        PolicyRefusal
            If the node does not allow the mechanism or its epsilon.
        BudgetExhausted
            If no example can pay any more.
        """
        self._check_round(server_round)
        perturber = self._perturber(method, server_round)
        if self.store.was_asked(method, server_round):
            asked = [self._example(key) for key in self.store.load_asked(method, server_round)]
            return resend_prompts(asked, 0, perturber, self.ledger).batch.serialize()
        examples, stored = self._slice(server_round), self.store.load_plan(method, server_round)
        plan = ReleasePlan(**stored) if stored else None
        if plan is None or plan.recipe != perturber.recipe:
            plan = plan_release(examples, perturber, self.ledger)
        self.store.save_plan(method, server_round, vars(plan))
        released = release_prompts(examples, perturber, self.ledger, plan)
        payload = released.batch.serialize()
        self.store.save_asked(method, server_round, [e.key for e in released.examples])
        self.store.save_plan(method, server_round, None)
        logger.info(
            "client %d: %s: releases %d prompts; %d left out by the ledger, %d words not sent",
            self.partition_id, method, len(released.examples), released.refused, released.truncated,
        )  # fmt: skip
        return payload

    def distill(self, method: str, server_round: int, payload: bytes | None) -> Metrics:
        """Decode a round's rationales, train the method's small model, and save it; on a retry do nothing.

        What is returned says nothing of the rationales: a loss would tell a server that chose them which ones
        agree with the labels.

        Parameters
        ----------
        method : str
            Names the small model; each method has one of its own.
        server_round : int
            1 .. num-server-rounds.
        payload : bytes | None
            The rationales of this round's prompts; ``None`` trains on labels alone.
        """
        self._check_round(server_round)
        done = self.store.load_metrics(method, server_round)
        if done is not None:
            return done
        if payload is not None:
            self._decode(method, server_round, payload)
        if self.store.slm_round(method) < server_round:
            self._train(method, server_round)
        metrics: Metrics = {"num-examples": len(self.train_examples)}
        self.store.save_metrics(method, server_round, metrics)
        self.store.checkpoint(method, server_round).unlink(missing_ok=True)
        return metrics

    def _train(self, method: str, server_round: int) -> None:
        """Train a method's small model for one round, from the last checkpoint if there is one, and save it."""
        self.store.note_split([e.key for e in self.train_examples], [e.key for e in self.test_examples])
        rationales = self.store.load_rationales(method)
        items = [TrainingItem(e, rationales.get(e.key, {}).get("decoded")) for e in self.train_examples]
        used = any(item.rationale is not None for item in items)
        if self.settings.sharing.epsilon:  # what is trained on may not depend on any one example
            used = bool(rationales)
        asked = train_settings(self.settings, server_round, used)
        progress = training_progress(self.partition_id, method, asked.steps)
        with self.models.changed(method, server_round) as slm:
            if self.settings.sharing.epsilon:
                cut = train_under_charge(slm, items, asked, self.settings, self.ledger, progress)
            else:
                cut = train(slm, items, asked, progress, self.store.checkpoint(method, server_round)).truncated
        if cut:
            logger.warning(
                "client %d: %s: %d training rows cut to slm.max-tokens = %d", self.partition_id, method, cut,
                self.settings.slm.max_tokens,
            )  # fmt: skip

    def evaluate(self, method: str, server_round: int = 0) -> Metrics:
        """Answer the client's held-out questions with a method's small model; on a retry report the same again.

        What is reported is bounded by the node's policy; ``pdss_fl.evaluation`` says how.
        """
        if server_round:
            self._check_round(server_round)
        level = allowed_level(self.policy, self.settings, len(self.test_examples))
        if level == "none":
            return dict(NOTHING)
        done = self.store.load_evaluation(method, server_round)
        if done is not None:
            return done
        if method != "untrained" and not self.store.has_slm(method):
            raise StoreError(
                f"this client has not trained method {method!r} in this run, so it has nothing to evaluate"
            )
        outcome = evaluate(self.models.load(method), self.test_examples)
        counts: Metrics = {"num-examples": outcome.total, "correct": outcome.correct}
        if level == "noisy":
            evaluation = f"client {self.partition_id} {method} {server_round}"
            counts = noisy_counts(outcome.correct, outcome.total, self.name, evaluation, self.policy, self.settings)
        if counts["num-examples"]:
            self.store.save_evaluation(method, server_round, counts)
        return counts

    @property
    def shares(self) -> bool:
        """Whether this run averages small models; the node's policy was asked."""
        return self.settings.sharing.mode != OFF

    def _perturber(self, method: str, server_round: int) -> Perturber:
        name = IDENTITY if method == "dss" else self.settings.privacy.mechanism
        seed = self.settings.insecure_noise_seed
        noise_seed = None if seed < 0 else zlib.crc32(f"{seed}/{self.partition_id}/{name}/{server_round}".encode())
        perturber = load_perturber(self.settings, name, noise_seed, self._labels())
        guarantee = perturber.mechanism.guarantee
        self.policy.check_mechanism(name, guarantee.kind, guarantee.epsilon)
        return perturber

    def _labels(self) -> tuple[str, ...]:
        """Return the labels that may be sent as they are: the node's own, in a simulation those of the data."""
        if not self.settings.data.public_choices:
            return ()
        return self.policy.public_choices or public_labels([*self.train_examples, *self.test_examples])

    def _check_round(self, server_round: int) -> None:
        """Refuse a round that the run does not have, so that no message cuts the examples at a place of its choice."""
        if not 1 <= server_round <= self.settings.num_server_rounds:
            raise MessageError(f"server-round = {server_round} is not one of 1 to {self.settings.num_server_rounds}")

    def _slice(self, server_round: int) -> list[Example]:
        """Each round asks for another part of the training examples, so that no example is asked twice."""
        part = self.train_examples[server_round - 1 :: self.settings.num_server_rounds]
        if not part:
            raise SettingError(
                f"num-server-rounds = {self.settings.num_server_rounds} is more than this client has training "
                "examples: lower it, or raise data.train-examples"
            )
        return part

    def _example(self, key: str) -> Example:
        for example in self.train_examples:
            if example.key == key:
                return example
        raise StoreError("this node's data changed during the run: an example that was sent is no longer there")

    def _decode(self, method: str, server_round: int, payload: bytes) -> None:
        asked = self.store.load_asked(method, server_round)
        if set(asked) <= self.store.load_rationales(method).keys():
            return  # decoded before this client was interrupted
        batch = RationaleBatch.parse(payload, len(asked))
        examples = [self._example(key) for key in asked]
        texts = [r.text for r in batch.rationales]
        decoded = self._decode_texts(self._perturber(method, server_round), examples, texts)
        kept = keep_rationales(decoded, examples, self.settings.distill.filter, self.settings.distill.rationale_words)
        rows = zip(asked, texts, decoded, kept, strict=True)
        stored = {key: {"raw": raw, "unfiltered": whole, "decoded": text} for key, raw, whole, text in rows}
        self.store.save_rationales(method, stored)
        logger.info("client %d: %s: decoded %d rationales", self.partition_id, method, len(kept))

    def _decode_texts(self, perturber: Perturber, examples: Sequence[Example], texts: Sequence[str]) -> list[str]:
        decoder = self.settings.distill.decoder
        if decoder == "none":
            return list(texts)
        payloads = [stored_payload(e, perturber, self.ledger) for e in examples]
        requests = [
            DecodeRequest(e, _said(p["question"]), tuple(filter(None, map(_said, p["choices"]))), text)
            for e, p, text in zip(examples, payloads, texts, strict=True)
        ]
        if decoder == "trained":  # it writes in the released words
            texts = TrainedDecoder(load_encoder_decoder(self.settings.encoder_decoder.model)).decode(requests)
        if decoder in ("align", "trained"):
            pairs = [word_pairs(e, p, perturber) for e, p in zip(examples, payloads, strict=True)]
            return [align(text, words) for text, words in zip(texts, pairs, strict=True)]
        return InContextDecoder(self.models.load("untrained")).decode(requests)


def _said(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word != BLANK)
