"""The committed encoder-decoder of the built-in set: what it says of itself, and what it does with private prompts."""

from __future__ import annotations

import json

import pytest

from pdss_fl.data.everyday import facts
from pdss_fl.data.public import public_built_in
from pdss_fl.encoder_decoder.card import describe
from pdss_fl.privacy import BLANK
from pdss_fl.slm.collator import encode_prompt
from pdss_fl.slm.encoder_decoder import BUILT_IN, MANIFEST, encoder_prompt, load_encoder_decoder, manifest_of
from pdss_fl.slm.generation import generate
from pdss_fl.slm.model import SmallModel

KINDS = {fact.thing: fact.kind for fact in (*facts("public"), *facts("private"))}


@pytest.fixture(scope="module")
def slm() -> SmallModel:
    return load_encoder_decoder(BUILT_IN)


def test_its_card_is_about_the_public_split_as_it_is(slm: SmallModel) -> None:
    manifest, folder = manifest_of(BUILT_IN)
    public = describe(public_built_in())
    assert {key: manifest[key] for key in public} == public
    assert manifest["private-examples"] == 0
    assert manifest["weights-sha256"] in (folder / "README.md").read_text()
    assert json.loads((folder / MANIFEST).read_text()) == manifest
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_it_writes_few_words_of_the_right_kind_for_many_private_things(slm: SmallModel) -> None:
    things = sorted({fact.thing for fact in facts("private")})[::4]
    prompts = [encode_prompt(slm, encoder_prompt(("where", "find", thing)), 6)[0] for thing in things]
    written = [text.split() for text in generate(slm, prompts, 6, 32)]
    assert all(words[:2] == ["where", "find"] and len(words) == 3 for words in written)
    released = [words[2] for words in written]
    right = sum(KINDS.get(word) == KINDS[thing] for word, thing in zip(released, things, strict=True))
    assert right > 0.7 * len(things)
    assert len(set(released)) < len(things) / 2
    assert BLANK not in released
