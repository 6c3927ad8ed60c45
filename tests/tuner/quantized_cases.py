"""A tiny Llama whose linear maps are quantized, by each library that is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

WIDTH = 64


def tiny(bias: bool = True, seed: int = 0) -> PreTrainedModel:
    """Llama of 3 layers; by default with biases in its MLPs."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, mlp_bias=bias)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.requires_grad_(False)


def each_linear(model: PreTrainedModel, quantize: Callable[[nn.Linear], nn.Module]) -> PreTrainedModel:
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, quantize(child))
    return model.eval()


def bitsandbytes(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    bnb = pytest.importorskip("bitsandbytes")

    def quantize(linear: nn.Linear) -> nn.Module:
        sides = (linear.in_features, linear.out_features, linear.bias is not None)
        weight = linear.weight.data.clone()
        if kind == "int8":
            layer = bnb.nn.Linear8bitLt(*sides, has_fp16_weights=False, threshold=6.0)
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            form = {"compress_statistics": kind.endswith("-double"), "quant_type": kind[:3]}
            layer = bnb.nn.Linear4bit(*sides, compute_dtype=torch.float32, **form)
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, **form)
        layer.bias = linear.bias
        return layer.to("cpu")

    return each_linear(model, quantize)


def torchao(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    q = pytest.importorskip("torchao.quantization")
    settings: Any = {
        "int8": lambda: q.Int8WeightOnlyConfig(),
        "int4": lambda: q.IntxWeightOnlyConfig(weight_dtype=torch.int4),
        "float8": lambda: q.Float8WeightOnlyConfig(),
        "int8-dynamic": lambda: q.Int8DynamicActivationInt8WeightConfig(),
    }[kind]
    q.quantize_(model.model.layers, settings())

    class Quantizer:
        class quantization_config:  # the names by which PEFT looks for it
            get_apply_tensor_subclass = staticmethod(settings)

    model.hf_quantizer = Quantizer()
    return model.eval()


def hqq(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    q = pytest.importorskip("hqq.core.quantize")
    settings = partial(q.BaseQuantizeConfig, nbits=int(kind[3:]), group_size=64)
    return each_linear(
        model, lambda linear: q.HQQLinear(linear, settings(), compute_dtype=torch.float32, device="cpu", del_orig=False)
    )


def quanto(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    q = pytest.importorskip("optimum.quanto")

    def quantize(linear: nn.Linear) -> nn.Module:
        layer = q.QLinear.from_module(linear, weights=getattr(q, f"q{kind}"))
        layer.freeze()
        return layer.requires_grad_(False)

    return each_linear(model, quantize)


def compressed_tensors(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    q = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors import ModelCompressor

    bits = int(kind[1])
    group = 64 if bits == 4 else None
    weights = q.QuantizationArgs(num_bits=bits, strategy="group" if group else "channel", group_size=group)
    inputs = q.QuantizationArgs(num_bits=8, strategy="token", dynamic=True) if kind.endswith("a8") else None
    scheme = q.QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    q.apply_quantization_config(model, q.QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    for module in model.model.layers.modules():
        if hasattr(module, "quantization_scheme"):
            weight = module.weight.data
            largest = weight.reshape(len(weight), -1, group or weight.shape[1]).abs().amax(2)
            module.weight_scale.data = largest / (2 ** (bits - 1) - 1)
            module.quantization_status = q.QuantizationStatus.FROZEN
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    return model.eval()


CASES: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {
    **{f"bitsandbytes-{kind}": partial(bitsandbytes, kind=kind) for kind in ("int8", "nf4", "fp4", "nf4-double")},
    **{f"torchao-{kind}": partial(torchao, kind=kind) for kind in ("int8", "int4", "float8", "int8-dynamic")},
    **{f"hqq-{kind}": partial(hqq, kind=kind) for kind in ("int8", "int4")},
    **{f"quanto-{kind}": partial(quanto, kind=kind) for kind in ("int8", "float8_e4m3fn")},
    **{f"compressed-tensors-{kind}": partial(compressed_tensors, kind=kind) for kind in ("w8a16", "w4a16", "w8a8")},
}
"""Quantizes a model in place; skips the test where the library is not installed."""

ROUNDS_INPUTS = ("torchao-int8-dynamic", "compressed-tensors-w8a8", "bitsandbytes-int8")
CANNOT_REQUANTIZE = tuple(name for name in CASES if name.startswith("compressed-tensors"))
