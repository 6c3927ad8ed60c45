"""Facts that must not be lost: how they are given, whether the base knows them, their keys and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..editors.blocks import read_inputs
from ..editors.tokens import tokenize_prompts
from ..errors import InvalidRequestError
from ..models.decoder import unwrapped
from ..models.inference import input_device, padded, undisturbed
from ..models.tokenization import continuation_ids, prompt_ids
from ..requests import read_records
from .passages import asked

BATCH = 64


@dataclass(frozen=True)
class ProtectedFact:
    """A fact that the base knows and that edits must leave alone.

    Args:
        prompt: With ``{}`` in the subject's place where a subject is given.
        object: The answer, without a leading space.
        subject: What the fact is about, where that is known.

    Raises:
        InvalidRequestError: A field is not a string, or is empty.
    """

    prompt: str
    object: str
    subject: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "object", *(["subject"] if self.subject is not None else [])):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InvalidRequestError(f"{name}: {value!r} must be a non-empty string")
        if self.subject is not None and self.prompt.count("{}") != 1:
            raise InvalidRequestError(f"prompt: {self.prompt!r} must hold '{{}}' once, for its subject is given")

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return self.prompt if self.subject is None else self.prompt.replace("{}", self.subject)


def read_protected(given: str | Path | Iterable[Any]) -> list[ProtectedFact]:
    """Facts from a JSON or JSONL file of objects with ``prompt``, ``object`` and perhaps ``subject``, or given.

    Args:
        given: The file, or mappings or objects with these fields.

    Raises:
        InvalidRequestError: There is none, or one is malformed; the message names its index.
    """
    is_file = isinstance(given, (str, Path))
    where = f"protect: {given}" if is_file else "protect"
    found = []
    for index, item in enumerate(read_records(Path(given)) if isinstance(given, (str, Path)) else given):
        fields = item if isinstance(item, Mapping) else getattr(item, "__dict__", None)
        if not isinstance(fields, Mapping) or not {"prompt", "object"} <= set(fields):
            raise InvalidRequestError(f"{where}: record {index} must have prompt and object")
        try:
            found.append(ProtectedFact(fields["prompt"], fields["object"], fields.get("subject")))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{where}: record {index}: {error}") from None
    if not found:
        raise InvalidRequestError(f"{where}: there is no fact to protect")
    return found


class Protection:
    """Protected facts on one model.

    Args:
        model: The model with its adapter; the base alone is asked.
        tokenizer: Its tokenizer.
        facts: All of them.
        modules: Names of the edited modules in the base.

    Raises:
        InvalidRequestError: The base does not know a fact, or one gives no token; the message names it.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, facts: Sequence[ProtectedFact], modules: Sequence[str]
    ) -> None:
        self.facts = tuple(facts)
        pairs = continuation_ids(tokenizer, [fact.text for fact in facts], [fact.object for fact in facts])
        self.passages = tuple(asked(pair.prompt, pair.target) for pair in pairs)
        with undisturbed(model), model.disable_adapter():
            unknown = [index for index, known in enumerate(self.kept(model)) if not known]
            self.keys = _keys(model, tokenizer, facts, modules)
        if unknown:
            fact, rest = self.facts[unknown[0]], len(unknown) - 1
            more = f", nor {rest} others" if rest else ""
            raise InvalidRequestError(
                f"protect: record {unknown[0]}: the base does not answer {fact.object!r} to {fact.text!r}{more}; "
                "only what it knows can be protected"
            )

    def kept(self, model: Any) -> list[bool]:
        """Whether every token of each answer is the model's most probable one, as the model is now."""
        found: list[bool] = []
        with undisturbed(model):
            for start in range(0, len(self.passages), BATCH):
                part = self.passages[start : start + BATCH]
                ids, mask = padded([passage.ids for passage in part], left=False, device=input_device(model))
                best = unwrapped(model)(input_ids=ids, attention_mask=mask, use_cache=False).logits.argmax(-1).tolist()
                found += [
                    all(row[place] == label for place, label in zip(passage.read, passage.labels, strict=True))
                    for passage, row in zip(part, best, strict=True)
                ]
        return found


def _keys(
    model: Any, tokenizer: PreTrainedTokenizerBase, facts: Sequence[ProtectedFact], modules: Sequence[str]
) -> dict[str, Tensor]:
    """Keys of the facts by module, (n, in) float32: at the subject's last token, or at every token of the prompt."""
    rows = [_places(tokenizer, fact) for fact in facts]
    found: dict[str, list[Tensor]] = {name: [] for name in modules}
    inner = unwrapped(model)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids, mask = padded([row for row, _ in part], left=False, device=input_device(model))
        places = [(index, place) for index, (_, own) in enumerate(part) for place in own]
        row, column = torch.tensor(places).T

        def keep(name: str, states: Tensor, row: Tensor = row, column: Tensor = column) -> None:
            found[name].append(states[row, column].float().cpu())

        read_inputs(inner, ids, mask, modules, keep)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _places(tokenizer: PreTrainedTokenizerBase, fact: ProtectedFact) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the prompt, and the places whose keys are kept."""
    if fact.subject is not None:
        (prompt,) = tokenize_prompts(tokenizer, [fact.prompt], fact.subject)
        return prompt.ids, (prompt.subject_last,)
    (ids,) = prompt_ids(tokenizer, [fact.text])
    return ids, tuple(range(len(ids)))
