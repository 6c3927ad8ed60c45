"""Memory and time of an audit of two checkpoints of several GB, five matrices of which differ."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import Row, in_megabytes, in_seconds
from safetensors.torch import save_file

LAYERS, HIDDEN, INNER, VOCABULARY = 24, 2048, 8192, 32_000
SHARD_LAYERS = 6
EDITED = (9, 10, 11, 12, 13)

MEMORY = """
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
"""
"""Linux: what a process has now and has had at most, without what its parent had before it was started."""

AUDIT = """
import sys, time
from peft_prune.audit import audit

before = memory("VmRSS")
start = time.perf_counter()
found = audit(sys.argv[1], [sys.argv[2]])
seconds = time.perf_counter() - start
peak = memory("VmHWM") - before
ranks = [one.rank for one in found.series[0].matrices.values()]
print(peak, seconds, len(ranks), max(ranks))
"""

BOTH_IN_MEMORY = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file

def whole(folder):
    return {n: t.clone() for f in sorted(Path(folder).glob("*.safetensors")) for n, t in load_file(f).items()}

before = memory("VmRSS")
start = time.perf_counter()
base, edited = whole(sys.argv[1]), whole(sys.argv[2])
for name, weight in base.items():
    if not torch.equal(weight, edited[name]):
        old, new = weight.double(), edited[name].double()
        for matrix in (old, new, new - old):
            torch.linalg.svdvals(matrix)
seconds = time.perf_counter() - start
print(memory("VmHWM") - before, seconds)
"""


def rows() -> Iterator[Row]:
    folder = Path(tempfile.mkdtemp(prefix="peft-prune-audit-"))
    try:
        size = _write(folder)
        peak, seconds, changed, rank = _measured(AUDIT, folder)
        reference_peak, reference_seconds = _measured(BOTH_IN_MEMORY, folder)
    finally:
        shutil.rmtree(folder)
    note = f"bfloat16, {size / 1e9:.1f} GB each, {changed:.0f} matrices of {HIDDEN} x {INNER} differ by rank {rank:.0f}"
    right = changed == len(EDITED) and rank == 8
    yield Row(
        "peak memory of an audit of two checkpoints",
        "bytes of one checkpoint",
        peak / size,
        0.25,
        True,
        in_megabytes(peak),
        in_megabytes(size),
        note,
        right,
    )
    yield Row(
        "peak memory of an audit of two checkpoints",
        "both in memory, torch.linalg.svdvals",
        peak / reference_peak,
        None,
        True,
        in_megabytes(peak),
        in_megabytes(reference_peak),
        note,
        right,
    )
    yield Row(
        "time of the same audit",
        "both in memory, torch.linalg.svdvals",
        reference_seconds / seconds,
        None,
        False,
        in_seconds(seconds),
        in_seconds(reference_seconds),
        note,
        right,
    )


def _measured(script: str, folder: Path) -> list[float]:
    command = [sys.executable, "-W", "ignore", "-c", MEMORY + script, str(folder / "base"), str(folder / "edited")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(value) for value in output.split()]


def _write(folder: Path) -> int:
    """Both checkpoints in shards, in Llama's names; the bytes of one."""
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for name in ("base", "edited"):
        (folder / name).mkdir()
    for shard in range(LAYERS // SHARD_LAYERS):
        weights = {}
        for layer in range(shard * SHARD_LAYERS, (shard + 1) * SHARD_LAYERS):
            for part, shape in _shapes(layer).items():
                weights[part] = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        if shard == 0:
            weights["model.embed_tokens.weight"] = torch.randn(VOCABULARY, HIDDEN, generator=generator).bfloat16()
        file = f"model-{shard}.safetensors"
        save_file(weights, folder / "base" / file)
        for layer in EDITED:
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            if name in weights:
                update = torch.randn(HIDDEN, 8, generator=generator) @ torch.randn(8, INNER, generator=generator)
                weights[name] = (weights[name].float() + 0.02 * update).bfloat16()
        save_file(weights, folder / "edited" / file)
        places |= dict.fromkeys(weights, file)
    for name in ("base", "edited"):
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return sum(path.stat().st_size for path in (folder / "base").iterdir())


def _shapes(layer: int) -> dict[str, tuple[int, int]]:
    square = {f"self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"}
    inner = {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in {**square, **inner}.items()}
