"""Quantized layers whose library does not give the weight back are refused when the adapter is attached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Linear
from transformers.integrations.gguf.utils import GgufLinear

from peft_prune import PruneEditConfig, UnsupportedModelError
from tests.tuner.quantized_cases import tiny

Q8_0 = 8
"""GGUF's number for blocks of 32 weights of 8 bits."""


def packed(library: str, name: str) -> Callable[[nn.Linear], nn.Module]:
    """A stand-in for the layer class of a library that is not installed here: packed codes, zeros and scales."""

    class Packed(nn.Module):
        def __init__(self, plain: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features, self.bits, self.group_size = (
                plain.in_features,
                plain.out_features,
                4,
                32,
            )
            groups = plain.in_features // self.group_size
            self.register_buffer("qweight", torch.zeros(plain.in_features // 8, plain.out_features, dtype=torch.int32))
            self.register_buffer("qzeros", torch.zeros(groups, plain.out_features // 8, dtype=torch.int32))
            self.register_buffer("scales", torch.ones(groups, plain.out_features, dtype=torch.float16))
            self._own = [plain]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._own[0](x)

    Packed.__name__, Packed.__module__ = name, library
    return Packed


def fp8(plain: nn.Linear) -> nn.Module:
    made = FP8Linear(plain.in_features, plain.out_features, block_size=(32, 32), has_bias=plain.bias is not None)
    made.weight.requires_grad_(False)
    return made


def gguf(plain: nn.Linear) -> nn.Module:
    return GgufLinear(plain.in_features, plain.out_features, Q8_0, bias=plain.bias is not None)


CASES = {
    "GPTQ": (packed("gptqmodel.nn_modules.qlinear.torch", "TorchLinear"), "are edited as they are"),
    "AWQ": (packed("gptqmodel.nn_modules.qlinear.torch_awq", "AwqTorchLinear"), "are edited as they are"),
    "AutoAWQ": (packed("awq.modules.linear.gemm", "WQLinear_GEMM"), "are edited as they are"),
    "EETQ": (packed("eetq.modules.qlinear", "EetqLinear"), "are edited as they are"),
    "fp8": (fp8, r"FineGrainedFP8Config\(dequantize=True\)"),
    "GGUF": (gguf, r"GgufConfig\(dequantize=True\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_gives_no_weight_back_is_refused_before_any_work(case: str) -> None:
    make, instead = CASES[case]
    model: Any = tiny()
    mlp = model.model.layers[1].mlp
    mlp.down_proj = make(mlp.down_proj)
    kind, before = type(mlp.down_proj).__name__, [name for name, _ in model.named_modules()]
    with pytest.raises(
        UnsupportedModelError, match=rf"^model.layers.1.mlp.down_proj: .*{kind} cannot be edited.*{instead}"
    ) as found:
        get_peft_model(model, PruneEditConfig(layers_to_transform=[1]))
    assert "\n" not in str(found.value)
    assert [name for name, _ in model.named_modules()] == before
