"""The optimised value against the plain loop of the published code: one request, the whole model, every logit."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from peft_prune import EditRequest
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.editors.values import ValueSettings, optimize_values
from peft_prune.models.decoder import decoder_blocks
from peft_prune.models.mlp import mlp_output_module
from tests.talking import outspoken, spaced_tokenizer

REQUESTS = [
    EditRequest("note {} sea", "sane ant", "ten"),
    EditRequest("{} eat", "tone seat", "net son"),
    EditRequest("the tea {}", "oats", "nose"),
]
CONTEXTS = ("", "stone tea.", "tan ant eat soot.")


def plain_value(
    model, tokenizer, request: EditRequest, layer: int, settings: ValueSettings
) -> tuple[Tensor, int, float]:
    """δ, steps and loss by full forward passes of one context at a time."""
    mlp = mlp_output_module(model, layer)[1]
    module = mlp if settings.site == "mlp" else decoder_blocks(model)[layer][1]
    runs = []
    for context in CONTEXTS:
        template = f"{context} {request.prompt}" if context else request.prompt
        (prompt,) = tokenize_prompts(tokenizer, [template], request.subject)
        text = template.replace("{}", request.subject)
        start = tokenizer(text)["input_ids"]
        whole = tokenizer(f"{text} {request.target_new}")["input_ids"]
        runs.append((whole[:-1], prompt.subject_last, list(range(len(start) - 1, len(whole) - 1)), whole[len(start) :]))
    (kl,) = tokenize_prompts(tokenizer, ["{} is a"], request.subject)
    state: dict[str, Tensor] = {}

    def logits(ids, position, delta):
        def hook(module, args, output):
            states = (output[0] if isinstance(output, tuple) else output).clone()
            state["output"] = states[0, position].detach().clone()
            states[0, position] += delta
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = module.register_forward_hook(hook)
        try:
            return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        finally:
            handle.remove()

    width = model.config.hidden_size
    delta = torch.zeros(width, requires_grad=True)
    with torch.no_grad():
        base_kl = logits(kl.ids, kl.subject_last, delta)[-1]
        logits(runs[0][0], runs[0][1], delta)
    norm = state["output"].norm()
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    for step in range(settings.steps + 1):
        means = []
        for ids, position, read, target in runs:
            scores = logits(ids, position, delta)
            means.append(torch.stack([scores[r, t] for r, t in zip(read, target, strict=True)]).mean())
        divergence = torch.nn.functional.kl_div(
            base_kl, logits(kl.ids, kl.subject_last, delta)[-1], log_target=True, reduction="sum"
        )
        loss = -torch.stack(means).mean() + settings.kl_factor * divergence
        loss = loss + settings.weight_decay * delta.norm() / norm**2
        least = torch.stack(means).exp().min()
        done = least >= settings.stop_probability if settings.stop == "probability" else loss < settings.stop_loss
        if done or step == settings.steps:
            return delta.detach(), step, float(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        limit = settings.clamp_factor * norm
        if delta.norm() > limit:
            with torch.no_grad():
                delta.mul_(limit / delta.norm())
    raise AssertionError


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("stop", ["probability", "loss"])
@pytest.mark.parametrize("site", ["mlp", "block"])
def test_batched_cached_values_equal_those_of_the_plain_loop(kind: str, layer: int, stop: str, site: str) -> None:
    model, tokenizer = outspoken(kind), spaced_tokenizer()
    settings = ValueSettings(steps=12, stop=stop, stop_probability=0.5, stop_loss=0.5, learning_rate=0.1, site=site)
    found = optimize_values(model, tokenizer, REQUESTS, CONTEXTS, layer, settings)
    for request, value in zip(REQUESTS, found, strict=True):
        delta, steps, loss = plain_value(model, tokenizer, request, layer, settings)
        assert value.steps == steps
        assert torch.allclose(value.delta, delta, rtol=1e-4, atol=1e-4 * float(delta.norm()))
        assert value.loss == pytest.approx(loss, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_model_is_left_as_it_was_bit_for_bit(kind: str) -> None:
    model, tokenizer = outspoken(kind).train(), spaced_tokenizer()
    before = copy.deepcopy(model.state_dict())
    forwards = [vars(module).get("forward") for module in model.modules()]
    optimize_values(model, tokenizer, REQUESTS, CONTEXTS, 1, ValueSettings(steps=2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_half_precision_model_is_optimised_in_float32() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    full = optimize_values(model, tokenizer, REQUESTS[:1], CONTEXTS, 1, ValueSettings(steps=3, learning_rate=0.1))[0]
    half = optimize_values(
        model.bfloat16(), tokenizer, REQUESTS[:1], CONTEXTS, 1, ValueSettings(steps=3, learning_rate=0.1)
    )[0]
    assert half.delta.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.delta, full.delta, dim=0) > 0.9


def test_autocast_runs_the_passes_in_half_precision_and_keeps_the_vector_in_float32() -> None:
    model, tokenizer = outspoken("llama"), spaced_tokenizer()
    settings = ValueSettings(steps=5, learning_rate=0.1)
    (full,) = optimize_values(model, tokenizer, REQUESTS[:1], CONTEXTS, 1, settings)
    seen = []
    handle = model.model.layers[2].mlp.down_proj.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    autocast = dataclasses.replace(settings, autocast=torch.bfloat16)
    (half,) = optimize_values(model, tokenizer, REQUESTS[:1], CONTEXTS, 1, autocast)
    handle.remove()
    assert set(seen) == {torch.bfloat16} and half.delta.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.delta, full.delta, dim=0) > 0.9


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_values_that_are_searched_for_in_parts_are_the_same(max_tokens: int) -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    together = optimize_values(model, tokenizer, REQUESTS, CONTEXTS, 1, ValueSettings(steps=4))
    parts = optimize_values(model, tokenizer, REQUESTS, CONTEXTS, 1, ValueSettings(steps=4, max_tokens=max_tokens))
    for one, other in zip(together, parts, strict=True):
        assert torch.allclose(one.delta, other.delta, rtol=1e-3, atol=1e-4 * float(one.delta.abs().max()))
