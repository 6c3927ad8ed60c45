"""Programs that serve the exports, run for real where they are installed.

``PEFT_PRUNE_MLX`` is a Python interpreter that has mlx-lm, if this one has not; ``PEFT_PRUNE_NODE`` a folder in which
``npm install node-llama-cpp`` was run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peft_prune.export import export_lora
from tests.export.test_forms import edited
from tests.export.tiny_gguf import write_tiny_gguf
from tests.families import tiny_family
from tests.talking import WORDS, spaced_tokenizer
from tests.tiny import tiny_llama, willing
from tests.tuner.test_edits import INPUTS

MLX_LOGITS = """
import sys
import mlx.core as mx
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from pathlib import Path
base, adapter, ids, out = sys.argv[1:]
mx.set_default_device(mx.cpu)
model, _ = load_model(Path(base))
model = load_adapters(model, adapter)
model.eval()
logits = model(mx.array([[int(one) for one in ids.split(",")]]))
mx.save_safetensors(out, {"logits": logits.astype(mx.float32)})
"""

ASK = """
import {getLlama, LlamaCompletion} from "node-llama-cpp";
const [modelPath, adapter, count, ...prompts] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1});
const model = await llama.loadModel({modelPath});
const lora = adapter === "-" ? undefined : {adapters: [{filePath: adapter}]};
const context = await model.createContext({contextSize: 32, lora});
const completion = new LlamaCompletion({contextSequence: context.getSequence()});
const answers = [];
for (const prompt of prompts)
  answers.push(await completion.generateCompletion(prompt, {maxTokens: Number(count), temperature: 0}));
console.log("ANSWERS" + JSON.stringify(answers));
process.exit(0);
"""


def mlx_python() -> str:
    found = os.environ.get("PEFT_PRUNE_MLX") or (sys.executable if find_spec("mlx_lm") else None)
    if found is None:
        pytest.skip("mlx-lm is not installed (PEFT_PRUNE_MLX names an interpreter that has it)")
    return found


def node_folder() -> Path:
    folder = os.environ.get("PEFT_PRUNE_NODE")
    if folder is None or not (Path(folder) / "node_modules" / "node-llama-cpp").is_dir():
        pytest.skip("node-llama-cpp is not installed (PEFT_PRUNE_NODE names the folder of its node_modules)")
    return Path(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "starcoder2"])
def test_mlx_gives_the_adapters_logits(family: str, tmp_path: Path) -> None:
    python = mlx_python()
    model = edited(tiny_llama if family == "llama" else lambda: tiny_family(family))
    export_lora(model, tmp_path / "x", format="mlx")
    with torch.no_grad():
        expected = model(INPUTS).logits
        base = model.unload()
        change = (base(INPUTS).logits - expected).abs().max()
    base.save_pretrained(tmp_path / "base")
    ids = ",".join(str(int(one)) for one in INPUTS[0])
    words = [str(tmp_path / "base"), str(tmp_path / "x"), ids, str(tmp_path / "logits.safetensors")]
    run = subprocess.run([python, "-c", MLX_LOGITS, *words], capture_output=True, text=True, env=plain_environment())
    assert run.returncode == 0, run.stderr[-2000:]
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    assert float((found - expected).abs().max()) < 0.01 * float(change)


def test_llama_cpp_answers_as_the_adapter_does(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    node = node_folder()
    model, tokenizer = edited(lambda: willing("llama"), (0, 2, 3)), spaced_tokenizer()
    export_lora(model, tmp_path / "x", format="gguf")
    prompts = [f"{one} {other}" for one, other in zip(WORDS[:8], WORDS[8:], strict=False)]
    edited_answers = greedy(model, tokenizer, prompts)
    base = model.unload()
    base_answers = greedy(base, tokenizer, prompts)
    assert edited_answers != base_answers
    write_tiny_gguf(base, tokenizer, tmp_path / "base.gguf")
    assert asked(node, tmp_path, "-", prompts) == base_answers
    assert asked(node, tmp_path, str(tmp_path / "x" / "adapter.gguf"), prompts) == edited_answers


COUNT = 4


def greedy(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            for _ in range(COUNT):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        answers.append(tokenizer.decode(ids[0, -COUNT:]).split("<end>")[0])
    return answers


def asked(node: Path, folder: Path, adapter: str, prompts: list[str]) -> list[str]:
    script = node / f"ask-{os.getpid()}.mjs"
    script.write_text(ASK)  # where it lies decides which packages it finds
    words = [str(folder / "base.gguf"), adapter, str(COUNT), *prompts]
    try:
        run = subprocess.run(["node", script.name, *words], cwd=node, capture_output=True, text=True)
    finally:
        script.unlink()
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.split("ANSWERS", 1)[1])


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
