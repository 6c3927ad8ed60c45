"""Tiny models and updates that need no file."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from peft_prune.spectral import LowRankUpdate


def tiny_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """GPT-2 (Conv1D) of 3 layers, width 16."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)
    return _of_ordinary_scale(GPT2LMHeadModel(config)).to(dtype).eval()


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 16) -> PreTrainedModel:
    """Llama (nn.Linear) of 3 layers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return _of_ordinary_scale(LlamaForCausalLM(config)).to(dtype).eval()


def _of_ordinary_scale(model: PreTrainedModel, sigma_max: float = 8.0) -> PreTrainedModel:
    """Scale the MLP output projections to this spectral norm: below 1/ln(1.2) = 5.5 the log restraint hardly acts."""
    for name, module in model.named_modules():
        if name.endswith(("mlp.c_proj", "mlp.down_proj")):
            with torch.no_grad():
                module.weight.mul_(sigma_max / torch.linalg.matrix_norm(module.weight, 2))
    return model


def agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs are equal but for rounding: a saved file holds the same ΔW in other factors."""
    wide = one.dtype.itemsize >= 4
    scale = float(other.detach().double().abs().max())
    return float((one.detach().double() - other.detach().double()).abs().max()) <= (1e-5 if wide else 2e-2) * scale


def random_update(shape: tuple[int, int], rank: int = 1, scale: float = 1.0, seed: int = 0) -> LowRankUpdate:
    """An update of this rank whose factors are normal with standard deviation ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    out_features, in_features = shape
    return LowRankUpdate(
        B=scale * torch.randn(out_features, rank, generator=generator),
        A=torch.randn(rank, in_features, generator=generator),
    )


def willing(kind: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model with opinions of its own that one edit can still change: its other weights are larger as well."""
    model = {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind](seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith(("mlp.c_proj.weight", "mlp.down_proj.weight")):
                parameter.mul_(6.0)
    return model
