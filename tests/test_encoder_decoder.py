"""Training an encoder-decoder from public data to a client that uses it: messages, resume, card, policy, decoding."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.client import DistillationClient
from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import facts, private_examples
from pdss_fl.data.public import PublicExample, public_built_in
from pdss_fl.encoder_decoder.lessons import PairSettings, lessons_of, prepare
from pdss_fl.encoder_decoder.making import Plan, make_encoder_decoder, public_data
from pdss_fl.encoder_decoder.word_groups import find_groups
from pdss_fl.errors import DataError, PolicyRefusal, SettingError
from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, RationaleBatch
from pdss_fl.policy import NodePolicy
from pdss_fl.slm.encoder_decoder import MANIFEST, load_encoder_decoder
from pdss_fl.slm.encoder_decoder_training import EncoderDecoderTraining
from pdss_fl.slm.model import SlmSettings
from pdss_fl.slm.rewriter import rewriter_name
from pdss_fl.vocabularies import load_perturber, load_vocabulary
from tests.harness import EchoGenerator, node
from tests.test_imports import reached_from

PUBLIC = public_built_in()[:60]
KINDS = {fact.thing: fact.kind for fact in facts("public")}


class Knowing(EchoGenerator):
    """An LLM that knows the kind of public things, and takes the first choice."""

    def generate(self, batch: PromptBatch, settings: GenerationSettings, *_: Any) -> Any:
        """Yield ``A robin is a bird. So the answer is ...``."""
        self.seen.append(PromptBatch.parse(batch.serialize()))
        for prompt in batch.prompts:
            thing = next((w for w in prompt.question.split() if w in KINDS), "thing")
            known = {(e.question, frozenset(e.choices)): e.answer for e in (p.example for p in PUBLIC)}
            answer = next(
                (a for (_, c), a in known.items() if c == frozenset(prompt.choices) and thing in _.lower()), "so"
            )
            text = f"{thing} is a {KINDS.get(thing, 'word')}. So the answer is {answer}."
            yield Rationale(prompt.ordinal, text, Finish.STOP, 9)


def settings_of(tiny: Path, **changes: Any) -> RunSettings:
    return RunSettings.from_run_config({"privacy.embeddings": str(tiny), **changes})


def plan_of(tiny: Path, steps: int = 3) -> Plan:
    sizes = SlmSettings(hidden_size=32, layers=1, max_tokens=128)
    return Plan(sizes, EncoderDecoderTraining(steps, batch_size=2), PairSettings(), settings_of(tiny))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    make_encoder_decoder(PUBLIC, plan_of(tiny), Knowing(), folder)
    return folder


def test_quadruples_come_through_the_messages_and_hold_public_text_only(tmp_path: Path, tiny: Path) -> None:
    llm = Knowing()
    quadruples, groups = prepare(PUBLIC, PairSettings(copies=2), settings_of(tiny), llm, tmp_path / "answers")
    assert 20 < len(quadruples) <= 2 * len(PUBLIC)
    assert {q.public for q in quadruples} <= set(PUBLIC)
    assert all(len(q.words) == len(q.perturbed) == 3 for q in quadruples)
    assert all(batch.privacy.kind == "none" for batch in llm.seen)  # nobody is promised anything of public prompts
    sent = {prompt.question for batch in llm.seen for prompt in batch.prompts}
    assert {" ".join(p.perturbed) for p in quadruples} <= sent  # the copies without noise
    private = {fact.thing for fact in facts("private")} - set(load_vocabulary("everyday", 830, str(tiny)).tokens)
    assert not {word for text in sent for word in text.split()} & private
    asked = {word for q in quadruples for word in q.words}
    assert groups.members
    for head, members in groups.members.items():  # of one group are things that the LLM says the same of
        assert {KINDS[word] for word in members if word in asked} == {KINDS[head]}


def test_a_killed_preparation_asks_for_what_is_missing_only(tmp_path: Path, tiny: Path) -> None:
    cache, first, again = tmp_path / "answers", Knowing(), Knowing()
    made, _ = prepare(PUBLIC, PairSettings(), settings_of(tiny), first, cache)
    lines = cache.read_text().rstrip().splitlines()
    cache.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:20])  # one answer missing, one cut in half
    progress: list[tuple[int, int]] = []
    resumed, _ = prepare(PUBLIC, PairSettings(), settings_of(tiny), again, cache, lambda *p: progress.append(p))
    assert sum(len(batch.prompts) for batch in again.seen) == 2
    assert resumed == made
    assert progress[-1] == (3 * len(PUBLIC), 3 * len(PUBLIC))


def test_choices_are_sent_as_choices(tmp_path: Path, tiny: Path) -> None:
    llm, changes = Knowing(), {"privacy.choices": 3, "privacy.choice-words": 2, "privacy.question-words": 2}
    settings = settings_of(tiny, **changes, **{"privacy.length": "exact"})
    quadruples, _ = prepare(PUBLIC[:8], PairSettings(copies=1), settings, llm, tmp_path / "a")
    rows = {(p.question, *p.choices) for batch in llm.seen for p in batch.prompts}
    for q in quadruples:
        assert len(q.words) == len(q.perturbed) == 2 + 3 * 2
        texts = [" ".join(q.perturbed[:2]), *(" ".join(q.perturbed[i : i + 2]) for i in (2, 4, 6))]
        assert tuple(texts) in rows
        assert q.released == tuple(text.replace("_", "").strip() for text in texts)


def test_pairs_of_a_mechanism_are_its_releases(tmp_path: Path, tiny: Path) -> None:
    pairs = PairSettings("exponential", epsilon=1.0, copies=1)
    quadruples, groups = prepare(PUBLIC[:20], pairs, settings_of(tiny), Knowing(), tmp_path / "a")
    assert sum(q.perturbed != q.words for q in quadruples) > len(quadruples) / 2
    make = lessons_of(groups, ("robin",), pairs)
    seen = [make(quadruples[0], Random(i)) for i in range(50)]
    assert {lesson.words for lesson in seen} == {(), quadruples[0].words}
    assert {lesson.target for lesson in seen} == {quadruples[0].perturbed}


def test_lessons_swap_a_word_on_all_sides_and_leave_the_rest(tmp_path: Path, tiny: Path) -> None:
    settings = settings_of(tiny)
    quadruples, groups = prepare(PUBLIC, PairSettings(copies=1), settings, Knowing(), tmp_path / "a")
    vocabulary = load_vocabulary("everyday", 830, str(tiny))
    make = lessons_of(groups, vocabulary.tokens, PairSettings())
    found = [
        (q, word, sent)
        for q in quadruples
        for word, sent in zip(q.words, q.sent, strict=True)
        if word in groups.head and word in q.rationale and sent not in ("_", word)
    ]
    quadruple, thing, sent = found[0]
    swapped = 0
    for i in range(60):
        lesson = make(quadruple, Random(i))
        assert len(lesson.target) == len(quadruple.words)
        assert lesson.request.rationale in ("", quadruple.perturbed_rationale)
        assert lesson.rationale.lower().startswith(sent)  # for align to replace
        other = lesson.request.example.question != quadruple.public.example.question
        if other and lesson.words:
            (new,) = set(lesson.words) - set(quadruple.words)
            assert new in lesson.request.example.question.lower()
            assert thing not in lesson.words
            swapped += 1
    assert swapped > 20


def test_groups_need_what_the_llm_says_and_nothing_private(tiny: Path) -> None:
    vocabulary = load_vocabulary("everyday", 830, str(tiny))
    documents = [("where", "robin", "find"), ("hawk", "find"), ("robin", "has"), ("hawk", "has"), ("oak", "find")]
    said = ["A robin is a bird.", "A hawk is a bird.", "Robins are birds.", "A hawk is a bird.", "An oak is a tree."]
    groups = find_groups(documents, said, vocabulary)
    assert groups.head["robin"] == groups.head["hawk"]
    assert "find" not in groups.head
    assert groups.canonical(["where", "robin"]) == ["where", groups.head["hawk"]]
    assert find_groups(documents, ["nothing"] * 5, vocabulary).head == {}


def test_the_card_says_what_it_was_trained_on_and_no_path(trained: Path, tmp_path: Path) -> None:
    card, manifest = (trained / "README.md").read_text(), json.loads((trained / MANIFEST).read_text())
    assert "no private data was used" in card
    assert manifest["private-examples"] == 0
    assert manifest["public-examples"] == {"built-in": len(PUBLIC)}
    assert manifest["pairs"] == {"mechanism": "groups", "epsilon": 7.0, "neighbours": 6, "copies": 2, "seed": 0}
    assert manifest["training"]["steps"] == 3
    assert set(manifest["losses"]) == {"encoder", "decoder"}
    for value in (manifest["weights-sha256"], manifest["public-sha256"], manifest["vocabulary-sha256"], "groups"):
        assert value in card
    assert str(trained.parent) not in card + json.dumps(manifest)
    assert load_encoder_decoder(str(trained)).max_tokens == 128


def test_the_same_plan_makes_the_same_model_and_a_finished_cache_asks_nothing(
    trained: Path, tmp_path: Path, tiny: Path
) -> None:
    again = tmp_path / "again"
    work = tmp_path / "again.work"
    work.mkdir()
    (work / "rationales.jsonl").write_bytes((trained.parent / "model.work" / "rationales.jsonl").read_bytes())
    llm = Knowing()
    make_encoder_decoder(PUBLIC, plan_of(tiny), llm, again)
    assert llm.seen == []
    assert json.loads((again / MANIFEST).read_text()) == json.loads((trained / MANIFEST).read_text())


def test_private_examples_stop_a_training_before_the_llm_sees_one(tmp_path: Path, tiny: Path) -> None:
    llm, private = Knowing(), list(private_examples()[:4])
    with pytest.raises(TypeError, match="PublicExample only"):
        make_encoder_decoder(private, plan_of(tiny), llm, tmp_path / "out")  # type: ignore[arg-type]
    assert llm.seen == []


def test_data_of_ones_own_is_held_against_the_nodes_of_this_machine(tmp_path: Path) -> None:
    rows = json.dumps({"question": "what is Alma's secret", "answer": "none"})
    (tmp_path / "node.jsonl").write_text(rows)
    (tmp_path / "public.jsonl").write_text(rows)
    policy = policy_file(tmp_path, tmp_path / "node.jsonl")
    with pytest.raises(SettingError, match="--policy FILE"):
        public_data(str(tmp_path / "public.jsonl"), [], False)
    with pytest.raises(DataError, match="1 of 1 examples"):
        public_data(str(tmp_path / "public.jsonl"), [policy], False)
    assert [type(p) for p in public_data(str(tmp_path / "public.jsonl"), [], True)] == [PublicExample]
    asked = [str(tmp_path / "o"), "--public", str(tmp_path / "node.jsonl"), "--policy", str(policy)]
    said = CliRunner().invoke(app, ["train-encoder-decoder", *asked])
    assert said.exit_code == 1
    assert not (tmp_path / "o").exists()


CSV = "stem,a,b,key\nWhat is Alma's secret?,gold,tin,gold\n"
OTHER_NAMES = json.dumps({"stem": "What is Alma's secret?", "a": "gold", "b": "tin", "key": "gold"})


@pytest.mark.parametrize(("name", "text"), [("node.csv", CSV), ("node.jsonl", OTHER_NAMES), ("folder", CSV)])
def test_a_nodes_data_is_recognised_in_whatever_form_it_is_written(tmp_path: Path, name: str, text: str) -> None:
    held = tmp_path / "held" / ("train.csv" if name == "folder" else name)
    held.parent.mkdir()
    held.write_text(text)
    form = "jsonl" if name == "node.jsonl" else "csv"
    own = {"data-format": form, "data-fields": "question=stem choices=a+b answer=key"}
    policy = policy_file(tmp_path, held.parent if name == "folder" else held, **own)
    public = tmp_path / "public.jsonl"
    public.write_text(json.dumps({"question": "what is Alma's secret", "answer": "none"}))
    with pytest.raises(DataError, match="1 of 1 examples of --public are among the node's private ones"):
        public_data(str(public), [policy], False)
    public.write_text(json.dumps({"question": "what is a kite", "answer": "toy"}))
    assert len(public_data(str(public), [policy], False)) == 1


@pytest.mark.parametrize("wrong", ["no file", "another form", "other names"])
def test_nothing_is_trained_beside_a_node_whose_data_cannot_be_read(tmp_path: Path, wrong: str) -> None:
    """It was taken to hold nothing, and a copy of its questions passed."""
    (tmp_path / "held").mkdir()
    if wrong != "no file":
        (tmp_path / "held" / ("train.csv" if wrong == "another form" else "train.jsonl")).write_text(OTHER_NAMES)
    policy = policy_file(tmp_path, tmp_path / "held")
    public = tmp_path / "public.jsonl"
    public.write_text(json.dumps({"question": "what is Alma's secret", "answer": "none"}))
    with pytest.raises(SettingError, match="nothing tells whether --public holds some of it") as caught:
        public_data(str(public), [policy], False)
    assert str(tmp_path) not in caught.value.public


def policy_file(folder: Path, data: Path, **more: Any) -> Path:
    path = folder / "policy.toml"
    config = node(folder / "state", data, **more)
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items()))
    return path


def test_an_llm_that_knows_no_answer_teaches_nothing(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"question": "what is a kite", "choices": ["toy", "tax"], "answer": "toy"})
    )
    config = f"llm.model='{tiny}' llm.max-new-tokens=4 privacy.embeddings='{tiny}' privacy.vocabulary='english'"
    asked = [str(tmp_path / "o"), "--public", str(tmp_path / "p.jsonl"), "--no-node", "-c", config]
    said = CliRunner().invoke(app, ["train-encoder-decoder", *asked, "-c", "privacy.vocabulary-size=200"])
    assert said.exit_code == 1
    assert "rationales state none of the answers" in said.stderr
    assert not (tmp_path / "o").exists()


def test_no_code_of_a_run_can_name_the_training() -> None:
    training = ("pdss_fl.encoder_decoder", "pdss_fl.slm.encoder_decoder_training", "pdss_fl.data.public")
    for entry in ("pdss_fl.client_app", "pdss_fl.server_app", "pdss_fl.strategy"):
        assert not {m for m in reached_from(entry) if m.startswith(training)}
    assert all(any(m.startswith(part) for m in reached_from("pdss_fl.encoder_decoder.making")) for part in training)


def test_a_node_names_the_encoder_decoders_that_a_run_may_use(tmp_path: Path, trained: Path) -> None:
    policy = NodePolicy.from_node_config(node(tmp_path, tmp_path / "d.jsonl", **{"allowed-models": "scratch m"}))
    for model in (str(trained), "scratch"):
        with pytest.raises(PolicyRefusal, match=r"encoder-decoder\.model = .*allowed-models"):
            policy._check_encoder_decoder(model)
    policy._check_encoder_decoder("m")
    policy._check_encoder_decoder("built-in")


def test_a_nodes_own_students_are_refused_even_by_name(tmp_path: Path) -> None:
    student = tmp_path / "runs" / "1" / "slm" / "pdss"
    policy = NodePolicy.from_node_config(
        node(tmp_path, tmp_path / "d.jsonl", **{"allowed-models": f"scratch smollm2-135m-instruct {student}"})
    )
    with pytest.raises(PolicyRefusal, match=r"encoder-decoder\.model lies in this node's state-dir"):
        policy.check_run(RunSettings.from_run_config({"encoder-decoder.model": str(student)}))


@pytest.mark.parametrize(("key", "more"), [("privacy.embeddings", {}), ("slm.model", {"sharing.mode": "fedavg"})])
@pytest.mark.parametrize("through", ["", "runs/../runs", "link"])
def test_no_model_from_which_something_leaves_lies_among_a_nodes_students(
    tmp_path: Path, key: str, more: dict[str, Any], through: str
) -> None:
    """What a node names as its slm-model is allowed for every use, and one of its students may be that."""
    state, student = tmp_path / "state", tmp_path / "state" / "runs" / "1" / "slm" / "pdss"
    student.mkdir(parents=True)
    (tmp_path / "link").symlink_to(student)
    named = {"": student, "link": tmp_path / "link"}.get(through, state / through / "1" / "slm" / "pdss")
    allowed = {"slm-model": str(named), "allow-sharing": "any", "allowed-models": "scratch smollm2-135m-instruct"}
    policy = NodePolicy.from_node_config(node(state, tmp_path / "d.jsonl", **allowed))
    settings = RunSettings.from_run_config({key: str(named), **more})
    with pytest.raises(PolicyRefusal, match=f"{key} lies in this node's state-dir"):
        policy.check_run(settings)


@pytest.mark.parametrize("name", ["empirical", "top", "dp-decoding", "difference-clipping", "composed"])
def test_every_encoder_mechanism_releases_what_the_named_model_scores(tiny: Path, trained: Path, name: str) -> None:
    changes = {"privacy.mechanism": f"encoder-{name}", "encoder-decoder.model": str(trained)}
    perturber = load_perturber(settings_of(tiny, **changes), f"encoder-{name}", 0)
    payloads = perturber.perturb(private_examples()[:3])
    assert [len(p["question"]) for p in payloads] == [3, 3, 3]
    assert {word for p in payloads for word in p["question"]} <= set(perturber.vocabulary.tokens)
    named = rewriter_name(str(trained), perturber.vocabulary.tokens, "test")
    assert f"model={named}" in perturber.recipe
    assert perturber.statement().kind == ("none" if name == "empirical" else "pure-ldp")


def test_a_client_decodes_with_the_trained_model(tmp_path: Path, tiny: Path, trained: Path) -> None:
    changes = {"encoder-decoder.model": str(trained), "distill.decoder": "trained", "distill.filter": "off",
               "data.train-examples": 6, "slm.hidden-size": 32, "slm.layers": 1, "distill.steps": 2}  # fmt: skip
    settings = settings_of(tiny, **changes)
    client = DistillationClient(settings, NodePolicy.simulation(tmp_path, settings), 0, 0, 2)
    batch = PromptBatch.parse(client.perturb("pdss", 1))
    written = tuple(sorted(EchoGenerator().generate(batch, GenerationSettings(8)), key=lambda r: r.ordinal))
    client.distill("pdss", 1, RationaleBatch(written, "echo").serialize())
    rows = client.store.load_rationales("pdss").values()
    slm = load_encoder_decoder(str(trained))
    assert len(rows) == 6
    assert all(row["decoded"] is None or row["decoded"] != row["raw"] for row in rows)
    known = set(slm.tokenizer.get_vocab())
    words = {word for row in rows for word in slm.tokenizer.tokenize(str(row["decoded"] or ""))}
    assert words <= known
    assert any(row["decoded"] for row in rows)
