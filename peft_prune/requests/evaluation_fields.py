"""What a record brings to measure an edit by: other wordings, questions that follow, questions it must leave alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InvalidRequestError
from .question import Question, as_question, require_text, shown

PARAPHRASES = ("paraphrase_prompts", "paraphrase_prompt", "rephrase_prompts", "rephrase_prompt", "rephrase")
NEIGHBORS = ("neighborhood_prompts", "neighbourhood_prompts")

PORTABILITY_TESTS = (
    *("Logical_Generalization", "Subject_Aliasing", "Reasoning"),
    *("Compositionality_I", "Compositionality_II"),
)
LOCALITY_TESTS = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
"""Kinds of tests in RippleEdits (Cohen et al. 2024, section 4) and KnowEdit; one is misspelt in published files."""

READ = (
    *PARAPHRASES,
    *NEIGHBORS,
    *("generation_prompts", "portability", "portability_prompt", "portability_ground_truth"),
    *("unrelated", "locality", "locality_prompt", "locality_ground_truth", "loc", "loc_ans"),
    *("questions", "new_answer", "new_answer_alias"),
    *PORTABILITY_TESTS,
    *LOCALITY_TESTS,
)
"""The names of the fields that are read here."""

_NATURAL_QUESTIONS_MARK = "nq question: "


def prompt_lists(record: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The lists of prompts of a request, from all fields of ``record`` that hold such prompts.

    Raises:
        InvalidRequestError: A field is neither a text nor a list.
    """
    names = {
        "paraphrase_prompts": PARAPHRASES,
        "neighborhood_prompts": NEIGHBORS,
        "generation_prompts": ("generation_prompts",),
    }
    return {
        name: tuple(text for field in fields for text in _prompts(record.get(field), field))
        for name, fields in names.items()
    }


def portability_questions(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Questions whose answers follow from the new fact.

    Raises:
        InvalidRequestError: A question is malformed.
    """
    found = [*_questions(record, "portability")]
    found += _paired(record, "portability_prompt", "portability_ground_truth")
    if record.get("questions") is not None and record.get("new_answer") is not None:
        answers = texts_in([record["new_answer"], record.get("new_answer_alias")], "new_answer")
        found += [Question(prompt, answers) for prompt in _prompts(record["questions"], "questions")]
    return (*found, *_tests(record, PORTABILITY_TESTS))


def unrelated_questions(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Questions that the edit must leave alone.

    Raises:
        InvalidRequestError: A question is malformed.
    """
    found = [*_questions(record, "unrelated"), *_questions(record, "locality")]
    found += _paired(record, "locality_prompt", "locality_ground_truth")
    found += _paired(record, "loc", "loc_ans")
    return (*found, *_tests(record, LOCALITY_TESTS))


def texts_in(value: Any, field: str) -> tuple[str, ...]:
    """All texts in ``value``, a text or lists of lists of texts, without empty and repeated ones.

    Raises:
        InvalidRequestError: It holds something else, or no text.
    """
    texts = _flat(value)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError(f"{field}: {shown(value)} must be a string or a list of strings")
    answers = tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not answers:
        raise InvalidRequestError(f"{field}: {shown(value)} holds no answer")
    return answers


def _prompts(value: Any, field: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, (str, list, tuple)):
        raise InvalidRequestError(f"{field}: {shown(value)} must be a list")
    return _flat(value)


def _paired(record: Mapping[str, Any], field: str, answers: str) -> Iterator[Question]:
    """Questions of a field that holds one prompt or several, and of one that holds their answers."""
    if record.get(field) is None:
        return
    if record.get(answers) is None:
        raise InvalidRequestError(f"{answers}: is missing")
    yield from _together(record[field], record[answers], field, answers)


def _together(prompts: Any, answers: Any, field: str, answers_field: str) -> Iterator[Question]:
    if isinstance(prompts, str):
        prompts, answers = [prompts], [answers]
    if not isinstance(prompts, (list, tuple)):
        raise InvalidRequestError(f"{field}: {shown(prompts)} must be a string or a list of strings")
    if not isinstance(answers, (list, tuple)) or len(answers) != len(prompts):
        raise InvalidRequestError(f"{answers_field}: {shown(answers)} must hold an answer for each of {len(prompts)}")
    for prompt, own in zip(prompts, answers, strict=True):
        require_text(field, prompt)
        yield Question(prompt.removeprefix(_NATURAL_QUESTIONS_MARK), texts_in(own, answers_field))


def _questions(record: Mapping[str, Any], field: str) -> Iterator[Question]:
    """Questions of a field in the form of a request, of KnowEdit, of EasyEdit or of ZsRE's portability."""
    value = record.get(field) or ()
    if isinstance(value, (list, tuple)):
        yield from (as_question(field, one) for one in value)
        return
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{field}: {shown(value)} must be an object that holds lists of questions by kind")
    if "New Question" in value:
        for name in ("New Question", "New Answer"):
            if name not in value:
                raise InvalidRequestError(f"{field}.{name}: is missing")
        yield from _together(value["New Question"], value["New Answer"], f"{field}.New Question", f"{field}.New Answer")
        return
    for kind, questions in value.items():
        where = f"{field}.{kind}"
        if isinstance(questions, Mapping) and {"prompt", "ground_truth"} <= set(questions):
            yield from _together(questions["prompt"], questions["ground_truth"], where, f"{where}.ground_truth")
        elif isinstance(questions, (list, tuple, type(None))):
            yield from _listed(questions or (), where)
        else:
            raise InvalidRequestError(f"{where}: {shown(questions)} must be a list of questions")


def _listed(questions: Any, where: str) -> Iterator[Question]:
    for index, one in enumerate(questions):
        place = f"{where}[{index}]"
        if not isinstance(one, Mapping):
            raise InvalidRequestError(f"{place}: {shown(one)} must be an object with prompt and ground_truth")
        prompts = _flat(one.get("prompt"))
        if not prompts or not isinstance(prompts[0], str) or not prompts[0].strip():
            raise InvalidRequestError(f"{place}.prompt: {shown(one.get('prompt'))} must be a non-empty string")
        yield Question(prompts[0], texts_in(one.get("ground_truth"), f"{place}.ground_truth"))


def _tests(record: Mapping[str, Any], kinds: tuple[str, ...]) -> Iterator[Question]:
    """The test queries of RippleEdits; those for which it knows no answer are left out."""
    for kind in kinds:
        tests = record.get(kind) or ()
        if not isinstance(tests, (list, tuple)):
            raise InvalidRequestError(f"{kind}: {shown(tests)} must be a list of tests")
        for index, test in enumerate(tests):
            place = f"{kind}[{index}]"
            if not isinstance(test, Mapping):
                raise InvalidRequestError(f"{place}: {shown(test)} must be an object with test_queries")
            queries = test.get("test_queries", [test])
            if not isinstance(queries, (list, tuple)):
                raise InvalidRequestError(f"{place}.test_queries: {shown(queries)} must be a list")
            for query in queries:
                if not isinstance(query, Mapping) or "prompt" not in query:
                    raise InvalidRequestError(f"{place}: {shown(query)} must be an object with prompt and answers")
                answers = _answer_values(query.get("answers", query.get("ground_truth")))
                if answers:
                    require_text(f"{place}.prompt", query["prompt"])
                    yield Question(query["prompt"], texts_in(answers, f"{place}.answers"))


def _answer_values(answers: Any) -> list[Any]:
    found: list[Any] = []
    for one in _flat(answers):
        found += [one.get("value"), one.get("aliases")] if isinstance(one, Mapping) else [one]
    return [text for text in _flat(found) if not (isinstance(text, str) and not text.strip())]


def _flat(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(part for one in value for part in _flat(one))
    return () if value is None else (value,)
