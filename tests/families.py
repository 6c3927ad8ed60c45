"""Tiny random models of every model type of the installed transformers that generates text.

Sizes are known by the names of a configuration's fields; what does not fit so stands in `OWN`. All parts of a model
have the same depth, a vision tower as many blocks as the text decoder.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

FAMILIES: dict[str, str] = {
    **modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""The class of each model type."""

UNBUILT = {
    "gemma3n": "its vision tower needs the timm library (gemma3n_text is built)",
    "perception_lm": "its vision tower needs the timm library",
    "gemma4_assistant": "its configuration takes every key and value from another model",
    "gemma4_unified_assistant": "its configuration takes every key and value from another model",
}

VOCABULARY = 64
DEPTH = 3
SIZES = {
    r".*vocab_size(_per_layer_input)?": VOCABULARY,
    r"((num|n)_(hidden_)?)?layers?|n_layer|(en|de)coder_layers|num_(en|de)coder_layers|depth|num_blocks": DEPTH,
    r".*(key_value|kv)_heads|n_head_kv|num_attention_groups": 2,
    r".*(num|attention|n)_heads?": 2,
    r".*head_dim|d_head|attention_head_size|d_kv|kv_channels|dim_head": 8,
    r".*(intermediate_size|intermediate_dim|ffn_(hidden_)?(dim|size)|d_ff|dim_ff|n_inner|d_inner|mlp_dim)": 32,
    r".*(hidden_size|d_model|n_embd|embed_dim|hidden_dim|emb_dim|embed_proj_dim|embedding_size|model_dim)": 16,
    r".*(projection_dim|_dim|hidden_size_per_layer_input|lru_width)": 16,
    r"(num|n)_(local_|routed_)?experts|moe_num_experts": 4,
    r"num_experts_per_tok(en)?|top_k_experts|moe_(top_?)?k|num_selected_experts": 2,
    r".*shared_experts": 1,
    r"n_group|topk_group|n_groups?": 1,
    r".*max_position_embeddings|n_positions|n_ctx|max_(seq|sequence)_len(gth)?": 64,
    r".*sliding_window|attention_window_size|local_window|window_size": 8,
    r".*lora_rank": 8,
    r"image_size": 28,
    r"patch_size": 14,
}
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
TOKEN = re.compile(r".*_token_(id|index)s?|(bos|eos|pad|sep|image|video|audio).*_(id|index)")
OTHER_TOKEN = re.compile(r"image|video|audio|vision|boi|eoi|speech")

MAMBA = {"mamba_n_heads": 2, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 4}
CLIP = {
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
}
ROPE = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "n_mamba_heads": 2,
    "attention_hidden_size": 32,
    "attention_head_dim": 16,
}
SPEECH = {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1] * 3}
NOTE = {
    "layer_types": ["indexed_attention"] * DEPTH,
    "head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CHOOSING = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
IN_TEXT = ("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl")

OWN: dict[str, dict[str, Any]] = {
    **{name: {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}} for name in IN_TEXT},
    "bailing_hybrid": {
        "layer_group_size": 2,
        "linear_num_heads": 2,
        "linear_head_dim": 8,
        "qk_head_dim": 16,
        "num_expert_group": 1,
        "topk_group": 1,
        **LINEAR,
    },
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 32},
    "chameleon": {"vocabulary_map": {"<image>": 63}, "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "codegen": {"n_head": 4, "rotary_dim": 2},
    "cohere_compass": {"text_config": {"rope_parameters": ROPE}},
    "cohere_compass_text": {"rope_parameters": ROPE},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse"], "n_routed_experts": 4, **CHOOSING}
    },
    "deepseek_v2": {"first_k_dense_replace": 1, **CHOOSING},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "diffusion_gemma": {"text_config": {"moe_intermediate_size": 16, "num_experts": 4, "top_k_experts": 2}},
    "dots1": {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": NOTE,
    "dots3_note_text": NOTE,
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [16, 8],
            "moe_num_experts": 4,
            "rope_parameters": {"mrope_section": [1, 1, 2]},
        }
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 32},
    "fast_vlm": CLIP,
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 4}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 0]}}},
    "gptj": {"rotary_dim": 4},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
        "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64, "num_attention_heads": 2},
    },
    "granitemoehybrid": {**MAMBA, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "hunyuan_vl": {"text_config": {"rope_parameters": {"mrope_section": [1] * 4, "xdrope_section": [1] * 4}}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "kimi_linear": LINEAR,
    "kyutai_speech_to_text": {
        "codec_config": {
            "upsample_groups": 1,
            "num_filters": 4,
            "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8,
            "codebook_size": 16,
            "num_quantizers": 2,
        }
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 8, "qk_head_dim": 16, "zero_expert_num": 2},
    "mamba2": {"head_dim": 16},
    "mimo_v2_flash": {"num_key_value_heads": 1},
    "mistral4": {"qk_head_dim": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4},
    "mllama": {"cross_attention_layers": [1]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 2]}},
    "muse_spark": {
        "audio_config": {"patch_sizes": [4, 2, 2], "hidden_sizes": [16] * 3, "depths": [1] * 3, "out_hidden_size": 16}
    },
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "olmo_hybrid": LINEAR,
    "qwen2_5_omni_thinker": {
        "text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
        "vision_start_token_id": VOCABULARY - 1,
    },
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen3_5": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "qwen3_omni_moe": {"enable_audio_output": False},
    "reformer": {"axial_pos_embds": False},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config": SPEECH, "semantic_tokenizer_encoder_config": SPEECH},
    "voxtral_realtime": {"text_config": {"intermediate_size": 48}},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**ZAMBA, "mamba_dt_rank": 2},
    "zamba2": {**ZAMBA, "hybrid_layer_ids": [1, 3], "mamba_headdim": 16, "chunk_size": 8},
}


def tiny_family(name: str, device: str | None = None, **changes: Any) -> PreTrainedModel:
    """A random model of that type, of three layers and width 16, with these fields of its configuration changed."""
    kind = getattr(transformers, FAMILIES[name])
    own = CONFIG_MAPPING[name]()
    if not isinstance(own, kind.config_class):  # the class of a part, whose configuration the whole one holds
        own = next((part for part in vars(own).values() if isinstance(part, kind.config_class)), own)
    content = _merged(_merged(_shrunk(own.to_dict()), OWN.get(name, {})), changes)
    torch.manual_seed(0)
    with torch.device(device or "cpu"):
        return kind(_of(type(own), content)).eval()


def _of(kind: type[PreTrainedConfig], content: dict[str, Any]) -> PreTrainedConfig:
    left_out = ("model_type", "architectures", "dtype", "torch_dtype", "_name_or_path")
    return kind(**{name: value for name, value in content.items() if name not in left_out})


def _shrunk(value: Any, name: str = "") -> Any:
    """A configuration's content with small sizes."""
    if isinstance(value, dict):
        depth = next((value[key] for key in DEPTHS if isinstance(value.get(key), int)), 0)
        small = {key: _shrunk(_cut(one, depth), str(key)) for key, one in value.items()}
        return {key: one for key, one in small.items() if key not in ("transformers_version", "per_layer_config")}
    if name == "is_decoder":
        return True
    if name == "mrope_section":
        return [2, 1, 1]
    if name == "head_dim" and value is None:
        return 8
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if TOKEN.fullmatch(name):
        return VOCABULARY - 1 if OTHER_TOKEN.search(name) else min(value, 3)
    fitting = (size for pattern, size in SIZES.items() if re.fullmatch(pattern, name))
    return min(next(fitting, value), value)


def _cut(value: Any, depth: int) -> Any:
    """What a configuration says of every layer, for the layers that are left."""
    return value[:DEPTH] if isinstance(value, list) and depth > DEPTH and len(value) == depth else value


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {**one, **other}
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            both[key] = _merged(one[key], other[key])
    return both
