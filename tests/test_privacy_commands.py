"""``pdss mechanisms``, ``perturb`` and ``audit`` as a user types them, with third parties' classes, true and false."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.privacy import mechanism

CANARY = "zanzibarqx4471993"
FOREIGN = '''
import math, torch
from pdss_fl.privacy import Identity, PrivacyGuarantee, PrivacyMechanism, Staircase

class Boaster(Staircase):
    """Claims half of what it has."""
    @property
    def guarantee(self):
        return PrivacyGuarantee("pure-ldp", self.epsilon / 2, 0.0, "token", "<script>alert('me')</script> & all")

class Forger(Identity):
    """States a uniform matrix and releases every word as it is."""
    @property
    def guarantee(self):
        return PrivacyGuarantee("pure-ldp", 1.0, 0.0, "token", "Forged.")
    def compose(self, tokens, delta):
        return PrivacyMechanism.compose(self, tokens, delta)
    def log_prob_rows(self, ids):
        size = len(self.vocabulary)
        return torch.full((len(ids), size), -math.log(size), dtype=torch.float64)

class Silent(Forger):
    """Claims epsilon 1, states no matrix, and releases every word as it is."""
    def log_prob_rows(self, ids):
        raise NotImplementedError("a secret")
'''
ENTRY_POINTS = """[pdss_fl.mechanisms]
boaster = pdss_foreign:Boaster
forger = pdss_foreign:Forger
silent = pdss_foreign:Silent
broken = pdss_nowhere:Nothing
"""


@pytest.fixture
def foreign(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have what looks like an installed package with entry points, and forget it afterwards."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "pdss_foreign.py").write_text(FOREIGN)
    info = folder / "pdss_foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pdss-foreign\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("pdss_foreign", None)
    for name in ("boaster", "forger", "silent"):
        mechanism._registered.pop(name, None)


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the small vocabularies of these tests out of the user's cache."""
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "pdss-cache"))


def pdss(*arguments: object) -> tuple[int, str, str]:
    """Return exit code, output and errors of one command."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def small(tiny: Path) -> list[object]:
    """Options for a vocabulary that is made in a second."""
    return ["--vocabulary", "english", "--vocabulary-size", 60, "--embeddings", tiny]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question": f"What can they do with {CANARY} at time {i}?", "choices": ["more time", "no one"],
         "answer": "more time"}
        for i in range(30)
    ]  # fmt: skip
    path = tmp_path / "quest<b>ions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.usefixtures("foreign")
def test_all_mechanisms_are_listed_and_a_broken_one_is_named() -> None:
    code, shown, _ = pdss("mechanisms")
    assert code == 0
    for part in ("staircase", "rantext-fate", "contextual", "boaster", "pure-ldp", "metric-ldp", "epsilon-min"):
        assert part in shown
    lines = [line for line in shown.splitlines() if line.startswith("left out:")]
    (left_out,) = [line for line in lines if "encoder-decoder.model" not in line]
    assert "broken" in left_out
    assert "fails to load" in left_out
    assert all(line.startswith("left out: encoder-") for line in lines if line != left_out), "they need a model"


@pytest.mark.usefixtures("cache")
def test_each_question_is_one_object_with_what_would_leave(tmp_path: Path, questions: Path, tiny: Path) -> None:
    code, shown, _ = pdss("perturb", questions, "--format", "json", *small(tiny))
    assert code == 0
    rows = [json.loads(line) for line in shown.splitlines()]
    assert len(rows) == 30
    for row in rows:
        assert CANARY in row["question"]
        assert CANARY not in row["perturbed"]
        assert len(row["perturbed"].split()) == len(row["chosen"]) == 3, "a run sends three words by default"
        assert row["words_not_sent"] > 0
        assert row["perturbed_choices"] == []
        assert (row["epsilon_per_token"], row["epsilon_per_document"]) == (7.0, 21.0)
    assert [path.name for path in tmp_path.iterdir()] == [questions.name], "no ledger, no file of any kind"


@pytest.mark.usefixtures("cache")
def test_all_words_of_plain_text_without_noise_are_its_own(tmp_path: Path, tiny: Path) -> None:
    text = tmp_path / "text"
    text.write_text(f"what time is it\n\nwhat time {CANARY} and time\n")
    arguments = ["--mechanism", "identity", "--all-words", *small(tiny)]
    _, shown, _ = pdss("perturb", text, "--format", "json", *arguments)
    first, second = (json.loads(line) for line in shown.splitlines())
    assert first["perturbed"] == "what time is it"
    assert second["perturbed"] == "what time thing and time"
    assert second["epsilon_per_token"] is None
    code, table, _ = pdss("perturb", text, *arguments)
    assert code == 0
    for part in ("stays here", f"{CANARY}(thing)", "Nothing is protected", "no ledger was charged", "100.0%"):
        assert part in table


@pytest.mark.usefixtures("cache")
def test_choices_stand_beside_what_would_leave_of_them(tmp_path: Path, questions: Path, tiny: Path) -> None:
    shape = ["--choices", 3, "--choice-words", 2, "--words", "all", "--question-words", 4]
    shape += ["--epsilon", 600, "--neighbours", 1]  # hardly any noise
    _, shown, _ = pdss("perturb", questions, "--format", "json", *shape, *small(tiny))
    orders = set()
    for row in map(json.loads, shown.splitlines()):
        assert row["perturbed"] == "what can they do"
        sent = dict(zip(row["choices"], row["perturbed_choices"], strict=True))
        assert sent == {"more time": "more time", "no one": "no one", None: "_ _"}
        orders.add(tuple(row["choices"]))
    assert len(orders) > 1, "in a fresh order for each"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--format", "xml"], "--format"),
        (["--mechanism", "magic"], "privacy.mechanism"),
        (["--epsilon", "0"], "privacy.epsilon"),
        (["--parameters", "scale=3"], "privacy.parameters"),
        (["--all-words", "--choices", "2"], "--all-words"),
        (["--vocabulary", "klingon"], "privacy.vocabulary"),
    ],
)
def test_wrong_options_give_one_clear_line(tmp_path: Path, questions: Path, arguments: list[str], what: str) -> None:
    code, shown, errors = pdss("perturb", questions, *arguments)
    assert (code, shown) == (1, "")
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert what in errors


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.classes: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.links.append(value or "")
            if name == "class" and tag == "tr":
                self.classes.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def audit(tmp_path: Path, tiny: Path, *arguments: object) -> tuple[int, str, Page]:
    """Run an audit over a small vocabulary, without language models unless asked for."""
    page = tmp_path / "page.html"
    code, shown, errors = pdss("audit", "--output", page, "--documents", 12, *small(tiny), *arguments)
    assert page.exists(), errors
    return code, shown, Page(page.read_text())


@pytest.mark.usefixtures("cache")
def test_sound_mechanisms_pass_on_a_users_file(tmp_path: Path, questions: Path, tiny: Path) -> None:
    names = ["staircase", "santext", "custext", "rantext", "contextual"]
    code, shown, page = audit(
        tmp_path, tiny, *(part for name in names for part in ("--mechanism", name)), "--data", questions,
        "--language-model", tiny, "--language-words", 4, "--choices", 2, "--epsilon", 3
    )  # fmt: skip
    assert code == 0, shown
    for attack in (
        "contextual Bayes", "generative reconstruction", "linkage, top 1", "answer by language model",
        "answer named in the rationale", "optimal context-free Bayes, exact",
    ):  # fmt: skip
        assert attack in shown
        assert attack in page.text
    for name in names:
        assert name in page.text
    assert "claims nothing" in page.text
    assert "No claim was found false" in page.text
    assert "released prefixes is 3" in page.text
    assert "epsilon 3 is nominal and does not hold" in page.text
    assert "for certain" in page.text, "custext's support mismatch is named by words"
    assert "fails" not in " ".join(page.classes)


@pytest.mark.usefixtures("cache", "foreign")
def test_the_page_loads_nothing_and_escapes_what_it_is_given(tmp_path: Path, questions: Path, tiny: Path) -> None:
    arguments = ["--mechanism", "boaster", "--data", questions, "--language-words", 0, "--epsilon", 3]
    _, _, page = audit(tmp_path, tiny, *arguments)
    assert page.tags.count("img") == 2
    assert not {"script", "link", "iframe", "object", "b>ions.jsonl"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in page.links)
    for link in page.links:
        if link.startswith("data:"):
            svg = base64.b64decode(link.split(",")[1]).decode()
            assert not re.findall(r"""(?:href|src)=["'](?!#)""", svg)
            assert "<script" not in svg
    assert "url(" not in (tmp_path / "page.html").read_text()
    assert "<script>alert('me')</script> & all" in page.text, "as text"
    assert questions.name in page.text
    assert CANARY not in page.text


@pytest.mark.usefixtures("cache", "foreign")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("boaster", "claims epsilon 1.5, but the worst case is 3"),
        ("forger", "above the cap"),
        ("silent", "so epsilon is at least"),
    ],
)
def test_a_false_claim_fails_by_name(tmp_path: Path, questions: Path, tiny: Path, name: str, why: str) -> None:
    arguments = ["--mechanism", "staircase", "--mechanism", name, "--data", questions, "--language-words", 0]
    code, shown, page = audit(tmp_path, tiny, *arguments, "--epsilon", 3)
    assert code == 1
    (line,) = {line.split(":")[1] for line in shown.splitlines() if line.startswith("FAILS:")}
    assert line.strip() == f"{name} at epsilon 3"
    assert why in shown
    assert why in page.text
    assert "The audit fails" in page.text
    assert "fails" in page.classes
