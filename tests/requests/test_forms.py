"""The forms of data sets: what is read of each, what is left alone, and what is said of it."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest

from peft_prune import EditRequest, Question, load_requests
from peft_prune.errors import InvalidRequestError
from peft_prune.requests import read_requests

FLAT = {"prompt": "{} is in", "subject": "Lima", "target_new": "Chile"}


def test_fields_of_ones_own_are_left_alone_without_a_word() -> None:
    own = {
        "subject_id": "Q1",
        "target_id": "Q2",
        "target_true_id": "Q3",
        "note": "x",
        "subjects": 3,
        "promt": "y",
        "edit": {"a": 1},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EditRequest.from_record({**FLAT, **own}) == EditRequest(**FLAT)


def test_fields_by_which_something_should_be_measured_are_named_once_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{**FLAT, "target_tru": "Peru", "one_hop_questions": ["?"]}] * 3))
    with pytest.warns(UserWarning) as caught:
        assert len(load_requests(path)) == 3
    (warning,) = caught
    assert "target_tru (did you mean target_true?), one_hop_questions" in str(warning.message)


def test_other_spellings_of_prompt_lists_are_read() -> None:
    request = EditRequest.from_record(
        {**FLAT, "paraphrase_prompt": "Lima lies in", "neighbourhood_prompts": ["Rome is"]}
    )
    assert request.paraphrase_prompts == ("Lima lies in",) and request.neighborhood_prompts == ("Rome is",)


def test_easyedits_flat_form_keeps_its_questions() -> None:
    request = EditRequest.from_record(
        {
            "prompt": "Where is Big Tower?",
            "subject": "Big Tower",
            "target_new": "Rome",
            "ground_truth": "Paris",
            "rephrase_prompt": "Big Tower is where?",
            "locality_prompt": "Who wrote Emma?",
            "locality_ground_truth": "Jane Austen",
            "portability_prompt": ["Its country is", "Its river is"],
            "portability_ground_truth": ["Italy", ["Tiber", "Tevere"]],
        }
    )
    assert request.target_true == "Paris" and request.paraphrase_prompts == ("Big Tower is where?",)
    assert request.unrelated == (Question("Who wrote Emma?", ("Jane Austen",)),)
    assert request.portability == (
        Question("Its country is", ("Italy",)),
        Question("Its river is", ("Tiber", "Tevere")),
    )


def test_zsre_and_counterfact_keep_their_portability_question() -> None:
    asked = {"Recalled Relation": "(x)", "New Question": "Its country is", "New Answer": "Italy"}
    zsre = {
        "subject": "Big Tower",
        "src": "Where is Big Tower?",
        "alt": "Rome",
        "answers": ["Oslo"],
        "portability": asked,
    }
    counterfact = {
        "requested_rewrite": {"prompt": "{} is in", "subject": "Big Tower", "target_new": {"str": "Rome"}},
        "portability": asked,
    }
    for record in (zsre, counterfact):
        assert EditRequest.from_record(record).portability == (Question("Its country is", ("Italy",)),)


def test_easyedits_objects_of_prompts_and_answers_are_read() -> None:
    locality = {"neighborhood": {"prompt": ["A is", "B is"], "ground_truth": ["1", "2"]}}
    assert EditRequest.from_record({**FLAT, "locality": locality}).unrelated == (
        Question("A is", ("1",)),
        Question("B is", ("2",)),
    )


def test_knowedits_biographies_are_read() -> None:
    record = {
        "text": "This is a passage about ann lee. Ann Lee was",
        "concept": "Ann Lee",
        "labels": "a painter.",
        "locality": {"Relation_Specificity": [{"prompt": "Ann Lee's mother is", "ground_truth": ["Eve"]}]},
    }
    request = EditRequest.from_record(record)
    assert (request.prompt, request.target_new) == ("This is a passage about ann lee. {} was", "a painter.")
    assert request.unrelated == (Question("Ann Lee's mother is", ("Eve",)),)


MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [
        {
            "prompt": "{} lives in",
            "subject": "Ann Lee",
            "target_new": {"str": "Peru", "id": "Q419"},
            "target_true": {"str": "Chile", "id": "Q298"},
            "relation_id": "P551",
            "question": "Where does Ann Lee live?",
        },
        {"prompt": "The capital of {} is", "subject": "Peru", "target_new": {"str": "Oslo"}},
    ],
    "questions": ["Which city is the capital of Ann Lee's country?", "What is the capital of where Ann Lee lives?"],
    "answer": "Santiago",
    "new_answer": "Oslo",
    "new_answer_alias": ["Kristiania"],
}


def test_a_record_of_mquake_gives_each_of_its_edits_and_asks_its_questions_once(tmp_path: Path) -> None:
    first, second = EditRequest.all_from_record(MQUAKE)
    assert (first.subject, first.target_new, first.target_true) == ("Ann Lee", "Peru", "Chile")
    assert first.paraphrase_prompts == ("Where does Ann Lee live?",) and first.portability == ()
    assert second.text == "The capital of Peru is" and (first.case_id, second.case_id) == (7, 7)
    assert second.portability == tuple(Question(prompt, ("Oslo", "Kristiania")) for prompt in MQUAKE["questions"])
    with pytest.raises(InvalidRequestError, match=r"states 2 facts; EditRequest\.all_from_record"):
        EditRequest.from_record(MQUAKE)
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps([FLAT, MQUAKE]))
    assert read_requests(path).records == (0, 1, 1) and len(load_requests(path)) == 3


def test_a_bad_edit_of_several_is_named_by_its_place() -> None:
    rewrites = [MQUAKE["requested_rewrite"][0], {"prompt": "{} is", "subject": "Peru"}]
    with pytest.raises(InvalidRequestError, match=r"requested_rewrite\[1\].target_new: is missing"):
        EditRequest.all_from_record({"requested_rewrite": rewrites})


def test_akew_is_read_as_counterfact() -> None:
    rewrite = {
        "prompt": "{} was made in",
        "prompt_full": "In which country was Good Hour made?",
        "subject": "Good Hour",
        "target_new": {"str": "Norway", "id": "Q20"},
        "target_true": {"str": "India", "id": "Q668"},
        "fact_new_uns": "Good Hour is ...",
        "unsfact_triplets_GPT": [{"subject": "Good Hour", "prompt": "{} began in", "target": "Norway"}],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request = EditRequest.from_record({"requested_rewrite": rewrite, "attribute_prompts": ["a"]})
    assert request == EditRequest("{} was made in", "Good Hour", "Norway", "India")


def test_rippleedits_is_read_from_its_sentences_and_tests() -> None:
    def query(prompt: str, *answers: str) -> dict[str, Any]:
        values = [{"value": one, "aliases": [one.upper()]} for one in answers]
        return {"test_queries": [{"prompt": prompt, "answers": values, "subject_id": "Q1"}]}

    record = {
        "edit": {
            "prompt": "The name of the country of citizenship of Ann of Lee is New Zealand.",
            "subject_id": "Q1",
            "target_id": "Q2",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "original_fact": {"prompt": "The name of the country of citizenship of Ann of Lee is New Caledonia."},
        },
        "Relation_Specifity": [query("The name of the mother of Ann of Lee is", "Eve")],
        "Logical_Generalization": [query("The name of the currency of Ann of Lee is", "dollar"), query("x is")],
    }
    assert EditRequest.from_record(record) == EditRequest(
        prompt="The name of the country of citizenship of {} is",
        subject="Ann of Lee",
        target_new="New Zealand",
        target_true="New Caledonia",
        portability=(Question("The name of the currency of Ann of Lee is", ("dollar", "DOLLAR")),),
        unrelated=(Question("The name of the mother of Ann of Lee is", ("Eve", "EVE")),),
        relation_id="COUNTRY_OF_CITIZENSHIP",
    )
    with pytest.raises(InvalidRequestError, match=r"edit\.subject: is missing"):
        EditRequest.from_record({"edit": record["edit"]})


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        (unicodedata.normalize("NFD", "Où vit Zoé Müller ?"), "Zoé Müller", "Où vit {} ?"),
        ("Où vit Zoé ?", unicodedata.normalize("NFD", "Zoé"), "Où vit {} ?"),
        (unicodedata.normalize("NFD", "서울은 어디"), "서울", "{}은 어디"),
        ("Where is Macy’s store?", "Macy's", "Where is {} store?"),
        ("Who wrote “Emma” and why", '"Emma"', "Who wrote {} and why"),
        ("Jean‑Luc lives in", "Jean-Luc", "{} lives in"),
        ("ＩＢＭ was founded in", "IBM", "{} was founded in"),
        ("Ann\u00ad Lee is", "Ann Lee", "{} is"),
    ],
)
def test_a_subject_is_found_up_to_unicode_form_and_quotes(prompt: str, subject: str, template: str) -> None:
    request = EditRequest.from_record({"prompt": prompt, "subject": subject, "target_new": "Rome"})
    assert unicodedata.normalize("NFC", request.prompt) == template and request.subject == subject


@pytest.mark.parametrize("subject", ["Лайонел Месси", "Zoe", "Macys"])
def test_another_spelling_is_another_subject(subject: str) -> None:
    prompt = "За какой клуб играет Лионель Месси, Zoé и Macy's?"
    with pytest.raises(InvalidRequestError, match="or name the subject"):
        EditRequest.from_record({"prompt": prompt, "subject": subject, "target_new": "Rome"})


def test_the_separator_is_read_in_every_form_and_kept(tmp_path: Path) -> None:
    rewrite = {"prompt": "{} is in", "subject": "Lima", "target_new": {"str": "Chile"}}
    for record in (
        {**FLAT, "separator": ""},
        {"requested_rewrite": {**rewrite, "separator": ""}},
        {"requested_rewrite": rewrite, "separator": ""},
        {"src": "Where is Lima?", "subject": "Lima", "answers": ["Chile"], "separator": ""},
    ):
        assert EditRequest.from_record(record).separator == ""
    assert EditRequest.from_record(FLAT).separator is None
    with pytest.raises(InvalidRequestError, match="separator: 3 must be a string"):
        EditRequest.from_record({**FLAT, "separator": 3})
    path = tmp_path / "requests.csv"
    rows = ["{} is,a,b,none", "{} is,a,b,space", "{} is,a,b,newline", "{} is,a,b,", '{} is,a,b,": "']
    path.write_text("\n".join(["prompt,subject,target_new,separator", *rows]))
    assert [one.separator for one in load_requests(path)] == ["", " ", "\n", None, ": "]


def test_extra_columns_of_a_csv_file_are_left_alone_and_other_names_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,subject,target_new,ground_truth,rephrase_prompt,owner\n{} is,a,b,c,A is | a was,me\n")
    assert load_requests(path) == [EditRequest("{} is", "a", "b", "c", ("A is", "a was"))]


def test_a_request_of_an_earlier_history_is_read_as_it_was_written() -> None:
    old = {
        "prompt": "{} is",
        "subject": "a\x1b[31m",
        "target_new": "b",
        "portability": [{"prompt": "p", "answers": ["q"]}],
    }
    request = EditRequest.stored(old)
    assert (request.subject, request.separator, request.portability) == ("a\x1b[31m", None, (Question("p", ("q",)),))
    plain, told = EditRequest(**FLAT), EditRequest(**FLAT, separator="")
    assert "separator" not in plain.document() and told.document()["separator"] == ""
    assert [EditRequest.stored(one.document()) for one in (plain, told)] == [plain, told]
    with pytest.raises(InvalidRequestError, match="target_new: is missing"):
        EditRequest.stored({"prompt": "{} is", "subject": "a"})
    with pytest.raises(InvalidRequestError, match="colour: is no field"):
        EditRequest.stored({**FLAT, "colour": "red"})


def test_the_shared_records_load(shared: Path) -> None:
    counts = {"akew-counterfact": 1, "ripple-ids": 1, "tracing-renamed": 1, "nfd": 1, "curly": 1, "mquake": 2}
    for name, count in counts.items():
        assert len(load_requests(shared / "cases" / f"{name}.json")) == count
    for name in ("zsre-portability", "edit-flat-loc"):
        (request,) = load_requests(shared / "cases" / f"{name}.json")
        assert request.paraphrase_prompts and request.unrelated and request.portability
    found = read_requests(shared / "cases" / "remake-mismatch.json", on_bad_record="skip")
    assert found.records == (0,) and [one.record for one in found.bad] == [1]
    assert "or name the subject 'Лайонел Месси'" in found.bad[0].reason
