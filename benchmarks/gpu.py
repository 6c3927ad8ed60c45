"""Everything that a GPU is wanted for, in one run of at most 8 minutes on one card: times and memory, as a table.

    python benchmarks/gpu.py            # random weights in the shape of Llama-3 8B, bfloat16: 16 GB on the card
    python benchmarks/gpu.py --small    # a tiny model on the CPU, to see that it runs

Second moments, MEMIT and ROME per edit, and the restraint and κ at 4096 x 14336 against torch.linalg on the same card.
Each part is told as soon as it is known; none begins after ``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_prune import EditRequest, EditSession, SecondMoments, Solving, collect_second_moments, get_editor
from peft_prune.builtin import builtin_model_path, plain_texts
from peft_prune.spectral import ConditionNumber, LogRestraint, LowRankUpdate, restrain

RANK = 100
EDITS = [EditRequest("{} lives in", name, " London") for name in ("Ada", "Tom", "Ben", "Kim")]


class Machine:
    """The device, its clock and its memory.

    Args:
        device: As torch names it.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._module: Any = getattr(torch, self.device.type)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call, to the end of what it has put on the device."""
        self._wait()
        begin = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - begin

    def peak(self, call: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of one call, and the most bytes that tensors took on the card; 0 where nobody counts them."""
        counts = hasattr(self._module, "reset_peak_memory_stats") and self.device.type != "cpu"
        if counts:
            self._module.reset_peak_memory_stats()
        spent = self.seconds(call)
        return spent, self._module.max_memory_allocated() if counts else 0

    def _wait(self) -> None:
        if self.device.type != "cpu":
            self._module.synchronize()


def main() -> None:
    arguments = parse_arguments()
    warnings.simplefilter("ignore")
    device = arguments.device or ("cpu" if arguments.small else "cuda")
    machine, begin = Machine(device), time.perf_counter()
    torch.manual_seed(0)
    shape = (64, 192, 4, 256) if arguments.small else (4096, 14336, 32, 128256)
    found: dict[str, dict[str, Any]] = {}
    for part in (spectral_rows, model_rows):
        for name, figures in part(machine, *shape, small=arguments.small):
            found[name] = figures
            if not arguments.json:
                told = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
                print(f"{name}: {told}", flush=True)
            if time.perf_counter() - begin > arguments.limit:
                found["stopped"] = {"after_seconds": time.perf_counter() - begin}
                break
    if arguments.json:
        print(json.dumps(found))


def spectral_rows(machine: Machine, hidden: int, inner: int, *rest: int, small: bool) -> Iterator[tuple[str, Any]]:
    """Restraint and κ of one down projection, as ratios to torch.linalg on the same device."""
    weight = torch.randn(hidden, inner, device=machine.device)
    update = LowRankUpdate(
        torch.randn(hidden, RANK, device=machine.device), torch.randn(RANK, inner, device=machine.device)
    )
    m = update.spectral_norm() / 4
    restrain(update, LogRestraint(1.2), m)
    own = machine.seconds(lambda: restrain(update, LogRestraint(1.2), m))
    dense: list[Tensor] = []
    reference = machine.seconds(lambda: dense.append(torch.linalg.svdvals(update.dense())))
    yield "restraint, rank 100", {"seconds": own, "torch_seconds": reference, "ratio": reference / own}
    held: list[ConditionNumber] = []
    base = machine.seconds(lambda: held.append(ConditionNumber(weight)))
    edited = lambda: held[0].of(held[0].project(update))  # noqa: E731
    edited()
    own = machine.seconds(edited)
    values: list[Tensor] = []
    reference = machine.seconds(lambda: values.append(torch.linalg.svdvals(weight + update.dense())))
    kappa = float(values[0][0] / values[0][-1])
    error = abs(edited().condition_number / kappa - 1)
    figures = {"base_seconds": base, "seconds": own, "torch_seconds": reference, "ratio": reference / own}
    yield "condition number", {**figures, "relative_error": error}


def model_rows(
    machine: Machine, hidden: int, inner: int, layers: int, vocabulary: int, *, small: bool
) -> Iterator[tuple[str, Any]]:
    """Second moments, and seconds and memory of an edit, with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_path())
    model = random_model(machine, hidden, inner, layers, max(vocabulary, len(tokenizer)), small)
    yield "model", {"bytes": sum(one.numel() * one.element_size() for one in model.parameters())}
    memit = get_editor("memit", layers=(1, 2) if small else (4, 5, 6, 7, 8), **settings(small))
    rome = get_editor("rome", layers=(1,) if small else (5,), **settings(small))
    texts = plain_texts(16 if small else 1024)
    kept: list[SecondMoments] = []

    def collected() -> None:
        kept.append(collect_second_moments(model, tokenizer, texts, memit.modules(model), progress=False))

    spent, most = machine.peak(collected)
    yield "second moments", {"seconds": spent, "tokens": kept[0].tokens, "peak_bytes": most}
    for editor, requests in ((rome, EDITS[:1]), (memit, EDITS)):
        session = EditSession(
            *(model, tokenizer, editor),
            statistics=kept[0],
            on_failure="keep",
            monitor=False,
            look_again=False,
            solving=Solving(device=machine.device),
        )
        first, most = machine.peak(lambda s=session, r=requests: s.edit(r, batch_size=len(r)))
        yield (
            f"{editor.name}, first batch with its inverses",
            {"seconds": first, "edits": len(requests), "peak_bytes": most},
        )
        again = [EditRequest("{} works in", request.subject, " Paris") for request in requests]
        spent, most = machine.peak(lambda s=session, r=again: s.edit(r, batch_size=len(r)))
        yield f"{editor.name}, per edit", {"seconds": spent / len(requests), "peak_bytes": most}
        model = session.model.unload()
        session.close()


def settings(small: bool) -> dict[str, Any]:
    """The published 20 looks at the loss, none of which ends the search."""
    steps = 3 if small else 20
    return {
        "mom2_shrinkage": 1e-2,
        "stop": "loss",
        "stop_loss": 1e-30,
        "v_num_grad_steps": steps,
        "second_try": False,
    }


def random_model(machine: Machine, hidden: int, inner: int, layers: int, vocabulary: int, small: bool) -> Any:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4 if small else 32,
        num_key_value_heads=2 if small else 8,
        max_position_embeddings=2048,
        dtype=torch.float32 if small else torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(config.dtype)
    try:
        with machine.device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, on the CPU if no device is given")
    parser.add_argument("--device", help="as torch names it")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which no further part begins")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
