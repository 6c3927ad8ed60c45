"""Recall of facts and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_prune.errors import InvalidRequestError
from peft_prune.evaluation import Fact, Proportion, exclude_subjects, known_facts, load_facts, recall, without_subjects
from peft_prune.models.tokenization import continuation_ids, prompt_ids
from peft_prune.requests import EditRequest
from tests.talking import WORDS, dense_log_probabilities, sentences


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_recall_counts_the_objects_first_token_as_the_dense_maximum(pair) -> None:
    model, tokenizer = pair
    facts, hits = [], []
    for prompt in sentences(40, seed=7):
        best = int(dense_log_probabilities(model, prompt_ids(tokenizer, [prompt])[0])[-1].argmax())
        firsts = {word: continuation_ids(tokenizer, [prompt], [word])[0].target[0] for word in WORDS}
        # the word that the model would begin, where there is one
        word = next((word for word, first in firsts.items() if first == best), WORDS[0])
        facts.append(Fact(prompt, word))
        hits.append(firsts[word] == best)
    assert 0 < sum(hits) < len(hits)
    for batch_size in (1, 7, 64):
        assert recall(model, tokenizer, facts, batch_size=batch_size) == Proportion.of(hits)
        known = known_facts(model, tokenizer, facts, batch_size=batch_size)
        assert known == [fact for fact, hit in zip(facts, hits, strict=True) if hit]
    unknown = [fact for fact, hit in zip(facts, hits, strict=True) if not hit]
    with pytest.raises(InvalidRequestError, match=f"facts: the model knows none of these {len(unknown)}"):
        known_facts(model, tokenizer, unknown)


def test_facts_and_texts_that_name_an_edited_subject_are_left_out() -> None:
    prompts = ["Paris lies in", "It is in Paris's", "Parisian art", "paris, Texas", "It"]
    requests = [EditRequest(prompt="{} is in", subject="Paris", target_new="Italy")]
    facts = [Fact(prompt, "x") for prompt in prompts]
    assert exclude_subjects(facts, requests) == facts[2:]
    assert without_subjects(prompts, requests) == prompts[2:]


def test_facts_are_read_from_json_and_jsonl(tmp_path: Path) -> None:
    records = [{"prompt": "Rome is in", "object": "Italy"}, {"prompt": "Oslo is in", "object": "Norway"}]
    expected = [Fact("Rome is in", "Italy"), Fact("Oslo is in", "Norway")]
    assert load_facts(write(tmp_path / "facts.json", records)) == expected
    assert load_facts(write(tmp_path / "facts.jsonl", "\n".join(map(json.dumps, records)))) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"prompt": "a", "object": "b"}, {"prompt": "a"}], "record 1: object: is missing"),
        ([{"prompt": "", "object": "b"}], "record 0: prompt: ''"),
        ([{"prompt": "a", "object": 3}], "record 0: object: 3"),
        (["a"], "record 0: must be a JSON object, is str"),
        ([], "holds no records"),
        ({"prompt": "a"}, "must hold a JSON list"),
        ("[", "is not valid JSON"),
    ],
)
def test_a_malformed_file_names_the_record_and_the_field(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        load_facts(write(tmp_path / "facts.json", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"none\.json: cannot be read"):
        load_facts(tmp_path / "none.json")
