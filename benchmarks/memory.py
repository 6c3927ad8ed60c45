"""Peak memory of editing and of merging, beside what the model itself takes; one JSON object on standard output.

    python benchmarks/memory.py --hidden 1024 --inner 8192 --layers 9 --editor rome

A random Llama in float32, second moments from a file. The peaks are of the process's resident memory as Linux counts it
(VmHWM), from when model, tokenizer and libraries are loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_prune import EditRequest, EditSession, SecondMoments, Solving, get_editor
from peft_prune.builtin import builtin_model_path

TOKENS = 256
"""Keys that the random second moment is made of."""


def main() -> None:
    arguments = parse_arguments()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, tokenizer = random_model(arguments), AutoTokenizer.from_pretrained(builtin_model_path())
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    editor = get_editor(
        arguments.editor,
        layers=list(range(1, 1 + arguments.edited)),
        context_lengths=((2, 2),),
        **({} if arguments.editor == "alphaedit" else {"mom2_shrinkage": 1e-2}),
        v_num_grad_steps=3,
        second_try=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        moments = Path(folder) / "moments.safetensors"
        write_moments(moments, editor.modules(model), arguments.inner)
        begin = start()
        solving = Solving(dtype=arguments.solve_dtype, folder=folder if arguments.mapped else None)
        session = EditSession(
            *(model, tokenizer, editor), statistics=moments, on_failure="keep", monitor=False, solving=solving
        )
        session.edit([EditRequest("{} lives in", "Ada", " London")])
        edited = peak() - begin
        peft_model = session.model
        session.close()
    del session, editor
    gc.collect()
    begin = start()
    peft_model.merge_and_unload()
    merged = peak() - begin
    square = arguments.inner**2 * 8
    print(json.dumps({"model": size, "square": square, "editing": edited, "merging": merged}))


def random_model(arguments: argparse.Namespace) -> Any:
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.inner,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()


def write_moments(path: Path, modules: list[str], width: int) -> None:
    keys = torch.randn(TOKENS, width)
    moment = (keys.T @ keys).div_(TOKENS)
    SecondMoments({name: moment.clone() for name in modules}, TOKENS).save(path)


def start() -> int:
    """Forget the peak so far; the resident bytes now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most resident bytes since `start`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=8192, help="d_ff")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--edited", type=int, default=1, help="layers that are edited; ROME takes one")
    parser.add_argument("--editor", default="rome")
    parser.add_argument("--mapped", action="store_true", help="keep inverses in mapped files")
    parser.add_argument("--solve-dtype", default="float64")
    return parser.parse_args()


if __name__ == "__main__":
    main()
