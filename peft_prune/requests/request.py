"""An edit request: one fact to overwrite, every field of it checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequestError
from .formats import PROMPT_LISTS, request_fields
from .question import Question, as_question, require_text


@dataclass(frozen=True)
class EditRequest:
    """One fact to overwrite, in the terms of CounterFact (Meng et al. 2022, section 3.4).

    Args:
        prompt: Template with exactly one ``{}`` where the subject stands, such as ``"{} is developed by"``.
        subject: The entity that the fact is about.
        target_new: The continuation that the edited model must give, without a leading space.
        target_true: The continuation that the base model gives, where known; needed by the locality metric.
        paraphrase_prompts: Other wordings of the same fact, complete with their subject (generalization).
        neighborhood_prompts: Prompts on other subjects that share ``target_true`` (locality).
        generation_prompts: Beginnings of texts about the subject, for fluency.
        portability: Questions whose answers follow from the new fact (Zhang et al. 2024, arXiv 2401.01286).
        unrelated: Questions that the edit must leave alone and that need not share ``target_true``.
        case_id: Identifier of the record in its data set, for reports.
        relation_id: Identifier of the relation (Wikidata's, in CounterFact), for reports.

    Raises:
        InvalidRequestError: A field has the wrong type, is empty, or the template does not hold one ``{}``.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    portability: tuple[Question, ...] = ()
    unrelated: tuple[Question, ...] = ()
    case_id: int | str | None = None
    relation_id: str | None = None

    def __post_init__(self) -> None:
        for field in ("prompt", "subject", "target_new"):
            require_text(field, getattr(self, field))
        if self.target_true is not None:
            require_text("target_true", self.target_true)
        if self.prompt.count("{}") != 1:
            raise InvalidRequestError(
                f"prompt: {self.prompt!r} must hold the subject's place '{{}}' exactly once, "
                f"it holds it {self.prompt.count('{}')} times"
            )
        for field in PROMPT_LISTS:
            value = getattr(self, field)
            if isinstance(value, str) or not all(isinstance(text, str) and text.strip() for text in value):
                raise InvalidRequestError(f"{field}: {value!r} must be a list of non-empty strings")
            object.__setattr__(self, field, tuple(value))
        for field in ("portability", "unrelated"):
            object.__setattr__(self, field, tuple(as_question(field, one) for one in getattr(self, field)))
        if self.case_id is not None and (isinstance(self.case_id, bool) or not isinstance(self.case_id, (int, str))):
            raise InvalidRequestError(f"case_id: {self.case_id!r} must be a whole number or a string")
        if self.relation_id is not None:
            require_text("relation_id", self.relation_id)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EditRequest:
        """Build a request from a record of one of the forms below; which one, its fields tell.

        * CounterFact (Meng et al. 2022): ``requested_rewrite`` and lists of prompts.
        * ZsRE (Mitchell et al. 2022): ``src``, ``rephrase``, ``alt``, ``answers``, ``loc``, ``loc_ans``. The new target
          is ``alt``, and the first answer the true one; without ``alt`` the first answer is the new target.
        * KnowEdit (Zhang et al. 2024): ``portability`` and ``locality`` as objects that hold questions by their kind,
          or ``ground_truth``, ``rephrase_prompt`` or ``concept``.
        * Flat: this class's own field names; other fields are left alone, unless their name is nearly one of these.

        Where a prompt holds no ``{}``, the last place in which it names the subject is taken. A true target that is the
        new one tells nothing and is left out.

        Raises:
            InvalidRequestError: The record is not a mapping, lacks a field, or a field is malformed.
        """
        return cls(**request_fields(record))
