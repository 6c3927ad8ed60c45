"""Train the built-in model: a small Llama that knows the generated world and four miniature abilities.

Deterministic for one machine and number of threads. Writes the model folder that the package ships:

    python examples/train_builtin_model.py --out peft_prune/builtin/model
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from peft_prune.builtin import ability_items, ability_names, held_out_texts, known_facts, training_texts, words
from peft_prune.evaluation import EXTRACTORS, Proportion, perplexity, score_ability
from peft_prune.models.answers import answers_with
from peft_prune.models.generation import greedy_answers

END = "<|endoftext|>"
STAGES = (
    ("world", 1500, 3e-3),
    ("abilities", 900, 1.5e-3),
    ("dialogues", 500, 1.5e-3),
    ("dialogues", 160, 1.5e-3),
    ("world", 35, 1e-3),
    ("world", 60, 1.5e-3),
    ("world", 40, 6e-4),
)
"""Kind of texts, steps and peak learning rate: first the world, then more of what is learned more slowly, then
the world again, of which the dialogues have pushed some facts out."""

ALIKE = [*words.DAYS, "lunch", "dinner"]
"""Words of the dialogues that the model would keep taking for one another."""


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    # the decaying moments of unused tokens would slow the optimizer by a factor of ten
    torch.set_flush_denormal(True)
    tokenizer = build_tokenizer(arguments.vocabulary, arguments.seed, arguments.texts)
    model = LlamaForCausalLM(configuration(arguments, tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    started = time.perf_counter()
    stages = [(stage, max(1, round(steps * arguments.share)), rate) for stage, steps, rate in STAGES]
    for stage, steps, rate in stages:
        if stage == "dialogues":
            tell_apart(model, tokenizer, ALIKE, arguments.seed)
        train(model, batches(tokenizer, stage, arguments), stage, steps, rate)
        # the file is in half precision, so each stage ends with what the file can hold
        model.half().float()
    how = {"seed": arguments.seed, "steps": sum(steps for _, steps, _ in stages), "threads": arguments.threads}
    how["seconds"] = round(time.perf_counter() - started)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    report(arguments.out, how, arguments.items)


def tell_apart(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, alike: list[str], seed: int, size: float = 0.05
) -> None:
    """Move the embeddings of words that stand in the same places only, at random.

    Tied embeddings of such words collapse into one vector (the days' have cosines of 0.99 after two stages), and then
    no gradient tells which of them a summary must repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        for word in alike:
            token = tokenizer(" " + word)["input_ids"][0]
            embeddings[token] += size * torch.randn(embeddings.shape[1], generator=generator)


def report(folder: Path, training: dict[str, int], items: int | None) -> None:
    """Measure the saved model, as it will be loaded, and write the figures beside it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    quality: dict[str, object] = {"training": training}
    quality["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    facts = known_facts()[:items]
    quality["facts"] = spelled_out(model, tokenizer, facts).to_json()
    for name in ability_names():
        asked = ability_items(name, 100, held_out=True)[:items]
        quality[name] = score_ability(model, tokenizer, asked, extract=EXTRACTORS[name]).to_json()
    quality["held_out_perplexity"] = round(perplexity(model, tokenizer, held_out_texts()[:items]), 3)
    (folder / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
    print(json.dumps(quality, indent=2))


def spelled_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: list[dict[str, str]]) -> Proportion:
    """The share of facts whose whole object is the model's greedy answer."""
    answers = greedy_answers(model, tokenizer, [fact["prompt"] for fact in facts], max_new_tokens=8, stop=".")
    return Proportion.of(answers_with(a, fact["object"]) for a, fact in zip(answers, facts, strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="sequences in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--inner", type=int, default=448)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0, help="of every stage's steps, for a trial")
    parser.add_argument("--items", type=int, help="measure on the first so many of each kind only, for a trial")
    parser.add_argument("--texts", type=int, default=20_000, help="texts that the tokenizer is made from")
    return parser.parse_args()


def build_tokenizer(size: int, seed: int, texts: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the training texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(islice(training_texts(seed), texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=256
    )


def configuration(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        intermediate_size=arguments.inner,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def batches(tokenizer: PreTrainedTokenizerFast, stage: str, arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Packed sequences, (batch, length + 1), each text ended by the end token."""
    needed = arguments.batch * (arguments.length + 1)
    buffer: list[int] = []
    stream = training_texts(arguments.seed, stage)
    while True:
        while len(buffer) < needed:
            texts = [text + END for text in islice(stream, 500)]
            for ids in tokenizer(texts)["input_ids"]:
                buffer.extend(ids)
        yield torch.tensor(buffer[:needed]).view(arguments.batch, -1)
        del buffer[:needed]


def train(model: LlamaForCausalLM, data: Iterator[Tensor], stage: str, steps: int, rate: float) -> None:
    """One stage with an optimizer of its own."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    bar = tqdm(range(steps), desc=f"Training: {stage}", mininterval=5)
    model.train()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, steps)
        batch = next(data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    warm_up = min(100, steps // 4)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


if __name__ == "__main__":
    main()
