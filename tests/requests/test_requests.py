"""Forms of request records: what each becomes, and what is said of a bad one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from peft_prune import EditRequest, Question, load_requests
from peft_prune.errors import InvalidRequestError

ZSRE = {
    "subject": "Watts Hall",
    "src": "What is the architect of Watts Hall?",
    "rephrase": "Who planned Watts Hall?",
    "alt": "Ann Lee",
    "answers": ["Bob Ray", ""],
    "loc": "nq question: who ran the mill",
    "loc_ans": "Cy",
}
KNOWEDIT = {
    "subject": "Ann",
    "prompt": "Ann, called Ann, lives in",
    "target_new": "Rome",
    "ground_truth": [["Oslo"], ["Oslo city"]],
    "portability": {"Reasoning": [{"prompt": "Ann's country is", "ground_truth": [["Italy", "IT"], [""], ["Italy"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": ["Ann's mother is"], "ground_truth": "Eve"}], "Forgetfulness": []},
}


def test_zsre_and_knowedit_records_become_requests() -> None:
    assert EditRequest.from_record(ZSRE) == EditRequest(
        prompt="What is the architect of {}?",
        subject="Watts Hall",
        target_new="Ann Lee",
        target_true="Bob Ray",
        paraphrase_prompts=("Who planned Watts Hall?",),
        unrelated=(Question("who ran the mill", ("Cy",)),),
    )
    assert EditRequest.from_record({k: v for k, v in ZSRE.items() if k != "alt"}).target_new == "Bob Ray"
    assert EditRequest.from_record(KNOWEDIT) == EditRequest(
        prompt="Ann, called {}, lives in",
        subject="Ann",
        target_new="Rome",
        target_true="Oslo",
        portability=(Question("Ann's country is", ("Italy", "IT")),),
        unrelated=(Question("Ann's mother is", ("Eve",)),),
    )


def test_knowedit_is_told_by_its_own_fields_and_a_true_target_that_is_the_new_one_is_left_out() -> None:
    bare = {k: v for k, v in KNOWEDIT.items() if k not in ("portability", "locality")}
    assert EditRequest.from_record(bare).target_true == "Oslo"
    rephrased = EditRequest.from_record({**bare, "rephrase_prompt": "Where does Ann live?"})
    assert rephrased.paraphrase_prompts == ("Where does Ann live?",)
    assert EditRequest.from_record({**bare, "ground_truth": "Rome"}).target_true is None
    assert EditRequest.from_record({**ZSRE, "answers": ["Ann  Lee"]}).target_true is None
    flat = {"prompt": "{} is", "subject": "Ann", "target_new": "old", "target_true": "old"}
    assert EditRequest.from_record(flat).target_true is None


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("Iran borders Iraq and Iranian is not", "Iran", "{} borders Iraq and Iranian is not"),
        ("Ann, called Ann, lives in", "Ann", "Ann, called {}, lives in"),
        ("东京是日本的首都", "东京", "{}是日本的首都"),
        ("The C++ of C++ is", "C++", "The C++ of {} is"),
        ("Annas Haus steht in", "Anna", "{}s Haus steht in"),
    ],
)
def test_the_subject_is_put_in_its_last_place_as_a_word(prompt: str, subject: str, template: str) -> None:
    record = {"prompt": prompt, "subject": subject, "target_new": "x"}
    assert EditRequest.from_record(record).prompt == template


def test_a_request_survives_json() -> None:
    request = EditRequest.from_record(KNOWEDIT)
    assert EditRequest(**json.loads(json.dumps(asdict(request)))) == request
    assert EditRequest.from_record(json.loads(json.dumps(asdict(request)))) == request


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**ZSRE, "subject": "Nobody"}, "src: 'What is the architect of Watts Hall\\?' must hold .* subject 'Nobody'"),
        ({**ZSRE, "answers": []}, "answers: \\[\\] holds no answer"),
        ({**ZSRE, "answers": [3]}, "answers: \\[3\\] must be"),
        ({**ZSRE, "alt": 4}, "target_new: 4 must be a string"),
        ({k: v for k, v in ZSRE.items() if k != "loc_ans"}, "loc_ans: is missing"),
        ({k: v for k, v in KNOWEDIT.items() if k != "target_new"}, "target_new: is missing"),
        ({**KNOWEDIT, "locality": {"R": ["text"]}}, "locality.R\\[0\\]: 'text' must be an object"),
        (
            {**KNOWEDIT, "portability": {"R": [{"prompt": "a"}]}},
            "portability.R\\[0\\].ground_truth: None",
        ),
        ({"prompt": "a {}", "subject": "b", "target_new": "c", "unrelated": [{"prompt": "d"}]}, "unrelated: .*answers"),
        ({**ZSRE, "src": 3}, "src: 3 must be"),
        ({**ZSRE, "rephrase": {"a": 1}}, "rephrase: {'a': 1} must be a list"),
        ({**KNOWEDIT, "locality": {"R": {"prompt": "a"}}}, "locality.R: {'prompt': 'a'} must be a list of questions"),
        ({"prompt": "a {}", "subjekt": "b", "target_new": "c"}, "subject: is missing, and subjekt is no field"),
        ({"prompt": "a {}", "subject": "b", "taget_new": "c"}, "taget_new is no field of a request; target_new is"),
        ({"requested_rewrite": []}, "requested_rewrite: holds no fact"),
    ],
)
def test_a_bad_record_is_named_by_its_field(record, words) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        EditRequest.from_record(record)


def test_a_csv_file_is_read_as_a_company_writes_it(tmp_path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(
        "\ufeffprompt,subject,target_new,target_true,paraphrase_prompts\n"
        '"The head of Acme, Inc. is","Acme, Inc.",Ann,,Acme is led by | At the top of Acme is\n'
        "{} costs,Plan B,9 euros,8 euros,\n",
        encoding="utf-8",
    )
    assert load_requests(path) == [
        EditRequest("The head of {} is", "Acme, Inc.", "Ann", None, ("Acme is led by", "At the top of Acme is")),
        EditRequest("{} costs", "Plan B", "9 euros", "8 euros"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,subject,tgt\n{} is,a,b\n", "record 0: target_new: is missing"),
        ("prompt,subject,target_new\n", "holds no records"),
        ("prompt,subject,target_new\n{} is,a\n", "record 0: has another number of cells"),
        ("prompt,subject,target_new\n{} is,a,b\n{} is,a,\n", "record 1: target_new: is missing"),
        ('prompt,subject,target_new\n"{} is,a,b\n', "is not valid CSV"),
        ("prompt,subject,target_new,target_new\n{} is,a,b,c\n", "column 'target_new' is there 2 times"),
    ],
)
def test_a_bad_csv_file_is_named_by_its_place(tmp_path, text, words) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=f"requests.csv: {words}"):
        load_requests(path)


def test_a_data_set_is_loaded_by_its_name(tmp_path: Path) -> None:
    records = [{"prompt": "{} is in", "subject": f"City {i}", "target_new": "Peru"} for i in range(3)]
    records[0]["target_true"] = "Chile"
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
    found = load_requests(f"hub:{tmp_path / 'data'}:test", limit=2)
    assert [(one.subject, one.target_true) for one in found] == [("City 0", "Chile"), ("City 1", None)]
    with pytest.raises(InvalidRequestError, match="split '' is not one of train, test"):
        load_requests(f"hub:{tmp_path / 'data'}")


def test_a_data_set_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"hub:nobody/nothing:train: cannot be loaded: .*nobody/nothing"):
        load_requests("hub:nobody/nothing:train")


def test_lines_of_json_are_parted_at_line_breaks_alone_and_named_by_their_number(tmp_path: Path) -> None:
    records = [
        {"prompt": "{} is\u2028in", "subject": f"City {i}", "target_new": "Peru", "note": "own"} for i in range(2)
    ]
    path = tmp_path / "requests.JSONL"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\r\n".join(lines) + "\n\n", encoding="utf-8", newline="")
    assert [one.prompt for one in load_requests(path)] == ["{} is\u2028in"] * 2
    path.write_text(f"{lines[0]}\n\n{lines[1][:-2]}\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=r"requests.JSONL: line 3: is not valid JSON"):
        load_requests(path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"relation_id": 5}, "relation_id: 5 must be a string, is int"),
        ({"relation_id": {"a": 1}}, "relation_id: .* must be a string, is dict"),
        ({"case_id": [1, 2]}, r"case_id: \[1, 2\] must be a whole number or a string"),
        ({"case_id": True}, "case_id: True must be a whole number or a string"),
    ],
)
def test_what_only_names_a_record_is_checked_as_well(more, message) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        EditRequest.from_record({"prompt": "{} is in", "subject": "Lima", "target_new": "Peru", **more})


def test_a_byte_order_mark_is_read_over_and_endless_nesting_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{"prompt": "{} is in", "subject": "Lima", "target_new": "Peru"}]), encoding="utf-8-sig")
    assert load_requests(path)[0].subject == "Lima"
    path.write_text("[" * 100_000)
    with pytest.raises(InvalidRequestError, match=r"requests.json: is not valid JSON"):
        load_requests(path)
