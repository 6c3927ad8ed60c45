"""Where a model keeps its facts: causal tracing, and the layers that it suggests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidRequestError
from ..models.answers import answers_with
from ..models.decoder import decoder_blocks, unwrapped
from ..models.generation import SPELLING_TOKENS, greedy_answers
from ..models.inference import by_rows, input_device, undisturbed
from ..models.joining import asked
from ..models.mlp import mlp_output_modules
from ..models.probe import require_text_decoder
from ..models.tokenization import continuation_ids
from ..moving import moving_bar
from ..requests import EditRequest
from .tokens import tokenize_prompts

NOISE = 3.0
WINDOW = 10 / 48


@dataclass(frozen=True)
class Location:
    """Average indirect effects at the subject's last token.

    Args:
        block: For each layer, how much of the object's probability comes back when this block's output is restored.
        mlp: The same for the outputs of the MLPs in a window around the layer; NaN where none in it can be edited.
        window: Number of layers in that window.
        clean: Mean probability of the object, undisturbed.
        corrupted: The same with noise on the subject's embeddings.
        facts: How many facts the means are over.
        editable: The layers that can be edited, and so be suggested; all if not given.
    """

    block: tuple[float, ...]
    mlp: tuple[float, ...]
    window: int
    clean: float
    corrupted: float
    facts: int
    editable: tuple[int, ...] | None = None

    @property
    def layer(self) -> int:
        """The editable layer with the largest effect of the MLPs around it: what ROME should edit."""
        return max(self._editable, key=lambda layer: self.mlp[layer])

    @property
    def layers(self) -> tuple[int, ...]:
        """The editable layers that end at that layer: what MEMIT and its kin should edit."""
        count = max(1, round(len(self.mlp) * 5 / 48))
        return tuple(layer for layer in self._editable if layer <= self.layer)[-count:]

    @property
    def _editable(self) -> tuple[int, ...]:
        return tuple(range(len(self.mlp))) if self.editable is None else self.editable


def locate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[EditRequest],
    *,
    samples: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Location:
    """Causal tracing (Meng et al. 2022, section 2): noise on the subject, one state restored, the object asked for.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        facts: Requests with ``target_true``; those that the model does not know are left out.
        samples: Draws of the noise, three times the standard deviation of the embeddings, for each fact.
        seed: Of the noise.
        progress: Show a bar.

    Raises:
        InvalidRequestError: The model knows none of the facts, or none has a ``target_true``.
        UnsupportedModelError: No layer of the model can be edited, or it cannot be run on text alone.
    """
    blocks = [block for _, block in decoder_blocks(model)]
    mlps = {layer: unwrapped(model).get_submodule(name) for layer, name in mlp_output_modules(model).items()}
    require_text_decoder(model, tuple(mlps))
    known = _known(model, tokenizer, facts)
    window = max(1, round(len(blocks) * WINDOW))
    places = [[block] for block in blocks] + [_around(mlps, layer, window) for layer in range(len(blocks))]
    generator = torch.Generator().manual_seed(seed)
    effects = torch.zeros(len(places), dtype=torch.float64)
    clean = corrupted = 0.0
    with undisturbed(model), moving_bar(total=len(known), desc="Tracing", unit=" facts", disable=not progress) as bar:
        for fact in known:
            trace = _Trace(model, tokenizer, fact, samples, generator)
            whole, low = trace.run([])
            clean, corrupted = clean + whole, corrupted + low
            restored = [trace.run(modules)[1] - low if modules else torch.nan for modules in places]
            effects += torch.tensor(restored, dtype=torch.float64)
            bar.update()
    means = (effects / len(known)).tolist()
    depth = len(blocks)
    mean_clean, mean_corrupted = clean / len(known), corrupted / len(known)
    return Location(
        tuple(means[:depth]), tuple(means[depth:]), window, mean_clean, mean_corrupted, len(known), tuple(mlps)
    )


def _known(model: Any, tokenizer: PreTrainedTokenizerBase, facts: Sequence[EditRequest]) -> list[EditRequest]:
    told = [fact for fact in facts if fact.target_true is not None]
    objects, separators = [str(fact.target_true) for fact in told], [fact.separator for fact in told]
    pairs = continuation_ids(tokenizer, [fact.text for fact in told], objects, separators)
    texts = [asked(fact.text, fact.separator) for fact in told]
    lengths = [len(pair.target) + SPELLING_TOKENS for pair in pairs]
    answers = greedy_answers(model, tokenizer, texts, max_new_tokens=lengths) if told else []
    known = [fact for fact, answer, o in zip(told, answers, objects, strict=True) if answers_with(answer, o)]
    if not known:
        raise InvalidRequestError(
            f"facts: the model knows none of the {len(told)} that have a target_true (of {len(facts)} in all)"
        )
    return known


def _around(modules: Mapping[int, nn.Module], layer: int, window: int) -> list[nn.Module]:
    start = layer - window // 2
    return [modules[index] for index in range(start, start + window) if index in modules]


class _Trace:
    """One fact: a clean row and noised ones, in one batch, with states of the clean row put into the others."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        fact: EditRequest,
        samples: int,
        generator: torch.Generator,
    ) -> None:
        (prompt,) = tokenize_prompts(tokenizer, [fact.prompt], fact.with_subject(), [fact.separator or ""])
        (pair,) = continuation_ids(tokenizer, [fact.text], [str(fact.target_true)], [fact.separator])
        self._model = unwrapped(model)
        self._embeddings = cast(nn.Embedding, self._model.get_input_embeddings())
        self._target = pair.target[0]
        self._last = prompt.subject_last
        first = self._last - _subject_length(tokenizer, fact) + 1
        self._span = slice(max(0, first), self._last + 1)
        self._ids = torch.tensor([pair.prompt], device=input_device(model)).repeat(samples + 1, 1)
        size = (samples, self._last + 1 - self._span.start, self._embeddings.weight.shape[1])
        self._noise = torch.randn(size, generator=generator) * NOISE * float(self._embeddings.weight.float().std())

    def run(self, modules: Sequence[nn.Module]) -> tuple[float, float]:
        """Probability of the object's first token in the clean row, and its mean over the noised ones."""

        def disturb(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[1:, self._span] += self._noise.to(output.device, output.dtype)
            return output

        def restore(module: nn.Module, args: Any, output: Any) -> Any:
            whole = (output[0] if isinstance(output, tuple) else output).clone()
            states = by_rows(whole, len(self._ids))
            states[1:, self._last] = states[0, self._last]
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        with ExitStack() as stack:
            stack.callback(self._embeddings.register_forward_hook(disturb).remove)
            for module in modules:
                stack.callback(module.register_forward_hook(restore).remove)
            logits = self._model(input_ids=self._ids, use_cache=False).logits[:, -1].float()
        probability = logits.softmax(-1)[:, self._target]
        return float(probability[0]), float(probability[1:].mean())


def _subject_length(tokenizer: PreTrainedTokenizerBase, fact: EditRequest) -> int:
    """Number of tokens from the subject's first to its last."""
    before = fact.prompt[: fact.prompt.index("{}")]
    text = before + fact.with_subject()
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return sum(1 for start, end in offsets if end > len(before) and end > start)
