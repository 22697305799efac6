"""A client's small models in one run: one a method, all from one initial model, each saved whole after every change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pdss_fl.bundled import BUNDLED_MODEL, bundled_model_path
from pdss_fl.choices import kept_private
from pdss_fl.config import SCRATCH, RunSettings
from pdss_fl.data.example import Example
from pdss_fl.errors import MessageError, StoreError
from pdss_fl.policy import NodePolicy
from pdss_fl.sharing_settings import OFF
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.sharing import load_shared, low_rank_updates, shared_state, updates_file
from pdss_fl.store import ClientStore
from pdss_fl.vocabularies import load_vocabulary

_INITIAL = "untrained"


class SmallModels:
    """The small models of one client in one run.

    Parameters
    ----------
    settings : RunSettings
        The run's, with the node's own choices in them.
    policy : NodePolicy
        What the node allows.
    store : ClientStore
        Where they are kept.
    examples : Sequence[Example]
        Those that are trained on: a from-scratch tokenizer that stays here takes words from them.
    """

    def __init__(
        self, settings: RunSettings, policy: NodePolicy, store: ClientStore, examples: Sequence[Example]
    ) -> None:
        self._settings, self._policy, self._store, self._examples = settings, policy, store, examples
        self._shares = settings.sharing.mode != OFF
        self._shares_updates = self._shares and settings.slm.lora_rank > 0

    def load(self, method: str) -> SmallModel:
        """Return a method's small model, or where it has none yet the initial one that all methods share."""
        if self._store.has_slm(method):
            return SmallModel.load(self._store.slm_directory(method))
        if not self._store.has_slm(_INITIAL):
            slm = self._settings.slm
            model = str(bundled_model_path()) if slm.model == BUNDLED_MODEL else slm.model
            sizes = SlmSettings(model, slm.hidden_size, slm.layers, self._settings.seed, slm.max_tokens, slm.dtype)
            with kept_private(self._policy.choices, "slm.model"):
                self._store.save_slm(_INITIAL, create_slm(sizes, self._tokenizer_texts()).save)
        return SmallModel.load(self._store.slm_directory(_INITIAL))

    @contextmanager
    def changed(self, method: str, server_round: int) -> Iterator[SmallModel]:
        """Give a method's small model to be changed; without an error it is saved afterwards, as that of a round.

        Where low-rank updates alone are shared (``slm.lora-rank``), it is the initial one with those on it.
        """
        if not self._shares_updates:
            slm = self.load(method)
            yield slm
            self._store.save_slm(method, slm.save, server_round)
            return
        slm, folder = self.load(_INITIAL), self._store.slm_directory(method)
        with low_rank_updates(slm, self._settings.slm.lora_rank, self._settings.seed, folder):
            yield slm
            updates = shared_state(slm)

        def write(folder: Path) -> None:
            slm.save(folder)
            save_file(updates, updates_file(folder))

        self._store.save_slm(method, write, server_round)

    def shared(self, method: str, server_round: int) -> dict[str, torch.Tensor]:
        """Return the weights that leave this client after a round, where the run shares them; on a retry the same.

        Raises
        ------
        MessageError
            If the newest training is that of another round.
        """
        path = self._store.sent_weights(method, server_round)
        if not path.exists():
            if self._store.slm_round(method) != server_round:
                raise MessageError(f"the weights of round {server_round} are not kept any more, or not trained yet")
            self._store.save_sent(method, server_round, partial(save_file, self._trained(method)))
        return _read(path)

    def adopt(self, method: str, state: Mapping[str, torch.Tensor]) -> None:
        """Put averaged weights into a method's small model; raises ``MessageError`` if they are of another one."""
        done = self._store.slm_round(method)
        if done:
            self.shared(method, done)  # what was trained may not have left yet, and is kept for that
        with self.changed(method, done) as slm:
            load_shared(slm, state)

    def _trained(self, method: str) -> dict[str, torch.Tensor]:
        if self._shares_updates:
            return _read(updates_file(self._store.slm_directory(method)))
        return shared_state(self.load(method))

    def _tokenizer_texts(self) -> list[str]:
        """Texts from which a from-scratch model takes its words: public ones and, if it stays here, its own data's."""
        if self._settings.slm.model != SCRATCH:
            return []
        privacy = self._settings.privacy
        vocabulary = load_vocabulary(privacy.vocabulary, privacy.vocabulary_size, privacy.embeddings)
        # A shared model's tokens must be the same everywhere, and its words are told with its shape.
        private = [] if self._shares else self._examples
        own = [" ".join((e.question, *e.choices, e.answer)) for e in private]
        return [" ".join(vocabulary.tokens), *own]


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as err:
        raise StoreError("weights below this node's state-dir are damaged; remove them", f"{path}: {err}") from None
