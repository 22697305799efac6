"""Both tasks in one pass against two passes, for every kind of model, and what may share a row."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from pdss_fl.data.example import Example
from pdss_fl.slm.collator import Row, collate
from pdss_fl.slm.loss import IGNORED, LABEL, RATIONALE, weighted_loss
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.packing import keeps_texts_apart, pack
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train
from tests.slm.seq2seq import FAMILIES, save_seq2seq

CAUSAL = ("scratch", "gpt2", "llama")
WEIGHT = 0.3


@pytest.fixture
def make(make_pretrained: Callable[..., Path], tmp_path: Path) -> Callable[[str], SmallModel]:
    def made(family: str) -> SmallModel:
        if family == "scratch":
            model = family
        elif family in FAMILIES:
            model = save_seq2seq(tmp_path, family)
        else:
            model = str(make_pretrained(family))
        return create_slm(SlmSettings(model, hidden_size=32, layers=2, max_tokens=96), ["what does a robin have"])

    return made


def _rows(slm: SmallModel) -> list[list[Row]]:
    """Rows with the end and the padding token everywhere, without a completion, cut, and without a rationale."""
    pad, end = slm.tokenizer.pad_token_id, slm.tokenizer.eos_token_id
    return [
        [Row([5, pad, end, 6], [7, end], LABEL, False), Row([5, 6], [9, pad, 8, end, 9, end], RATIONALE, False)],
        [Row([8, 9, 10], [11, 12], LABEL, True), Row([9], [], RATIONALE, False)],
        [Row([end], [end], LABEL, False)],
        [Row([4, 5, 6, 7, 8, 9], [end], LABEL, False), Row([4] * 30, [5] * 20, RATIONALE, True)],
    ]


def _one_by_one(slm: SmallModel, rows: list[Row]) -> torch.Tensor:
    """Return the mean loss of all completions, each read alone by the model's own ``labels``: nothing is padded."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        if row.completion:
            ids, labels = torch.tensor([row.prompt + row.completion]), [IGNORED] * len(row.prompt) + row.completion
            if slm.encoder_decoder:
                ids, labels = torch.tensor([row.prompt]), row.completion
            total = total + slm.model(input_ids=ids, labels=torch.tensor([labels])).loss * len(row.completion)
            count += len(row.completion)
    return total / count


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("family", [*CAUSAL, *FAMILIES])
def test_one_packed_pass_has_the_loss_and_gradients_of_two(
    family: str, several: bool, make: Callable[[str], SmallModel]
) -> None:
    slm = make(family)
    slm.model.double()
    examples = _rows(slm)
    tasks = [[row for rows in examples for row in rows if row.task == task] for task in (LABEL, RATIONALE)]
    weights = list(slm.model.parameters())
    packed = pack(slm, examples, several and not slm.encoder_decoder)
    loss, *parts = weighted_loss(*packed.token_losses(slm.model), WEIGHT)
    separate = [_one_by_one(slm, rows) for rows in tasks]
    expected = (1 - WEIGHT) * separate[0] + WEIGHT * separate[1]
    # Losses go through float32, as in training.
    torch.testing.assert_close(torch.stack(parts).double(), torch.stack(separate), rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    for gradient, reference in zip(found, torch.autograd.grad(expected, weights, allow_unused=True), strict=True):
        if reference is None:
            assert gradient is None or not gradient.any()
        else:
            torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-7)


def test_only_learned_positions_meet_the_vocabulary(make: Callable[[str], SmallModel]) -> None:
    for family in (*CAUSAL, *FAMILIES):
        slm = make(family)
        seen: list[torch.Size] = []
        head = slm.model.get_output_embeddings()
        head.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output.shape))
        losses, tasks = pack(slm, _rows(slm), several=family in CAUSAL).token_losses(slm.model)
        assert seen == [(1, 32, head.out_features)]
        assert Counter(tasks.tolist()) == {LABEL: 6, RATIONALE: 26}
        assert losses.shape == (32,)
        assert slm.model(torch.tensor([[1, 2]]), **_start(slm)).logits.dim() == 3, "the hooks are gone"


def _start(slm: SmallModel) -> dict[str, Any]:
    return {"decoder_input_ids": torch.tensor([[slm.decoder_start]])} if slm.encoder_decoder else {}


_ROW = st.builds(
    Row,
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), max_size=12),
    st.sampled_from((LABEL, RATIONALE)),
    st.just(False),
)
_SLM = create_slm(SlmSettings(hidden_size=32, layers=1, max_tokens=40), [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(_ROW, min_size=1, max_size=2), min_size=1, max_size=8))
def test_every_row_is_there_once_and_no_row_is_too_long(examples: list[list[Row]]) -> None:
    packed = pack(_SLM, examples, several=True)
    ids, places = packed.inputs["input_ids"], packed.inputs["position_ids"]
    rows = [row for some in examples for row in some]
    assert ids.shape[1] <= _SLM.max_tokens
    assert ids.numel() <= 2 * collate(rows, 0).input_ids.numel()
    found = Counter[tuple[tuple[int, ...], tuple[int, ...], int]]()
    for line, line_places, line_targets, line_tasks in zip(ids, places, packed.targets, packed.tasks, strict=True):
        starts = [*(line_places == 0).nonzero()[:, 0].tolist(), len(line)]
        for first, last in itertools.pairwise(starts):
            assert line_places[first:last].tolist() == list(range(last - first))
            learned = [t for t in line_targets[first:last].tolist() if t != IGNORED]
            text = line[first:last].tolist()
            found[tuple(text), tuple(learned), int(line_tasks[first])] += 1
    expected = Counter((tuple(r.prompt + r.completion), tuple(r.completion), r.task) for r in rows)
    assert not expected - found
    fillers = found - expected
    assert all(text == (_SLM.tokenizer.pad_token_id,) and not learned for text, learned, _ in fillers)


class Leaking(LlamaForCausalLM):
    """A Llama that takes positions but lets every token see all before it."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        kwargs["attention_mask"] = torch.ones_like(input_ids)
        return super().forward(input_ids, position_ids=position_ids, **kwargs)


def test_rows_are_shared_only_where_the_model_keeps_texts_apart(make: Callable[[str], SmallModel]) -> None:
    assert [keeps_texts_apart(make(family)) for family in (*CAUSAL, *FAMILIES)] == [True] * 3 + [False] * 2
    plain = make("llama")
    config = LlamaConfig(**plain.model.config.to_dict())
    leaking = SmallModel(Leaking(config), plain.tokenizer, plain.max_tokens)
    assert not keeps_texts_apart(leaking)


def test_a_model_without_positions_trains_nevertheless(
    make: Callable[[str], SmallModel], examples: list[Example]
) -> None:
    tokenizer = make("llama").tokenizer
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    bloom = SmallModel(BloomForCausalLM(config), tokenizer, 128)
    assert not keeps_texts_apart(bloom)
    losses: list[float] = []
    steps = TrainSettings(steps=40, batch_size=8, learning_rate=5e-3, rationale_weight=0.5)
    train(bloom, [TrainingItem(e, e.rationale) for e in examples], steps, lambda _step, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 2
