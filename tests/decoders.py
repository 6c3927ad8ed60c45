"""Tiny random models of the decoders that transformers can build without a file."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
DECODERS = {
    "gpt2": ({"n_embd": 16, "n_layer": 3, "n_head": 2}, "mlp.c_proj"),
    "gptj": ({"n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4}, "mlp.fc_out"),
    "gpt_neo": (
        {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]]},
        "mlp.c_proj",
    ),
    "gpt_neox": ({**LLAMA}, "mlp.dense_4h_to_h"),
    "opt": (
        {"hidden_size": 16, "ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "word_embed_proj_dim": 16},
        "fc2",
    ),
    "bloom": ({"hidden_size": 16, "n_layer": 3, "n_head": 2}, "mlp.dense_4h_to_h"),
    "falcon": ({"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}, "mlp.dense_4h_to_h"),
    "llama": (LLAMA, "mlp.down_proj"),
    "mistral": (LLAMA, "mlp.down_proj"),
    "qwen2": (LLAMA, "mlp.down_proj"),
    "qwen3": (LLAMA, "mlp.down_proj"),
    "gemma2": (LLAMA, "mlp.down_proj"),
    "phi": (LLAMA, "mlp.fc2"),
    "phi3": (LLAMA, "mlp.down_proj"),
    "stablelm": (LLAMA, "mlp.down_proj"),
    "starcoder2": (LLAMA, "mlp.c_proj"),
    "olmo2": (LLAMA, "mlp.down_proj"),
    "mpt": ({"d_model": 16, "n_layers": 3, "n_heads": 2}, "ffn.down_proj"),
    "gemma": (LLAMA, "mlp.down_proj"),
    "gemma3_text": (LLAMA, "mlp.down_proj"),
    "olmo": (LLAMA, "mlp.down_proj"),
    "olmo3": (LLAMA, "mlp.down_proj"),
    "cohere": (LLAMA, "mlp.down_proj"),
    "cohere2": (LLAMA, "mlp.down_proj"),
    "granite": (LLAMA, "mlp.down_proj"),
    "codegen": ({"n_embd": 16, "n_layer": 3, "n_head": 4, "rotary_dim": 2}, "mlp.fc_out"),
    "smollm3": (LLAMA, "mlp.down_proj"),
    "glm": (LLAMA, "mlp.down_proj"),
    "glm4": (LLAMA, "mlp.down_proj"),
    "nemotron": (LLAMA, "mlp.down_proj"),
    "exaone4": (LLAMA, "mlp.down_proj"),
    "persimmon": (LLAMA, "mlp.dense_4h_to_h"),
    "gpt_bigcode": ({"n_embd": 16, "n_layer": 3, "n_head": 2}, "mlp.c_proj"),
    "helium": (LLAMA, "mlp.down_proj"),
    "seed_oss": (LLAMA, "mlp.down_proj"),
    "hunyuan_v1_dense": (LLAMA, "mlp.down_proj"),
    "ernie4_5": (LLAMA, "mlp.down_proj"),
    "arcee": (LLAMA, "mlp.down_proj"),
    "apertus": (LLAMA, "mlp.down_proj"),
    "ministral": (LLAMA, "mlp.down_proj"),
    "xglm": ({"d_model": 16, "num_layers": 3, "attention_heads": 2, "ffn_dim": 40}, "fc2"),
    "biogpt": (
        {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40},
        "fc2",
    ),
    "gpt_neox_japanese": ({"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}, "mlp.dense_4h_to_h"),
    "bitnet": (LLAMA, "mlp.down_proj"),
    "diffllama": (LLAMA, "mlp.down_proj"),
}
"""Settings of a tiny model of each architecture, and how its MLP output projection is called."""


def tiny_decoder(name: str) -> PreTrainedModel:
    """A random model of that architecture, of 3 layers and width 16."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **COMMON, **DECODERS[name][0])).eval()
