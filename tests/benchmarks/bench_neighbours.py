"""How often a word's nearest words are of its own kind: hidden states against input embeddings.

Run: ``python tests/benchmarks/bench_neighbours.py``. Prints the share, over all things of the built-in set, of
each of the three nearest vocabulary words that is a thing of the same kind; both embeddings in one run.
"""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoTokenizer

from pdss_fl.bundled import bundled_model_path
from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import facts
from pdss_fl.privacy import Vocabulary
from pdss_fl.slm.embeddings import word_embeddings
from pdss_fl.vocabularies import vocabulary_words

KINDS = {fact.thing: fact.kind for split in ("public", "private") for fact in facts(split)}  # type: ignore[arg-type]


def input_embeddings(model: str, words: list[str]) -> torch.Tensor:
    """Return the mean row of the input embedding table over each word's tokens."""
    table = AutoModel.from_pretrained(model).get_input_embeddings().weight.detach().float()
    ids = AutoTokenizer.from_pretrained(model)([f" {word}" for word in words]).input_ids
    return torch.stack([table[i].mean(dim=0) for i in ids])


def same_kind(words: list[str], embeddings: torch.Tensor) -> list[float]:
    """Return, for the 1st, 2nd and 3rd nearest word, how often it is of the same kind."""
    vocabulary = Vocabulary(words, embeddings)
    things = [i for i, word in enumerate(words) if word in KINDS]
    near = vocabulary.neighbours(4)[things]
    tokens = vocabulary.tokens
    hits = [[KINDS.get(tokens[j]) == KINDS[tokens[row[0]]] for j in row[1:]] for row in near.tolist()]
    return torch.tensor(hits).double().mean(dim=0).tolist()


def main() -> None:
    """Print both shares and their ratio."""
    privacy = RunSettings().privacy
    words = vocabulary_words(privacy.vocabulary, privacy.vocabulary_size)
    model = str(bundled_model_path())
    ours, table = same_kind(words, word_embeddings(model, words)), same_kind(words, input_embeddings(model, words))
    print(f"{'nearest word':<14}{'hidden states':>15}{'input table':>13}{'ratio':>8}")
    for rank, (a, b) in enumerate(zip(ours, table, strict=True), start=1):
        print(f"{rank:<14}{a:>15.1%}{b:>13.1%}{a / b:>8.2f}")


if __name__ == "__main__":
    main()
