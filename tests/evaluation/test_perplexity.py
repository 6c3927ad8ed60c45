"""Perplexity against a plain loop over texts and tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from peft_prune.errors import InvalidRequestError
from peft_prune.evaluation import load_texts, perplexity
from peft_prune.models.tokenization import text_ids
from tests.talking import dense_log_probabilities, outspoken, sentences, spaced_tokenizer

TEXTS = sentences(20, seed=8, longest=3)
LONG_TEXT = " ".join(sentences(30, seed=9))


def dense_perplexity(model, sequences) -> float:
    loss, count = 0.0, 0
    for ids in sequences:
        scores = dense_log_probabilities(model, ids)
        for place in range(1, len(ids)):
            loss -= scores[place - 1, ids[place]].item()
            count += 1
    return math.exp(loss / count)


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_perplexity_equals_a_plain_loop(pair, batch_size: int) -> None:
    model, tokenizer = pair
    expected = dense_perplexity(model, text_ids(tokenizer, TEXTS))
    assert perplexity(model, tokenizer, TEXTS, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("max_length", [2, 9, 32, None])
def test_a_long_text_is_cut_so_that_every_token_but_the_first_is_predicted_once(pair, max_length: int | None) -> None:
    model, tokenizer = pair
    (ids,) = text_ids(tokenizer, [LONG_TEXT])
    window = max_length or 32
    loss, count = 0.0, 0
    for place in range(1, len(ids)):
        start = (place - 1) // (window - 1) * (window - 1)
        loss -= dense_log_probabilities(model, ids[start:place])[-1, ids[place]].item()
        count += 1
    assert count == len(ids) - 1 > 100
    measured = perplexity(model, tokenizer, [LONG_TEXT], max_length=max_length)
    assert measured == pytest.approx(math.exp(loss / count), rel=1e-4)


def test_a_text_of_one_token_is_not_counted() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    assert perplexity(model, tokenizer, ["a", *TEXTS]) == pytest.approx(perplexity(model, tokenizer, TEXTS), rel=1e-5)


def test_a_collapsed_model_has_infinite_perplexity() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1e6)
    assert perplexity(model, tokenizer, TEXTS) == math.inf


def test_nothing_to_predict_is_an_error() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    for texts in ([], ["a"]):
        with pytest.raises(InvalidRequestError, match=f"none of {len(texts)} texts has two tokens"):
            perplexity(model, tokenizer, texts)


@pytest.mark.parametrize("max_length", [1, 33])
def test_an_impossible_window_is_named(max_length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length: {max_length} must be at least 2 and at most the model's 32"):
        perplexity(outspoken("gpt2"), spaced_tokenizer(), TEXTS, max_length=max_length)


def test_texts_are_read_from_lines_strings_and_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line\n\n another \n")
    records = ["as it stands ", {"text": "of a record"}, {"prompt": "Rome is in", "object": "Italy"}]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.TXT").write_text("one line\n\n another \n", encoding="utf-8-sig")
    assert load_texts(tmp_path / "a.txt") == load_texts(tmp_path / "b.TXT") == ["one line", "another"]
    assert load_texts(tmp_path / "a.json") == ["as it stands ", "of a record", "Rome is in Italy"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "holds no text"),
        ("a.json", "[]", "holds no records"),
        ("a.json", '["a", " "]', "record 1: text: ' '"),
        ("a.json", '[{"text": 4}]', "record 0: text: 4"),
        ("a.json", '[{"prompt": "a"}]', "record 0: text: is missing, and so is object"),
        ("a.json", "[3]", "record 0: must be a string or a JSON object, is int"),
    ],
)
def test_a_malformed_text_file_names_the_record_and_the_field(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequestError, match=message):
        load_texts(tmp_path / name)


def test_a_missing_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"none\.txt: cannot be read"):
        load_texts(tmp_path / "none.txt")


def test_a_line_of_text_ends_at_a_line_break_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028line\r\nanother\n", encoding="utf-8", newline="")
    assert load_texts(tmp_path / "a.txt") == ["one\u2028line", "another"]
