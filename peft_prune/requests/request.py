"""An edit request: one fact to overwrite, every field of it checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..errors import InvalidRequestError
from .asking import require_ask
from .formats import PROMPT_LISTS, read_record, warn_of_unread
from .question import Question, as_question, require_clean, require_text, shown
from .subject import template

_ADDED = ("separator", "question", "ask")
"""Fields that earlier versions did not have."""


@dataclass(frozen=True)
class EditRequest:
    """One fact to overwrite, in the terms of CounterFact (Meng et al. 2022, section 3.4).

    Args:
        prompt: Template with exactly one ``{}`` where the subject stands, such as ``"{} is developed by"``; the whole
            text, such as a question, where there is no subject.
        subject: The entity that the fact is about; None where none is named, for editors that need none
            (:attr:`~peft_prune.editors.Editor.needs_subject`).
        target_new: The continuation that the edited model must give, without a leading space.
        target_true: The continuation that the base model gives, where known; needed by the locality metric.
        paraphrase_prompts: Other wordings of the same fact, complete with their subject (generalization).
        neighborhood_prompts: Prompts on other subjects that share ``target_true`` (locality).
        generation_prompts: Beginnings of texts about the subject, for fluency.
        portability: Questions whose answers follow from the new fact (Zhang et al. 2024, arXiv 2401.01286).
        unrelated: Questions that the edit must leave alone and that need not share ``target_true``.
        case_id: Identifier of the record in its data set, for reports.
        relation_id: Identifier of the relation (Wikidata's, in CounterFact), for reports.
        separator: What stands between a prompt of this request and a target: "" for nothing, " ", or any text. None
            leaves it to the language (:func:`~peft_prune.models.joining.separator_between`).
        question: What a person would ask for this fact, with ``{}`` or the subject's name in it; made from the prompt
            where it is not given (:func:`~peft_prune.requests.asking.question_form`). Asked in chat only.
        ask: "plain", "chat" or "both"; None leaves it to the run.

    Raises:
        InvalidRequestError: A field has the wrong type, is empty, or holds a character that no text may hold, or the
            prompt does not hold one ``{}``, or holds one without a subject.
    """

    prompt: str
    subject: str | None
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    portability: tuple[Question, ...] = ()
    unrelated: tuple[Question, ...] = ()
    case_id: int | str | None = None
    relation_id: str | None = None
    separator: str | None = None
    question: str | None = None
    ask: str | None = None

    def __post_init__(self) -> None:
        self._settle()
        for field, text in self._texts():
            require_clean(field, text)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.filled(self.prompt)

    @property
    def name(self) -> str:
        """What tables name it by: its subject, or else its prompt."""
        return self.prompt if self.subject is None else self.subject

    @property
    def about(self) -> str:
        """What messages name it by."""
        return f"prompt {shown(self.prompt)}" if self.subject is None else f"subject {self.subject!r}"

    def with_subject(self) -> str:
        """The subject.

        Raises:
            InvalidRequestError: There is none.
        """
        if self.subject is None:
            raise InvalidRequestError(f"subject: is missing, and {self.about} needs one here")
        return self.subject

    def filled(self, template: str) -> str:
        """A text with the subject in the place of its ``{}``; as it is where there is no subject."""
        return template if self.subject is None else template.replace("{}", self.subject)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EditRequest:
        """Build a request from a record that states one fact, in the form of any of the data sets below.

        * CounterFact (Meng et al. 2022), and AKEW (Wu et al. 2024): ``requested_rewrite`` and lists of prompts.
        * MQuAKE (Zhong et al. 2023): the same with a list of them, see :meth:`all_from_record`; ``questions`` with
          ``new_answer`` are portability questions.
        * ZsRE (Mitchell et al. 2022): ``src``, ``rephrase``, ``alt``, ``answers``, ``loc``, ``loc_ans``. The new target
          is ``alt``, and the first answer the true one; without ``alt`` the first answer is the new target.
        * KnowEdit (Zhang et al. 2024): ``portability`` and ``locality`` as objects that hold questions by their kind,
          ``ground_truth``, ``rephrase_prompt``, ``concept``; and the flat ``locality_prompt``, ``portability_prompt``.
        * RippleEdits (Cohen et al. 2024): ``edit``, and lists of tests by their kind.
        * Flat: this class's own field names.

        Other fields are left alone; those that look as if something should be measured by them are named in a warning.
        Where a prompt holds no ``{}``, the last place in which it names the subject is taken, up to Unicode form and
        quotes. A record without a subject is a question or a text with its answer. A true target that is the new one
        tells nothing and is left out.

        Raises:
            InvalidRequestError: The record is not a mapping, lacks a field, states several facts, or a field is
                malformed.
        """
        requests = cls.all_from_record(record)
        if len(requests) > 1:
            raise InvalidRequestError(
                f"requested_rewrite: states {len(requests)} facts; EditRequest.all_from_record gives all of them"
            )
        return requests[0]

    @classmethod
    def all_from_record(cls, record: Mapping[str, Any]) -> list[EditRequest]:
        """The requests of a record in order, of which some data sets put several into one; see :meth:`from_record`.

        Raises:
            InvalidRequestError: As :meth:`from_record`.
        """
        reading = read_record(record)
        warn_of_unread([reading.names])
        return [cls(**own) for own in reading.requests]

    def document(self) -> dict[str, Any]:
        """The request ready for JSON, as :meth:`stored` reads it.

        What later versions have added is left out where it is not given, so that what knows none of it has the same
        document.
        """
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _ADDED}

    @classmethod
    def stored(cls, document: Mapping[str, Any]) -> EditRequest:
        """A request as it was written to a history, by this or an earlier version.

        What is there was accepted once, so the characters of its texts are not checked again.

        Raises:
            InvalidRequestError: A field is missing, unknown, or has the wrong type.
        """
        known = {field.name: field.default for field in fields(cls)}
        unknown = [name for name in document if name not in known]
        if unknown:
            raise InvalidRequestError(f"{unknown[0]}: is no field of a request")
        request = object.__new__(cls)
        for name, default in known.items():
            if name not in document and default is MISSING:
                raise InvalidRequestError(f"{name}: is missing")
            object.__setattr__(request, name, document.get(name, default))
        request._settle()
        return request

    def _settle(self) -> None:
        """Check the types, and make lists tuples and objects questions."""
        for field in ("prompt", "target_new"):
            require_text(field, getattr(self, field))
        if self.subject is not None:
            require_text("subject", self.subject)
        if self.target_true is not None:
            require_text("target_true", self.target_true)
        if self.subject is None and "{}" in self.prompt:
            raise InvalidRequestError(
                f"subject: is missing, and the prompt {shown(self.prompt)} holds its place '{{}}'"
            )
        if self.subject is not None and self.prompt.count("{}") != 1:
            raise InvalidRequestError(
                f"prompt: {shown(self.prompt)} must hold the subject's place '{{}}' exactly once, "
                f"it holds it {self.prompt.count('{}')} times"
            )
        for field in PROMPT_LISTS:
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or not all(
                isinstance(text, str) and text.strip() for text in value
            ):
                raise InvalidRequestError(f"{field}: {shown(value)} must be a list of non-empty strings")
            object.__setattr__(self, field, tuple(value))
        for field in ("portability", "unrelated"):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)):
                raise InvalidRequestError(f"{field}: {shown(value)} must be a list of questions")
            object.__setattr__(self, field, tuple(as_question(field, one) for one in value))
        if self.case_id is not None and not isinstance(self.case_id, str):
            whole = isinstance(self.case_id, int) and not isinstance(self.case_id, bool)
            # no file could hold a number of more than some thousand digits
            if not whole or self.case_id.bit_length() > 1000:
                raise InvalidRequestError(f"case_id: {shown(self.case_id)} must be a whole number or a string")
        if self.relation_id is not None:
            require_text("relation_id", self.relation_id)
        if self.separator is not None and not isinstance(self.separator, str):
            raise InvalidRequestError(f"separator: {shown(self.separator)} must be a string")
        self._settle_asking()

    def _settle_asking(self) -> None:
        if self.ask is not None:
            require_ask(self.ask)
        if self.question is None:
            return
        require_text("question", self.question)
        if self.subject is None:
            if "{}" in self.question:
                raise InvalidRequestError(
                    f"question: {shown(self.question)} holds the place '{{}}' of a subject, and there is none"
                )
            return
        if "{}" not in self.question:
            object.__setattr__(self, "question", template(self.question, self.subject, "question"))
        if self.question.count("{}") != 1:
            raise InvalidRequestError(f"question: {shown(self.question)} must hold the subject's place '{{}}' once")

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Every text of the request, with the field that holds it."""
        for field in (
            "prompt",
            "subject",
            "target_new",
            "target_true",
            "relation_id",
            "case_id",
            "separator",
            "question",
        ):
            value = getattr(self, field)
            if isinstance(value, str):
                yield field, value
        for field in PROMPT_LISTS:
            yield from ((field, text) for text in getattr(self, field))
        for field in ("portability", "unrelated"):
            yield from ((field, text) for one in getattr(self, field) for text in (one.prompt, *one.answers))
