"""The commands that look at privacy mechanisms: ``pdss mechanisms``, ``perturb`` and ``audit``.

Their options are named like the run's ``privacy.*`` settings and checked as those are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pdss_fl.bundled import BUNDLED_MODEL
from pdss_fl.errors import SettingError

_Neighbours = Annotated[int | None, typer.Option(help="Size of a word's nearest set.")]
_Parameters = Annotated[str | None, typer.Option(help="The mechanism's own, as 'name=value name=value'.")]
_Vocabulary = Annotated[str | None, typer.Option(help="everyday (built in) or english.")]
_VocabularySize = Annotated[int | None, typer.Option(help="Words of the public vocabulary.")]
_Embeddings = Annotated[str | None, typer.Option(help="Public model: id or folder; the bundled LLM if not given.")]
_Words = Annotated[str | None, typer.Option(help="Which words of a text: content (the rarest) or all (the first).")]
_QuestionWords = Annotated[int | None, typer.Option(help="Words sent of a question.")]
_Choices = Annotated[int | None, typer.Option(help="Choices sent with a question.")]
_ChoiceWords = Annotated[int | None, typer.Option(help="Words sent of a choice.")]
_Length = Annotated[str | None, typer.Option(help="fixed, bucket or exact: what a text's length tells.")]


def add_privacy_commands(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (mechanisms, perturb, audit):
        app.command()(command)


def mechanisms() -> None:
    """List every installed privacy mechanism: kind, statement, and what it costs."""
    from pdss_fl.mechanism_report import print_mechanisms

    print_mechanisms(Console())


def perturb(
    file: Annotated[Path, typer.Argument(help="JSON lines with question and choices, or text, one a line.")],
    mechanism: Annotated[str | None, typer.Option(help="One of pdss mechanisms.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Per word; the run's default if not given.")] = None,
    neighbours: _Neighbours = None,
    parameters: _Parameters = None,
    vocabulary: _Vocabulary = None,
    vocabulary_size: _VocabularySize = None,
    embeddings: _Embeddings = None,
    length: _Length = None,
    words: _Words = None,
    question_words: _QuestionWords = None,
    choices: _Choices = None,
    choice_words: _ChoiceWords = None,
    all_words: Annotated[bool, typer.Option("--all-words", help="Whole texts, not what a run's shape sends.")] = False,
    format: Annotated[str, typer.Option(help="table, or json: one object a line.")] = "table",
) -> None:
    """Show side by side what would leave of a file's texts; nothing is sent and no ledger is charged."""
    from pdss_fl.perturb_report import json_lines, perturb_file, print_side_by_side
    from pdss_fl.privacy_report import privacy_settings

    shape = {"words": words, "question-words": question_words, "choices": choices, "choice-words": choice_words}
    shape["length"] = length
    if format not in ("table", "json"):
        raise SettingError(f"--format = {format!r}: expected table or json")
    if all_words and any(value is not None for value in shape.values()):
        raise SettingError("--all-words sends whole texts: leave out --words, --length and the numbers of words")
    settings = privacy_settings(
        {
            **shape, "mechanism": mechanism, "epsilon": epsilon, "neighbours": neighbours, "parameters": parameters,
            "vocabulary": vocabulary, "vocabulary-size": vocabulary_size, "embeddings": embeddings,
        }
    )  # fmt: skip
    rows, perturber = perturb_file(file, settings, all_words)
    if format == "json":
        for line in json_lines(rows, perturber):
            sys.stdout.write(line + "\n")
    else:
        print_side_by_side(Console(), rows, perturber)


def audit(
    mechanism: Annotated[list[str] | None, typer.Option(help="Repeat for several; the first is shown in full.")] = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="Repeat for several; models attack at the first.")] = None,
    data: Annotated[Path | None, typer.Option(help="JSON lines or text; the built-in questions if not given.")] = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("audit.html"),
    documents: Annotated[int, typer.Option(min=1, help="Texts that are attacked, at most.")] = 400,
    language_model: Annotated[str, typer.Option(help="Attacks as well: id or folder.")] = BUNDLED_MODEL,
    language_words: Annotated[int, typer.Option(min=0, help="Words it attacks; 0: none.")] = 45,
    masked_model: Annotated[str, typer.Option(help="Masked language model that attacks: id or folder.")] = "",
    neighbours: _Neighbours = None,
    parameters: _Parameters = None,
    vocabulary: _Vocabulary = None,
    vocabulary_size: _VocabularySize = None,
    embeddings: _Embeddings = None,
    length: _Length = None,
    words: _Words = None,
    question_words: _QuestionWords = None,
    choices: _Choices = None,
    choice_words: _ChoiceWords = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, draws and ties.")] = 0,
    slm: Annotated[Path | None, typer.Option(help="Instead: a small model's folder, for membership inference.")] = None,
    members: Annotated[
        Path | None, typer.Option(help="With --slm, if no run left it here: JSON lines that it learned.")
    ] = None,
    non_members: Annotated[
        Path | None, typer.Option(help="With --members: JSON lines like them that it never saw.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="With --slm: a model that saw neither, to set off hard questions.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="With --slm: the policy file of the deployed node whose run made the model.")
    ] = None,
) -> None:
    """Hold mechanisms' claims against exact measurement and attacks; exit code 1 if one does not hold.

    Without --mechanism, the run's own is compared with others. Language models attack the run's own, or all that
    are named. With --slm it tells instead how well members of a small model's training data are told from others: of a
    model that a run left, the client's training split from its test split.
    """
    if any(given is not None for given in (slm, members, non_members, reference, policy)):
        from pdss_fl.membership_report import report_membership

        report_membership(slm, members, non_members, reference, policy, Console())
        return
    from pdss_fl.audit_report.run import COMPARED, STEPS, Plan, run_audit
    from pdss_fl.privacy_report import privacy_settings

    settings = privacy_settings(
        {
            "mechanism": mechanism[0] if mechanism else None, "epsilon": epsilon[0] if epsilon else None,
            "neighbours": neighbours, "parameters": parameters, "vocabulary": vocabulary,
            "vocabulary-size": vocabulary_size, "embeddings": embeddings, "length": length, "words": words,
            "question-words": question_words, "choices": choices, "choice-words": choice_words,
        }
    )  # fmt: skip
    own, first = settings.privacy.mechanism, settings.privacy.epsilon
    named = tuple(dict.fromkeys(mechanism or (own, *COMPARED)))
    asked = tuple(dict.fromkeys(epsilon or [first + step for step in STEPS if first + step > 0]))
    plan = Plan(
        mechanisms=named,
        epsilons=asked,
        attacked=named if mechanism else (own,),
        data=data,
        documents=documents,
        language_words=language_words,
        language_model=language_model,
        masked_model=masked_model,
        seed=seed,
    )
    if not run_audit(settings, plan, output, "pdss " + " ".join(sys.argv[1:]), Console()):
        raise typer.Exit(1)
