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
        ("prompt,subject,target\n", "column 'target' is not one of prompt, subject, target_new"),
        ("prompt,subject,target_new\n", "holds no records"),
        ("prompt,subject,target_new\n{} is,a\n", "record 0: has another number of cells"),
        ("prompt,subject,target_new\n{} is,a,b\n{} is,a,\n", "record 1: target_new: is missing"),
        ('prompt,subject,target_new\n"{} is,a,b\n', "is not valid CSV"),
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
