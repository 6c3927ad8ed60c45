"""The loss that v* is sought by, against float64 passes of the whole model, and who moves in its descent."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from peft_prune import EditRequest
from peft_prune.editors.later_layers import LaterLayers
from peft_prune.editors.objective import Objective
from peft_prune.editors.rows import Batch, grouped, request_rows
from peft_prune.editors.target_likelihood import frozen
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.editors.values import ValueSettings, optimize_values
from peft_prune.models.mlp import mlp_output_module
from tests.talking import outspoken, spaced_tokenizer
from tests.tiny import willing

REQUESTS = [
    EditRequest("note sea {}", "sane ant", "ten"),
    EditRequest("{} eat", "tone seat", "net son"),
    EditRequest("the tea {}", "oats", "nose"),
]
CONTEXTS = ("", "stone tea.", "tan ant eat soot.")
LAYER, KL, DECAY = 0, 100.0, 1.0


def dense_terms(model, tokenizer, request: EditRequest, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Negative log-likelihood, KL divergence, ‖δ‖/‖v‖² and least probability in float64, one whole pass at a time."""
    module = mlp_output_module(model, LAYER)[1]

    def log_probs(ids, place: int, change: Tensor) -> tuple[Tensor, Tensor]:
        present = []

        def add(m, args, output: Tensor) -> Tensor:
            present.append(output[0, place].clone())
            return torch.cat([output[:, :place], output[:, place : place + 1] + change, output[:, place + 1 :]], dim=1)

        handle = module.register_forward_hook(add)
        try:
            return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0], -1), present[0]
        finally:
            handle.remove()

    means = []
    for context in CONTEXTS:
        template = f"{context} {request.prompt}" if context else request.prompt
        (prompt,) = tokenize_prompts(tokenizer, [template], request.subject)
        whole = tokenizer(f"{template.replace('{}', request.subject)} {request.target_new}")["input_ids"]
        scores, present = log_probs(whole, prompt.subject_last, delta)
        if context == "":
            norm = present.norm()
        reads = range(len(prompt.ids) - 1, len(whole) - 1)
        means.append(torch.stack([scores[read, whole[read + 1]] for read in reads]).mean())
    (kl,) = tokenize_prompts(tokenizer, ["{} is a"], request.subject)
    base, _ = log_probs(kl.ids, kl.subject_last, torch.zeros_like(delta))
    now, _ = log_probs(kl.ids, kl.subject_last, delta)
    # KL(now ‖ before), the order of the published code's arguments
    divergence = (now[-1].exp() * (now[-1] - base[-1])).sum()
    return -torch.stack(means).mean(), divergence, delta.norm() / norm**2, torch.stack(means).exp().min()


def attentive(kind: str) -> PreTrainedModel:
    """A model whose later tokens look back at the subject, without which the KL divergence is idle."""
    model = willing(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name and parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_loss_and_gradient_are_those_of_float64_passes_of_the_whole_model(kind: str) -> None:
    model, tokenizer = attentive(kind), spaced_tokenizer()
    width = model.config.hidden_size
    exact = copy.deepcopy(model).double()
    norms = torch.zeros(len(REQUESTS))
    with frozen(model), ExitStack() as stack, torch.enable_grad():
        later = [
            stack.enter_context(LaterLayers(model, Batch.build(group, torch.device("cpu")), LAYER, "mlp", None))
            for group in grouped(request_rows(tokenizer, REQUESTS, CONTEXTS))
        ]
        for part in later:
            norms[part.batch.request[part.batch.is_bare]] = part.outputs[part.batch.is_bare].norm(dim=1)
        direction = torch.randn(len(REQUESTS), width, generator=torch.Generator().manual_seed(2))
        delta = 3.0 * norms[:, None] * direction / direction.norm(dim=1, keepdim=True)
        objective = Objective(norms, KL, DECAY)
        every = torch.ones(len(REQUESTS), dtype=torch.bool)
        objective(later, torch.zeros_like(delta), every)  # the KL divergence is to the first look
        moved = delta.clone().requires_grad_()
        losses, least = objective(later, moved, every)
        (gradient,) = torch.autograd.grad(losses.sum(), moved)
        some, _ = objective(later, moved, torch.tensor([False, True, True]))
    assert torch.allclose(some, losses[1:], rtol=1e-5)
    for index, request in enumerate(REQUESTS):

        def loss(change: Tensor, request: EditRequest = request) -> float:
            likelihood, divergence, decay, _ = dense_terms(exact, tokenizer, request, change)
            return float(likelihood + KL * divergence + DECAY * decay)

        own = delta[index].double()
        likelihood, divergence, decay, smallest = dense_terms(exact, tokenizer, request, own)
        assert min(float(likelihood), KL * float(divergence), DECAY * float(decay)) > 0.02  # no term is idle
        assert float(losses[index]) == pytest.approx(loss(own), rel=1e-4)
        assert float(least[index]) == pytest.approx(float(smallest), rel=1e-3)
        # Llama's norm is float32 in a float64 model, too, which a smaller step would show
        steps = 1e-3 * torch.eye(width, dtype=torch.float64)
        slope = torch.tensor([(loss(own + step) - loss(own - step)) / 2e-3 for step in steps], dtype=torch.float64)
        assert torch.allclose(gradient[index].double(), slope, rtol=1e-3, atol=3e-3 * float(slope.abs().max()))


@pytest.mark.parametrize("clamp", [100.0, 0.005], ids=["free", "at the limit"])
def test_a_request_that_has_converged_keeps_its_value_bit_for_bit_while_others_go_on(clamp: float) -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    settings = ValueSettings(steps=40, stop="loss", learning_rate=0.1, clamp_factor=clamp, kl_factor=0.0625)
    # a threshold that the requests pass at different steps
    ends = [v.loss for v in optimize_values(model, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(settings, steps=6))]
    settings = replace(settings, stop_loss=sorted(ends)[0] * 1.001)
    together = optimize_values(model, tokenizer, REQUESTS, CONTEXTS, LAYER, settings)
    steps = [value.steps for value in together]
    assert len(set(steps)) > 1 and min(steps) < 40, steps
    for index, value in enumerate(together):
        stopped = optimize_values(
            model, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(settings, steps=max(1, value.steps))
        )[index]
        assert value.steps == 0 or torch.equal(value.delta, stopped.delta)
        (alone,) = optimize_values(model, tokenizer, [REQUESTS[index]], CONTEXTS, LAYER, settings)
        assert alone.steps == value.steps
        assert torch.allclose(alone.delta, value.delta, rtol=1e-3, atol=1e-4 * float(alone.delta.norm()))
    if clamp < 1:
        limits = [clamp * float(value.output.norm()) for value in together]
        sizes = [float(value.delta.norm()) for value in together]
        assert any(size == pytest.approx(limit, rel=1e-5) for size, limit in zip(sizes, limits, strict=True))
