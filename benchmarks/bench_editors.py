"""Editors against a plain implementation of the published loops, on a random GPT-2 of the size of GPT-2 small.

The reference runs one request at a time and, at every step, the whole model over every position with full logits; it
solves a d x d system for every batch and layer, and takes second moments in one padded pass of the whole model for each
layer. Both sides take 20 steps without an early stop, float32, on CounterFact prompts from ``PEFT_PRUNE_SHARED`` (by
default ``../shared``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Row, in_seconds, seconds
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from peft_prune import EditRequest, load_requests
from peft_prune.editors import SecondMoments, collect_second_moments, get_editor
from peft_prune.editors.closed_form import KeySystem, least_squares_rows, moment_inverse
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.models.mlp import mlp_output_module

SHARED = Path(os.environ.get("PEFT_PRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
STEPS = 20
NEVER = {"stop": "loss", "stop_loss": 1e-30, "v_num_grad_steps": STEPS}
MEMIT_LAYERS = (3, 4, 5, 6, 7)
ROME_LAYER = 4
SOLVE_WIDTH, SOLVE_BATCH = 14336, 100


def rows() -> Iterator[Row]:
    """Every goal of the editors' part; several minutes."""
    yield _solve_row()
    if not SHARED.is_dir():
        print(f"{SHARED} is missing; set PEFT_PRUNE_SHARED for the other rows of the editors")
        return
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "counterfact-gpt2-5m")
    model = GPT2LMHeadModel(GPT2Config()).eval()
    requests = load_requests(SHARED / "data" / "counterfact-dev-250.json", limit=40)
    texts = [f"{request.text} {request.target_true}." for request in requests]
    texts = [" ".join(texts[index : index + 6]) for index in range(0, len(texts), 2)]
    modules = [mlp_output_module(model, layer)[0] for layer in MEMIT_LAYERS]
    yield _moments_row(model, tokenizer, texts, modules)
    moments = collect_second_moments(model, tokenizer, texts, modules, progress=False)
    yield _memit_row(model, tokenizer, requests[:10], moments)
    yield _rome_row(model, tokenizer, requests[:4], moments)


def _row(what: str, reference: str, own: float, plain: float, goal: float, note: str = "") -> Row:
    return Row(what, reference, plain / own, goal, False, in_seconds(own), in_seconds(plain), note)


def _memit_row(model: Any, tokenizer: Any, requests: Sequence[EditRequest], moments: SecondMoments) -> Row:
    editor = get_editor("memit", layers=MEMIT_LAYERS, mom2_shrinkage=0.01, history=False, **NEVER)
    prepared = editor.prepare(model, tokenizer, moments)
    editor.compute(model, tokenizer, requests[:1], prepared)  # the factors of λC are made once
    own = seconds(lambda: editor.compute(model, tokenizer, requests, prepared)) / len(requests)
    plain = seconds(lambda: _plain_memit(model, tokenizer, requests, prepared.contexts, moments)) / len(requests)
    return _row("MEMIT, 5 layers, 6 contexts, batch of 10, per edit", "the published loop", own, plain, 10)


def _rome_row(model: Any, tokenizer: Any, requests: Sequence[EditRequest], moments: SecondMoments) -> Row:
    editor = get_editor("rome", layers=(ROME_LAYER,), mom2_shrinkage=0.01, **NEVER)
    prepared = editor.prepare(model, tokenizer, moments)
    editor.compute(model, tokenizer, requests[:1], prepared)
    own = seconds(lambda: [editor.compute(model, tokenizer, [r], prepared) for r in requests]) / len(requests)
    contexts = prepared.contexts

    def plain_edit(request: EditRequest) -> None:
        name, module = mlp_output_module(model, ROME_LAYER)
        key = _plain_key(model, tokenizer, request, contexts, module)
        _plain_value(model, tokenizer, request, contexts, module, "rome")
        torch.linalg.solve(_ridged(moments.moments[name]), key.double())

    plain = seconds(lambda: [plain_edit(request) for request in requests]) / len(requests)
    return _row("ROME, 21 contexts, single edits, per edit", "the published loop", own, plain, 6)


def _solve_row() -> Row:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(SOLVE_WIDTH, 2000, generator=generator)
    moment = (basis @ basis.T) / 2000 + torch.eye(SOLVE_WIDTH)
    batches = [torch.randn(SOLVE_WIDTH, SOLVE_BATCH, generator=generator).double() for _ in range(3)]
    weight = 15_000.0
    start = time.perf_counter()
    system = KeySystem(moment_inverse(moment, weight))
    made = time.perf_counter() - start
    least_squares_rows(system, batches[0])
    own = seconds(lambda: [least_squares_rows(system, batch) for batch in batches[1:]]) / 2
    found = least_squares_rows(system, batches[1])

    def dense() -> Tensor:
        return torch.linalg.solve(weight * moment.double() + batches[1] @ batches[1].T, batches[1])

    start = time.perf_counter()
    expected = dense().T
    plain = time.perf_counter() - start
    error = float((found - expected).norm() / expected.norm())
    return _row(
        "MEMIT solve at d = 14,336, batch 100, second and later batches",
        "torch.linalg.solve of the d x d system",
        own,
        plain,
        50,
        f"float64, relative difference {error:.0e}; factor {made:.0f} s, once",
    )


def _moments_row(model: Any, tokenizer: Any, texts: Sequence[str], modules: Sequence[str]) -> Row:
    def plain() -> None:
        tokenizer.pad_token = tokenizer.eos_token
        for name in modules:
            total = torch.zeros(3072, 3072)
            module = model.get_submodule(name)
            for text in range(0, len(texts), 32):
                encoded = tokenizer(list(texts[text : text + 32]), return_tensors="pt", padding=True)
                kept: list[Tensor] = []
                handle = module.register_forward_pre_hook(lambda m, args, kept=kept: kept.append(args[0]))
                with torch.no_grad():
                    model(**encoded)
                handle.remove()
                keys = kept[0][encoded["attention_mask"].bool()]
                total += keys.T @ keys

    def own() -> None:
        collect_second_moments(model, tokenizer, texts, modules, progress=False)

    own()
    return _row(
        "second moment of 5 layers over text",
        "one padded pass of the model per layer",
        seconds(own),
        seconds(plain),
        3,
    )


def _ridged(moment: Tensor) -> Tensor:
    matrix = moment.double()
    return matrix + 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)


def _plain_memit(
    model: Any, tokenizer: Any, requests: Sequence[EditRequest], contexts: Sequence[str], moments: SecondMoments
) -> None:
    """The published computation; the updates are solved for and not put into the weights."""
    last = model.transformer.h[MEMIT_LAYERS[-1]]
    for request in requests:
        _plain_value(model, tokenizer, request, contexts, last, "memit")
    for layer in MEMIT_LAYERS:
        name, module = mlp_output_module(model, layer)
        keys = torch.stack([_plain_key(model, tokenizer, request, contexts, module) for request in requests], dim=1)
        matrix = 20_000 * moments.moments[name].double() + keys.double() @ keys.double().T
        torch.linalg.solve(matrix + 200 * torch.eye(len(matrix), dtype=torch.float64), keys.double())


def _plain_key(model: Any, tokenizer: Any, request: EditRequest, contexts: Sequence[str], module: Any) -> Tensor:
    ids, mask, positions, _ = _padded_rows(tokenizer, request, contexts)
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    handle.remove()
    return kept[0][torch.arange(len(ids)), positions].mean(0)


def _plain_value(
    model: Any, tokenizer: Any, request: EditRequest, contexts: Sequence[str], module: Any, kind: str
) -> Tensor:
    """v* by whole forward passes of one request with every logit, as the published code runs it."""
    ids, mask, positions, labels = _padded_rows(tokenizer, request, contexts, targets=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    delta = torch.zeros(768, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=0.5)
    base: Tensor | None = None
    norm: Tensor | None = None

    def edit(m: Any, args: Any, output: Any) -> Any:
        nonlocal norm
        states = output[0] if isinstance(output, tuple) else output
        if norm is None:
            norm = states[0, positions[0]].detach().norm()
        states = states.clone()
        for row in range(len(ids)):
            states[row, positions[row]] += delta
        return (states, *output[1:]) if isinstance(output, tuple) else states

    for _ in range(STEPS):
        optimizer.zero_grad()
        handle = module.register_forward_hook(edit)
        logits = model(input_ids=ids, attention_mask=mask).logits
        handle.remove()
        scores = torch.log_softmax(logits, dim=2)
        asked = labels >= 0
        picked = scores.gather(2, labels.clamp(min=0)[..., None])[..., 0] * asked
        kl = torch.log_softmax(logits[-1, _ends(mask)[-1]][None], dim=1)
        base = kl.detach() if base is None else base
        nll = -(picked[:-1].sum(1) / asked[:-1].sum(1)).mean()
        divergence = torch.nn.functional.kl_div(base, kl, log_target=True, reduction="batchmean")
        assert norm is not None
        loss = nll + 0.0625 * divergence + 0.5 * delta.norm() / norm**2
        loss.backward()
        optimizer.step()
        limit = (4.0 if kind == "rome" else 0.75) * norm
        if delta.norm() > limit:
            with torch.no_grad():
                delta.mul_(limit / delta.norm())
    return delta.detach()


def _ends(mask: Tensor) -> Tensor:
    """Last position of each right-padded row."""
    return mask.sum(1) - 1


def _padded_rows(
    tokenizer: Any, request: EditRequest, contexts: Sequence[str], targets: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All contexts, and the KL prompt where targets are asked for, padded on the right."""
    templates = [f"{context} {request.prompt}" if context else request.prompt for context in contexts]
    prompts = [(prompt, True) for prompt in tokenize_prompts(tokenizer, templates, request.subject)]
    if targets:
        prompts.append((tokenize_prompts(tokenizer, ["{} is a"], request.subject)[0], False))
    target = tokenizer(" " + request.target_new)["input_ids"]
    sequences = [list(p.ids) + (target[:-1] if targets and asked else []) for p, asked in prompts]
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, ((prompt, asked), sequence) in enumerate(zip(prompts, sequences, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
        if targets and asked:
            start = len(prompt.ids) - 1
            labels[row, start : start + len(target)] = torch.tensor(target)
    return ids, mask, torch.tensor([prompt.subject_last for prompt, _ in prompts]), labels
