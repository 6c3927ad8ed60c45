"""Tokenizers made on the spot, models with clear preferences, and the plain computations that tests compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .tiny import tiny_gpt2, tiny_llama

WORDS = "ant eat tan nest oats sea note tone seat east soot toast stone tea net ten son too nose sane".split()


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in GPT-2's manner: the leading space is part of a word; no BOS, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=50, special_tokens=["<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def bos_tokenizer(*, with_eos: bool = False) -> PreTrainedTokenizerFast:
    """A BPE in Llama's manner: words are marked at their beginning, a BOS is put in front, an EOS behind if asked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<end>", "<s>", "<unk>"]
    tokenizer.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=50, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>" if with_eos else "<s> $A", special_tokens=[("<s>", 1), ("<end>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<end>", unk_token="<unk>", pad_token="<unk>"
    )


def chat_tokenizer(opening: str = "<s>") -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts these special tokens in front; it reads any script, a byte at worst for a token."""
    marks = [f"{part}>" for part in opening.split(">") if part]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*marks, "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the sea", "(A", "是上", *_texts()] * 3, trainer)
    pairs = [(mark, index) for index, mark in enumerate(marks)]
    tokenizer.post_processor = processors.TemplateProcessing(single=" ".join([*marks, "$A"]), special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=marks[0], eos_token="<end>", additional_special_tokens=marks[1:]
    )


def outspoken(kind: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model whose weights are large enough that no two tokens are nearly tied."""
    model = {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind](seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0)
    # tied to the embeddings, the head would mostly repeat the last token
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(model.config.vocab_size, model.config.hidden_size, generator=generator)
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    return model


def dense_log_probabilities(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities ``(tokens, vocabulary)`` of one unpadded sequence in float64, without a cache."""
    dtype = next(model.parameters()).dtype
    model.double()
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
    finally:
        model.to(dtype)


def dense_target_score(model: PreTrainedModel, prompt: Sequence[int], target: Sequence[int]) -> float:
    """Mean log-probability of the target's tokens after the prompt, in float64."""
    scores = dense_log_probabilities(model, [*prompt, *target])
    places = range(len(prompt) - 1, len(prompt) + len(target) - 1)
    return sum(scores[place, token].item() for place, token in zip(places, target, strict=True)) / len(target)


def dense_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int, end: int = 0) -> list[int]:
    """Greedy tokens one by one, the whole sequence anew for each, up to the end token."""
    ids = list(prompt)
    for _ in range(count):
        token = int(dense_log_probabilities(model, ids)[-1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]


def sentences(count: int, seed: int = 0, longest: int = 5) -> list[str]:
    """Random prompts of one to ``longest`` words."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    return [" ".join(WORDS[draw(len(WORDS))] for _ in range(1 + draw(longest))) for _ in range(count)]


def _texts() -> list[str]:
    # with a space in front of every word, so that merges with the space are learned
    return [f" {word}" for word in WORDS]


CHATML = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template that takes a system prompt; answers follow at once."""

SYSTEMLESS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if message.role == 'user' %}[ask] {{ message.content | trim }} [/ask]"
    "{% else %} {{ message.content }}{% endif %}{% endfor %}"
)
"""In the manner of Llama 2: no system prompt, what is said is trimmed, and an answer has a space before it."""


def speaking_tokenizer(template: str | None = CHATML, opening: str = "<s>") -> PreTrainedTokenizerFast:
    """`chat_tokenizer` with a chat template."""
    tokenizer = chat_tokenizer(opening)
    tokenizer.chat_template = template
    return tokenizer


def speaking_model(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    """`outspoken` with room for conversations spelt in bytes."""
    model = outspoken(kind, seed)
    model.resize_token_embeddings(300, mean_resizing=False)
    model.config.max_position_embeddings = 512
    return model
