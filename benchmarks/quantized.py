"""Edit one model as each quantization library holds it, and measure what saving, reloading and merging do to the edits.

    python benchmarks/quantized.py --model HuggingFaceTB/SmolLM2-135M-Instruct --requests edits.json --ask plain

Prints one row of a Markdown table for each format: edits that take, and hold after the adapter is saved and loaded over
the base quantized anew; how far the logits are from before; κ of the edited layer before and after; and the error of a
merge into dequantized weights and into weights quantized anew, with the edits that hold there. A library that is not
installed, or that refuses, has its reason in its row. `--only` chooses formats. With `--rows FILE` each row is kept
there when it is measured, and not measured again by the same command.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from peft_prune import (
    EditSession,
    PruneEditConfig,
    SecondMoments,
    collect_second_moments,
    get_editor,
    load_requests,
    load_texts,
    merge_report,
)
from peft_prune.editors import own_texts
from peft_prune.editors.asking import default_ask, settled
from peft_prune.session.verification import verify

OWN_TOKENS = 3_000
"""Tokens that the model writes where no texts are given."""

HEADER = (
    "library, format",
    "edits take",
    "hold after save and reload",
    "logits off after reload",
    "κ before, after",
    "merge into dequantized: error, hold",
    "quantized anew: error, hold",
)


def main() -> None:
    arguments = parse_arguments()
    rows = Rows(arguments)
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    for name in arguments.only or CASES:
        if name not in rows.cells:
            begin = time.perf_counter()
            rows.add(name, _row(arguments, CASES[name]))
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        print("| " + " | ".join([name, *rows.cells[name]]) + " |", flush=True)


def _row(arguments: argparse.Namespace, load: Callable[[str], Any]) -> list[str]:
    try:
        return _measured(arguments, load)
    except Exception as error:
        return [(str(error).strip() or type(error).__name__).splitlines()[0].replace("|", "/")]
    finally:
        gc.collect()


class Rows:
    """The rows that are measured, in a file where one is given."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._path: Path | None = arguments.rows
        self._settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("rows", "only")}
        self.cells: dict[str, list[str]] = {}
        if self._path is not None and self._path.exists():
            found = json.loads(self._path.read_text())
            if found["settings"] != self._settings:
                sys.exit(f"--rows: {self._path} was measured with {found['settings']}; name another file")
            self.cells = found["rows"]

    def add(self, name: str, cells: list[str]) -> None:
        self.cells[name] = cells
        if self._path is not None:
            new = self._path.with_name(self._path.name + ".new")
            new.write_text(json.dumps({"settings": self._settings, "rows": self.cells}, ensure_ascii=False, indent=1))
            new.replace(self._path)


def _measured(arguments: argparse.Namespace, load: Callable[[str], Any]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    requests = settled(load_requests(arguments.requests, limit=arguments.edits), default_ask(tokenizer, arguments.ask))
    base = load(arguments.model).eval()
    editor = get_editor("rome", model=base, **({} if arguments.contexts else {"context_lengths": ()}))
    layers = list(editor.layers(base))
    kept = None if arguments.rows is None else arguments.rows.with_suffix(".safetensors")
    statistics = _statistics(arguments.model, arguments.texts, arguments.texts_read, kept)
    config = PruneEditConfig(restrain_on="merge", layers_to_transform=layers)
    model = get_peft_model(base, config).eval()
    session = EditSession(model, tokenizer, editor, statistics=statistics, monitor=False)
    session.edit(requests)
    taken = _held(model, tokenizer, requests)
    before, (growth, *_) = _logits(model, tokenizer, requests), _conditions(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(load(arguments.model).eval(), folder).eval()
        kept, off = _held(again, tokenizer, requests), _off(_logits(again, tokenizer, requests), before)
    del again
    merges = [_merge(model, tokenizer, requests, requantize) for requantize in (False, True)]
    return [f"{taken} of {len(requests)}", f"{kept} of {len(requests)}", f"{off:.1g}", growth, *merges]


@cache
def _statistics(path: str, texts: str | None, most: int, kept: Path | None) -> SecondMoments:
    """Second moments of the full-precision model, over texts or what it writes by itself; the same for every format."""
    if kept is not None and kept.exists():
        return SecondMoments.load(kept)
    model, tokenizer = _loaded(path).eval(), AutoTokenizer.from_pretrained(path)
    read = own_texts(model, tokenizer, OWN_TOKENS, progress=False) if texts is None else load_texts(texts)[:most]
    modules = get_editor("rome", model=model).modules(model)
    found = collect_second_moments(model, tokenizer, read, modules, progress=False)
    if kept is not None:
        found.save(kept)
    return found


def _held(model: Any, tokenizer: Any, requests: Any) -> int:
    return sum(one.holds for one in verify(model, tokenizer, requests))


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, requests: Any) -> torch.Tensor:
    rows = [model(**tokenizer(request.text, return_tensors="pt")).logits[0, -1].double() for request in requests]
    return torch.stack(rows)


def _off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _conditions(model: Any) -> list[str]:
    found = []
    for _, layer in model.edited_layers():
        base = layer.condition().condition_number
        found.append(f"{base:.4g}, {layer.figures('default').condition.condition_number:.4g}")
    return found


def _merge(model: Any, tokenizer: Any, requests: Any, requantize: bool) -> str:
    try:
        found = merge_report(model, tokenizer, requests, requantize=requantize)
    except Exception as error:
        return type(error).__name__
    error = max(figure.error for figure in found.layers.values())
    refused = ", refused" if found.refused else ""
    return f"{error:.2g} of ‖ΔW‖, {sum(found.held_after)} of {len(requests)}{refused}"


def _loaded(path: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)


def _bitsandbytes(path: str, **options: Any) -> Any:
    return _loaded(path, quantization_config=BitsAndBytesConfig(**options))


def _torchao(path: str, kind: str) -> Any:
    from torchao import quantization as q

    settings = {
        "int8": lambda: q.Int8WeightOnlyConfig(),
        "int4": lambda: q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.PerGroup(32)),
        "float8": lambda: q.Float8WeightOnlyConfig(),
        "int8-dynamic": lambda: q.Int8DynamicActivationInt8WeightConfig(),
    }[kind]()
    return _loaded(path, quantization_config=TorchAoConfig(settings))


def _quanto(path: str, kind: str) -> Any:
    import optimum.quanto  # noqa: F401

    return _loaded(path, quantization_config=QuantoConfig(weights=kind))


def _each_linear(model: Any, quantize: Callable[[nn.Linear], nn.Module]) -> Any:
    for _, parent in list(model.base_model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, quantize(child))
    return model


def _hqq(path: str, bits: int) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def quantize(linear: nn.Linear) -> nn.Module:
        settings = BaseQuantizeConfig(nbits=bits, group_size=64)
        return HQQLinear(linear, settings, compute_dtype=torch.float32, device="cpu")

    return _each_linear(_loaded(path), quantize)


def _compressed(path: str, bits: int) -> Any:
    from compressed_tensors import quantization as q
    from compressed_tensors.compressors import ModelCompressor

    model, group = _loaded(path), 64 if bits == 4 else None
    weights = q.QuantizationArgs(num_bits=bits, strategy="group" if group else "channel", group_size=group)
    scheme = q.QuantizationScheme(targets=["Linear"], weights=weights)
    q.apply_quantization_config(model, q.QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            weight = module.weight.data
            largest = weight.reshape(len(weight), -1, group or weight.shape[1]).abs().amax(2)
            module.weight_scale.data = largest / (2 ** (bits - 1) - 1)
            module.quantization_status = q.QuantizationStatus.FROZEN
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    return model


CASES: dict[str, Callable[[str], Any]] = {
    "plain float32": _loaded,
    "bitsandbytes int8": partial(_bitsandbytes, load_in_8bit=True),
    "bitsandbytes nf4": partial(_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes fp4": partial(_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "bitsandbytes nf4, double": partial(
        _bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    **{f"torchao {kind}": partial(_torchao, kind=kind) for kind in ("int8", "int4", "float8", "int8-dynamic")},
    **{f"HQQ {bits} bits": partial(_hqq, bits=bits) for bits in (8, 4)},
    **{f"quanto {kind}": partial(_quanto, kind=kind) for kind in ("int8", "float8")},
    **{f"compressed-tensors {bits} bits": partial(_compressed, bits=bits) for bits in (8, 4)},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a full-precision model")
    parser.add_argument("--requests", required=True, help="file of edit requests")
    parser.add_argument("--texts", help="ordinary texts for the second moments; the model's own if not given")
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--texts-read", type=int, default=100, metavar="N", help="texts that are read")
    parser.add_argument(
        "--contexts", action="store_true", help="seek values over sampled prefixes too: 20 times the work"
    )
    parser.add_argument("--ask", choices=("plain", "chat", "both"), help="how the model is asked; as it is trained")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="where measured rows are kept")
    parser.add_argument("--only", action="append", choices=CASES, metavar="NAME", help="a format; may be repeated")
    return parser.parse_args()


if __name__ == "__main__":
    main()
