"""Abilities from files of the four published forms, their answers counted item by item."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peft_prune.errors import InvalidRequestError, UnsupportedModelError
from peft_prune.evaluation import (
    Ability,
    AbilityItem,
    Mean,
    Proportion,
    ability_outcomes,
    exactly_matches,
    has_label,
    load_ability,
    measure_ability,
    rouge_scores,
)
from peft_prune.models.chat import chat_prompt
from peft_prune.models.tokenization import prompt_ids
from tests.talking import dense_greedy, outspoken, sentences, spaced_tokenizer, speaking_model, speaking_tokenizer
from tests.tiny import tiny_gpt2

GSM8K = {"question": "2 + 3?\nThink.", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
SAMSUM = {"id": "1", "dialogue": "Ann: hi\r\nBob: hi", "summary": "They meet."}
QUESTION = {"question": "where is Rome", "answer": ["Italy", "the Italy"]}
TSV = 'index\tsentence1\tsentence2\tlabel\n0\tHe said "no.\tHe spoke.\tentailment\n1\tA\u2028b.\tC.\tnot_entailment\n'


def write(path: Path, records: list[dict]) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(records), encoding="utf-8")
    return path


def test_each_published_form_is_told_by_its_fields(tmp_path: Path) -> None:
    reasoning = load_ability(write(tmp_path / "a.jsonl", [GSM8K]))
    assert (reasoning.name, reasoning.metrics, reasoning.stop) == ("reasoning", ("solve_rate",), "\n\n")
    assert reasoning.items == (AbilityItem("Question: 2 + 3?\nThink.\nAnswer:", (GSM8K["answer"],)),)
    summaries = load_ability(write(tmp_path / "b.json", [SAMSUM]))
    assert (summaries.name, summaries.metrics) == ("summarization", ("rouge1", "rouge2", "rougeL"))
    assert summaries.items[0] == AbilityItem("Dialogue:\nAnn: hi\nBob: hi\nSummary:", ("They meet.",))
    questions = load_ability(write(tmp_path / "c.jsonl", [QUESTION]))
    assert (questions.name, questions.metrics) == ("question_answering", ("exact_match",))
    assert questions.items[0].answers == ("Italy", "the Italy")
    (tmp_path / "d.tsv").write_bytes(("\ufeff" + TSV.replace("\n", "\r\n")).encode())
    inference = load_ability(tmp_path / "d.tsv")
    assert (inference.name, inference.metrics) == ("inference", ("accuracy",))
    assert [item.answers for item in inference.items] == [("entailment",), ("not_entailment",)]
    assert 'Premise: He said "no.\n' in inference.items[0].prompt and "A\u2028b." in inference.items[1].prompt
    plain = load_ability(write(tmp_path / "e.json", [{"prompt": "a", "answer": "b"}]))
    assert (plain.name, plain.metrics) == ("other", ("match",))


@pytest.mark.parametrize(
    ("name", "ability", "count"),
    [
        ("test-reasoning.jsonl", "reasoning", 1319),
        ("test-summarization.json", "summarization", 818),
        ("test-OpenDomainQA.jsonl", "question_answering", 3610),
        ("test-NLI.tsv", "inference", 2489),
    ],
)
def test_the_papers_own_files_are_read_whole(shared: Path, name: str, ability: str, count: int) -> None:
    found = load_ability(shared / "data" / name)
    assert (found.name, len(found.items)) == (ability, count)


def test_a_limit_takes_items_from_the_whole_file_and_shots_are_not_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(10)])
    assert [item.prompt for item in load_ability(path, limit=3).items] == ["p0", "p3", "p6"]
    found = load_ability(path, shots=2)
    assert len(found.items) == 8 and found.items[0].prompt == "p8 a8\n\np9 a9\n\np0"


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("a.jsonl", [GSM8K, {**GSM8K, "answer": "five"}], "record 1: answer: 'five' must hold a number behind ####"),
        ("a.json", [SAMSUM, {"dialogue": "x"}], "record 1: summary: is missing"),
        ("a.json", [SAMSUM, "x"], "record 1: must be an object, is str"),
        ("a.jsonl", [QUESTION, {**QUESTION, "answer": []}], r"record 1: answer: \[\] must be a non-empty list"),
        ("a.json", [{"text": "x"}], r"record 0: has none of the forms \(question, answer\)"),
        ("a.json", [{"prompt": "a", "answer": " "}], "record 0: answer: ' ' must be a non-empty string"),
    ],
)
def test_a_malformed_file_names_the_record_and_the_field(tmp_path: Path, name, records, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        load_ability(write(tmp_path / name, records))


def test_a_table_of_inferences_names_what_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(TSV + "2\tA.\tB.\tmaybe\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="record 2: label: 'maybe' is not one of entailment, not_entailment"):
        load_ability(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text(TSV.splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=r"b.tsv: holds no records"):
        load_ability(tmp_path / "b.tsv")


@pytest.mark.parametrize("options", [{"limit": 0}, {"shots": 3}, {"shots": -1}])
def test_options_that_leave_nothing_are_named(tmp_path: Path, options: dict) -> None:
    path = write(tmp_path / "a.json", [{"prompt": f"p{i}", "answer": "a"} for i in range(3)])
    with pytest.raises(ValueError, match=f"{next(iter(options))}: {next(iter(options.values()))}"):
        load_ability(path, **options)


def asked(model, tokenizer, right: int) -> tuple[list[AbilityItem], list[str]]:
    """Items of which every ``right``-th asks for what the model says, with what it says to each, cut at a space."""
    answers, items = [], []
    for index, prompt in enumerate(sorted(set(sentences(30, seed=5)))):
        text = tokenizer.decode(dense_greedy(model, prompt_ids(tokenizer, [prompt])[0], 6), skip_special_tokens=True)
        answers.append(text)
        known = text if index % right == 0 and text.strip() else "zebra"
        items.append(AbilityItem(prompt, (known, "yak")))
    return items, answers


def test_outcomes_are_those_of_free_greedy_answers(pair) -> None:
    model, tokenizer = pair
    items, answers = asked(model, tokenizer, 3)
    right = [exactly_matches(text, item.answers) for text, item in zip(answers, items, strict=True)]
    assert 0 < sum(right) < len(right)
    ability = Ability("question_answering", tuple(items), ("exact_match",), None, 6)
    for batch_size in (1, 7):
        assert ability_outcomes(model, tokenizer, ability, batch_size=batch_size) == {"exact_match": right}
    assert measure_ability(model, tokenizer, ability) == {"exact_match": Proportion.of(right)}
    kinds = ("rouge1", "rouge2", "rougeL")
    summaries = replace(ability, name="summarization", metrics=kinds)
    expected = rouge_scores(answers, [item.answers for item in items])
    assert any(0 < value for value in expected["rouge1"])
    assert measure_ability(model, tokenizer, summaries) == {k: Mean.of(expected[k], (0.0, 1.0)) for k in kinds}


def test_an_item_that_does_not_fit_the_positions_is_left_out_and_counted() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    long = AbilityItem(" ".join(["east"] * model.config.n_positions), ("ten",))
    short = AbilityItem("east", ("ten",))
    ability = Ability("other", (short, long), ("match",), None, 3)
    with pytest.warns(UserWarning, match="other: 1 of 2 items do not fit the model's .* positions and are left out"):
        assert len(ability_outcomes(model, tokenizer, ability)["match"]) == 1
    with pytest.raises(InvalidRequestError, match="other: none of 1 items fits"):
        ability_outcomes(model, tokenizer, replace(ability, items=(long,)))


def test_items_can_be_asked_through_the_chat_template() -> None:
    model, tokenizer = speaking_model(), speaking_tokenizer()
    items = [AbilityItem(text, ("ten",)) for text in ("east sea", "note tone")]
    said = [
        tokenizer.decode(
            dense_greedy(model, prompt_ids(tokenizer, [chat_prompt(tokenizer, item.prompt).before])[0], 6),
            skip_special_tokens=True,
        )
        for item in items
    ]
    right = tuple(replace(item, answers=(text,)) for item, text in zip(items, said, strict=True))
    ability = Ability("other", right, ("match",), None, 6, "chat")
    assert ability_outcomes(model, tokenizer, ability) == {"match": [1.0, 1.0]}
    assert ability_outcomes(model, tokenizer, replace(ability, ask="plain")) == {"match": [0.0, 0.0]}
    with pytest.raises(UnsupportedModelError, match="ask: the model's tokenizer has no chat template"):
        ability_outcomes(model, speaking_tokenizer(None), ability)
    with pytest.raises(ValueError, match="ask: 'both' is not one of plain, chat"):
        replace(ability, ask="both")


def test_what_is_no_ability_is_named() -> None:
    item = AbilityItem("a", ("b",))
    with pytest.raises(ValueError, match=r"metrics: \('bleu',\) is not one of solve_rate, exact_match, accuracy"):
        Ability("x", (item,), ("bleu",))
    with pytest.raises(ValueError, match="items: the ability 'x' has none"):
        Ability("x", (), ("match",))
    for fields in (("", ("b",)), ("a", ()), ("a", (" ",))):
        with pytest.raises(InvalidRequestError):
            AbilityItem(*fields)


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("The  Rome!", ["rome"], True),
        ("Rome, Italy", ["Rome"], False),
        ("an apple", ["Apple."], True),
        ("", ["the"], False),
        ("!", ["?"], False),
        ("A+", ["A+"], True),
        ("C", ["C++", "c"], True),
        ("", ["", "x"], True),
    ],
)
def test_exact_match_of_normalized_answers(answer: str, references: list[str], right: bool) -> None:
    assert exactly_matches(answer, references) is right


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("entailment", "entailment", True),
        (" Entailment. The premise", "entailment", True),
        ("not entailment", "not_entailment", True),
        ("Not-entailment", "not_entailment", True),
        ("not_entailment", "entailment", False),
        ("entailment", "not_entailment", False),
        ("entailments", "entailment", False),
        ("very likely so", "very likely", True),
        ("", "entailment", False),
    ],
)
def test_a_label_is_read_off_the_beginning(answer: str, label: str, right: bool) -> None:
    assert has_label(answer, label) is right


def test_rouge_takes_the_best_reference() -> None:
    found = rouge_scores(["the cat sat", "a dog"], [["a bird", "the cat sat down"], ["the dog ran"]])
    assert found["rouge1"][0] == pytest.approx(2 * (3 / 3) * (3 / 4) / (3 / 3 + 3 / 4))
    assert found["rouge2"] == pytest.approx([2 * 1 * (2 / 3) / (1 + 2 / 3), 0])
    assert found["rougeL"][1] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_a_generation_leaves_the_random_state() -> None:
    model, tokenizer = tiny_gpt2(), spaced_tokenizer()
    before = torch.get_rng_state()
    measure_ability(model, tokenizer, Ability("other", (AbilityItem("east", ("ten",)),), ("match",), None, 2))
    assert torch.equal(before, torch.get_rng_state())
