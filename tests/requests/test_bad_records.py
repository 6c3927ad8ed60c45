"""Bad records: refused at the door with record and field, or left out and listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_prune import EditRequest, load_requests
from peft_prune.errors import InvalidRequestError
from peft_prune.requests import read_records, read_requests

GOOD = {"prompt": "{} is in", "subject": "Lima", "target_new": "Chile"}


def written(folder: Path, text: str, name: str = "requests.json") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_skip_leaves_every_bad_record_out_and_lists_all_of_them(tmp_path: Path) -> None:
    records = [{**GOOD, "subject": 3}, GOOD, "text", {**GOOD, "target_new": ""}, {**GOOD, "subject": "Rome"}]
    path = written(tmp_path, json.dumps(records))
    found = read_requests(path, on_bad_record="skip")
    assert [one.subject for one in found.requests] == ["Lima", "Rome"] and found.records == (1, 4)
    assert [(one.record, one.reason.split(":")[0]) for one in found.bad] == [
        (0, "subject"),
        (2, "must be a JSON object, is str"),
        (3, "target_new"),
    ]
    with pytest.warns(UserWarning, match=r"3 bad records are left out: record 0: subject.*; record 2: .*; record 3: "):
        assert len(load_requests(path, on_bad_record="skip")) == 2


def test_fail_names_the_first_and_counts_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([GOOD, {**GOOD, "subject": 3}, {}, {}]))
    with pytest.raises(InvalidRequestError, match=r"json: record 1: subject: 3 must .* \(2 more records are bad\)$"):
        load_requests(path)


def test_a_file_of_bad_records_alone_is_refused_also_where_they_may_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"record 0: prompt: is missing \(1 more record is bad\)"):
        load_requests(written(tmp_path, "[{}, {}]"), on_bad_record="skip")
    with pytest.raises(InvalidRequestError, match="on_bad_record: 'drop' is not one of fail, skip"):
        load_requests(written(tmp_path, "[{}, {}]"), on_bad_record="drop")


def test_a_line_that_is_no_json_and_a_row_that_is_too_short_are_bad_records(tmp_path: Path) -> None:
    path = written(tmp_path, f'{json.dumps(GOOD)}\n{{"prompt": \n{json.dumps(GOOD)}\n', "requests.jsonl")
    found = read_requests(path, on_bad_record="skip")
    assert found.records == (0, 2) and str(found.bad[0]).startswith("line 2: is not valid JSON")
    path = written(tmp_path, "prompt,subject,target_new\n{} is,a\n{} is,a,b\n", "requests.csv")
    assert read_requests(path, on_bad_record="skip").records == (1,)


def test_the_limit_counts_the_requests_that_are_left(tmp_path: Path) -> None:
    records = [{}, GOOD, {**GOOD, "subject": "Rome"}, {**GOOD, "subject": "Oslo"}]
    found = read_requests(written(tmp_path, json.dumps(records)), limit=2, on_bad_record="skip")
    assert found.records == (1, 2)


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new", "target_true", "case_id", "relation_id"])
@pytest.mark.parametrize(
    ("character", "name"),
    [("\ud800", r"U\+D800"), ("\x00", "NUL"), ("\x1b", "ESC"), ("\x9b", r"U\+009B"), ("\u202e", "RLO")],
)
def test_a_character_that_no_text_may_hold_is_refused_with_its_field(field: str, character: str, name: str) -> None:
    record = {**GOOD, field: f"{{}} x{character}" if field == "prompt" else f"x{character}"}
    with pytest.raises(InvalidRequestError, match=f"^{field}: .* holds the character {name}.* at place"):
        EditRequest.from_record(record)
    with pytest.raises(InvalidRequestError, match=f"^{field}: "):
        EditRequest(**record)


def test_such_a_character_is_found_in_prompts_and_questions_and_harmless_in_what_is_not_read() -> None:
    for more in (
        {"paraphrase_prompts": ["a\ud800"]},
        {"portability": [{"prompt": "p", "answers": ["a\x1b"]}]},
        {"unrelated": [{"prompt": "p\x00", "answers": ["a"]}]},
        {"separator": "\x07"},
    ):
        with pytest.raises(InvalidRequestError, match=f"^{next(iter(more))}: .* holds the character"):
            EditRequest.from_record({**GOOD, **more})
    assert EditRequest.from_record({**GOOD, "note": "\ud800"}).subject == "Lima"


def test_line_breaks_tabs_and_marks_of_direction_are_accepted() -> None:
    assert EditRequest("a\t{}\nis", "‏رام الله", "\u2067x\u2069").subject == "‏رام الله"


def test_a_lone_surrogate_in_a_file_is_named_by_record_and_field(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[{"prompt": "{} is", "subject": "a", "target_new": "b"}, '
        '{"prompt": "{} is", "subject": "a\\ud83d", "target_new": "b"}]',
    )
    with pytest.raises(
        InvalidRequestError, match=r"record 1: subject: 'a\\ud83d' holds the character U\+D83D"
    ) as caught:
        load_requests(path)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('"ground_truth": ' + "[" * 400 + "]" * 400, "record 0: ground_truth: is nested deeper than 32 levels"),
        ('"x": ' + '{"a":' * 50 + "1" + "}" * 50, "record 0: x: is nested deeper than 32 levels"),
        ('"subject": "c"', "record 0: subject: is there twice"),
        ('"portability": {"a": [], "a": []}', "record 0: a: is there twice"),
        ('"case_id": ' + "9" * 5000, "record 0: case_id: inf must be a whole number"),
        ('"case_id": NaN', "record 0: case_id: nan must be a whole number"),
        ('"target_true": Infinity', "record 0: target_true: inf must be a string"),
    ],
)
def test_what_readers_of_json_let_pass_is_named(tmp_path: Path, more: str, message: str) -> None:
    path = written(tmp_path, f'[{{"prompt": "{{}} is", "subject": "a", "target_new": "b", {more}}}]')
    with pytest.raises(InvalidRequestError, match=message):
        load_requests(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1,", "nul"])
def test_what_is_no_json_ends_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"requests\.json: is not valid JSON"):
        read_records(written(tmp_path, text))


def test_a_message_stays_short(tmp_path: Path) -> None:
    for value in ("x" * 10_000, [["y" * 99] * 99] * 99, {str(i): i for i in range(999)}, 10**5000):
        with pytest.raises(InvalidRequestError) as caught:
            EditRequest.from_record({**GOOD, "subject": value, "prompt": "no place for it"})
        assert len(str(caught.value)) < 600
