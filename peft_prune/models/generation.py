"""Free greedy generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .decoder import unwrapped
from .halves import Halves
from .inference import (
    PADDING_ID,
    Progress,
    Steps,
    by_length,
    input_device,
    length_batches,
    max_positions,
    padded,
    require_batch_size,
    require_fit,
    undisturbed,
)
from .sharing import shared
from .tokenization import prompt_ids, text_ids

DRAWN_TEMPERATURE = 0.9
DRAWN_MASS = 0.95
DRAWN_AMONG = 256
"""Tokens that are drawn among at most: sorting a whole vocabulary takes a third of the time of writing."""

SPELLING_TOKENS = 3
"""Tokens generated beyond a target's own count: another spelling may take more, and a word's end must be seen."""

CHAT_TOKENS = 24
"""Tokens generated in chat beyond a target's own count: an answer may be a sentence around it."""


def greedy_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | Sequence[int],
    stop: str | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[str]:
    """The model's greedy continuation of each prompt, decoded, without special tokens.

    Prompts are sorted by length and padded on the left, with masked padding and positions that count from the first
    real token; keys and values are cached. The model's own generation settings (sampling, penalties) are not used. The
    tokenizer and the model are left as they were.

    Args:
        model: A causal language model of transformers, or a PEFT model of one.
        tokenizer: Its tokenizer; a pad token is not needed.
        prompts: Texts to continue; spaces at their end are dropped.
        max_new_tokens: Most tokens generated, for all prompts or for each.
        stop: Text that ends an answer and is not part of it; the EOS token ends it in any case.
        batch_size: Most prompts in one batch; the answers do not depend on it, up to ties in the last float digit.
        progress: Called with the number of prompts done and their total.

    Raises:
        InvalidRequestError: A prompt gives no token, or does not fit the model together with its answer.
        ValueError: ``max_new_tokens`` is below 1, has another length than ``prompts``, or ``stop`` is empty.
    """
    return greedy_continuations(
        model,
        tokenizer,
        prompt_ids(tokenizer, prompts),
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_size=batch_size,
        progress=progress,
    )


def greedy_continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop: str | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[str]:
    """`greedy_answers` to texts that are tokens already, such as those of a chat template.

    Args:
        model: As for `greedy_answers`, and so are the others.
        tokenizer: See there.
        sequences: Ids of each text; at least one.
        max_new_tokens: See there.
        stop: See there.
        batch_size: See there.
        progress: See there.

    Raises:
        InvalidRequestError: A text does not fit the model together with its answer.
        ValueError: As for `greedy_answers`.
    """
    if stop == "":
        raise ValueError("stop: '' is empty; give a text, or None for no stop text")
    found = greedy_ids(
        model,
        tokenizer,
        sequences,
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_size=batch_size,
        progress=progress,
    )
    texts = [decoded(tokenizer, ids) for ids in found]
    return texts if stop is None else [text.split(stop, 1)[0] for text in texts]


def greedy_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop: str | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[list[int]]:
    """The tokens of those answers, up to where the model ends them; with ``stop``, what follows it may be among them.

    Raises:
        InvalidRequestError: A text does not fit the model together with its answer.
        ValueError: As for `greedy_answers`.
    """
    limits = _limits(max_new_tokens, len(sequences))
    require_fit(model, [len(ids) + limit for ids, limit in zip(sequences, limits, strict=True)])
    require_batch_size(batch_size)
    end_ids = end_ids_of(model, tokenizer)

    def answered(own: Sequence[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in own]
        steps = Steps(progress, len(sequences))
        with undisturbed(model), generation_settings(model, end_ids):
            lengths, most = [len(sequences[i]) for i in own], [limits[i] for i in own]
            for batch in _batches(lengths, most, max_positions(model), batch_size):
                rows = [sequences[own[place]] for place in batch]
                new_ids = _generate(model, tokenizer, rows, max(most[place] for place in batch), stop).tolist()
                for place, ids in zip(batch, new_ids, strict=True):
                    answers[place] = before_end(ids[: most[place]], end_ids)
                steps.done(len(batch))
        return answers

    order = by_length([len(ids) for ids in sequences])
    found = dict(zip(order, shared(model, "answers", order, answered), strict=True))
    return [found[index] for index in range(len(sequences))]


def _limits(max_new_tokens: int | Sequence[int], count: int) -> list[int]:
    limits = [max_new_tokens] * count if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != count:
        raise ValueError(f"max_new_tokens: {len(limits)} numbers for {count} prompts; give one, or one for each")
    for limit in limits:
        if limit < 1:
            raise ValueError(f"max_new_tokens: {limit} must be at least 1")
    return limits


def _batches(
    lengths: Sequence[int], limits: Sequence[int], positions: int | None, batch_size: int
) -> Iterator[list[int]]:
    """Batches in which every row has room for the longest answer of the batch: all rows go on until that one ends."""
    for batch in length_batches(lengths, batch_size):
        left = batch
        while left:
            most = max(limits[index] for index in left)
            together = [index for index in left if positions is None or lengths[index] + most <= positions]
            yield together
            left = [index for index in left if index not in together]


def end_ids_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: the tokenizer's EOS and the model's own."""
    ids = {tokenizer.eos_token_id}
    own = getattr(unwrapped(model).generation_config, "eos_token_id", None)
    ids.update(own if isinstance(own, (list, tuple)) else [own])
    return sorted(token for token in ids if token is not None)


@contextmanager
def generation_settings(model: Any, end_ids: list[int], **settings: Any) -> Iterator[None]:
    """These settings of `generate` alone, greedy where they say nothing else, in place of the model's own."""
    # generate() fills what a call leaves open from the model's own settings, such as a repetition penalty
    given = {"do_sample": False, "num_beams": 1, "use_cache": True, **settings}
    plain = GenerationConfig(**given, eos_token_id=end_ids or None, pad_token_id=PADDING_ID)
    # PEFT's generate gives settings that were put on its wrapper to the model inside
    holders = [one for one in (unwrapped(model), model) if "generation_config" in vars(one)]
    own = [one.generation_config for one in holders]
    for one in holders:
        one.generation_config = plain
    try:
        yield
    finally:
        for one, config in zip(holders, own, strict=True):
            one.generation_config = config


class Nucleus(LogitsProcessor):
    """Leaves the most probable tokens that together have this probability (Holtzman et al. 2020, top-p).

    They are no more than `DRAWN_AMONG`; with fewer than these it is what sorting the whole vocabulary gives.

    Args:
        mass: The probability.
        temperature: By which logits are divided before.
    """

    def __init__(self, mass: float, temperature: float = 1.0) -> None:
        self._mass, self._temperature = mass, temperature

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        scores = scores.float() / self._temperature
        largest, places = scores.topk(min(DRAWN_AMONG, scores.shape[-1]), dim=-1)
        shares = (largest - scores.logsumexp(-1, keepdim=True)).exp()
        before = shares.cumsum(-1) - shares
        return torch.full_like(scores, -torch.inf).scatter(
            -1, places, largest.masked_fill(before > self._mass, -torch.inf)
        )


@contextmanager
def drawing(
    model: Any, end_ids: list[int], seed: int, mass: float, temperature: float = 1.0
) -> Iterator[LogitsProcessorList]:
    """`generate` draws, the same by seed, with what is yielded as its ``logits_processor``: see `Nucleus`.

    It computes in bfloat16 where the device has units for it. The model and torch's random state stay as they were.
    """
    device = input_device(model)
    own_device = [] if device.index is None else [device.index]
    with (
        undisturbed(model),
        generation_settings(model, end_ids, do_sample=True, top_k=0),
        Halves([unwrapped(model)], device).acting(backward=False),
        torch.random.fork_rng(own_device, device_type=device.type),
    ):
        torch.manual_seed(seed)
        yield LogitsProcessorList([Nucleus(mass, temperature)])


def drawn_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """What the model draws behind each prompt, all in one batch; "" for all where the model has no room for one.

    It is drawn at `DRAWN_TEMPERATURE` among the most probable tokens that together have `DRAWN_MASS`. The model and
    torch's random state are left as they were.
    """
    rows = text_ids(tokenizer, prompts)
    room = max_positions(model)
    if room is not None and max(map(len, rows)) + max_new_tokens > room:
        return ["" for _ in prompts]
    ids, mask = padded(rows, left=True, device=input_device(model))
    with drawing(model, end_ids_of(model, tokenizer), seed, DRAWN_MASS, DRAWN_TEMPERATURE) as drawn:
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, logits_processor=drawn
        )
    return [decoded(tokenizer, row) for row in written[:, ids.shape[1] :].tolist()]


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens that a model wrote, without special ones, otherwise as it is."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def before_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens in front of the first that ends a text; all where none does."""
    place = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return ids[:place]


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: str | None,
) -> Tensor:
    ids, mask = padded(sequences, left=True, device=input_device(model))
    criteria = None if stop is None else StoppingCriteriaList([_StopText(tokenizer, stop, ids.shape[1])])
    output = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, stopping_criteria=criteria
    )
    return output[:, ids.shape[1] :]


class _StopText(StoppingCriteria):
    """Ends a row once the text that it generated holds ``stop``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, prompt_width: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._prompt_width = prompt_width
        # a stop text of n bytes, completed by the newest token, lies within the last n tokens
        self._window = len(stop.encode()) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        start = max(self._prompt_width, input_ids.shape[1] - self._window)
        texts = self._tokenizer.batch_decode(
            input_ids[:, start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return torch.tensor([self._stop in text for text in texts], device=input_ids.device)
