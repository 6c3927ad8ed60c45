"""One editing life of a tiny model, whole in one process or sharded by FSDP2 over several.

``python -m tests.processes.sharded FOLDER HOW KIND`` under a launcher; HOW is "before" (sharded, then adapted), "after"
(adapted, then sharded) or "one" (sharded, then adapted, all weights in one group); any other leaves it whole.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from peft_prune import EditSession, PruneEditConfig, evaluate, get_editor
from peft_prune.editors import collect_second_moments
from peft_prune.evaluation.merging import merge_report
from peft_prune.models.decoder import decoder_blocks, unwrapped
from peft_prune.models.fingerprint import base_fingerprint
from peft_prune.models.mlp import mlp_output_module
from peft_prune.models.sharding import whole
from peft_prune.processes import process_rank
from tests.consolidation.scene import GENTLE
from tests.editors.test_rome import TEXTS
from tests.processes.job import EVALUATED
from tests.session.scene import REQUESTS
from tests.talking import spaced_tokenizer
from tests.tiny import random_update, willing

CONFIG: dict[str, Any] = {"layers_to_transform": [1], "restraint": "clip", "restrain_on": "merge"}

SHORT = replace(GENTLE, texts=8, learning_rate=0.01, steps=30, look_every=10)


def share_out(model: Any, how: str) -> None:
    """FSDP2 over all processes, as its users call it: each block, then the rest; or all at once."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if how != "one":
        for _, block in decoder_blocks(model):
            fully_shard(block, mesh=mesh)
    fully_shard(unwrapped(model), mesh=mesh)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=torch.arange(24).reshape(2, 12) % 50).logits
    return found.clone()


def attached(kind: str, how: str) -> Any:
    """A model with a fresh adapter, sharded as asked for."""
    base = willing(kind)
    if how in ("before", "one"):
        share_out(base, how)
    model = get_peft_model(base, PruneEditConfig(**CONFIG)).eval()
    if how == "after":
        share_out(model, how)
    return model


def work(folder: Path, how: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What everything gives, as tensors and as figures."""
    tokenizer, module = spaced_tokenizer(), mlp_output_module(willing(kind), 1)[0]
    model = attached(kind, how)
    found = {"fresh": logits(model)}
    with model.disable_adapter():
        moments = collect_second_moments(model, tokenizer, TEXTS, [module], batch_size=3, progress=False)
    found["moment"] = moments.moments[module]
    figures: dict[str, Any] = {"tokens": moments.tokens, "base": base_fingerprint(model)}
    for name in ("rome", "memit"):
        own = {"mom2_update_weight": 1.0} if name == "memit" else {}
        editor = get_editor(name, layers=[1], mom2_shrinkage=0.1, context_lengths=((2, 2),), **own)
        with EditSession(model, tokenizer, editor, statistics=moments, history=folder / f"{name}.db") as session:
            results = session.edit(REQUESTS, batch_size=1 if name == "rome" else len(REQUESTS))
            found[f"{name} raw"] = product(model, module, raw=True)
            session.restrain()
            figures[f"{name} states"] = [one.holds for one in session.verify().values()]
            figures[f"{name} first"] = [one.status for one in results]
            figures[f"{name} condition"] = {
                key: value for key, value in asdict(session.figures()[module]).items() if isinstance(value, float)
            }
            found[f"{name} restrained"] = product(model, module)
            session.save(folder / name)
            if name == "memit":
                consolidated(session, module, found, figures)
        found[f"{name} logits"] = logits(model)
        figures[f"{name} evaluation"] = evaluate(model, tokenizer, EVALUATED, batch_size=2)
        found |= merged(model, module, name)
        model = attached(kind, how)
    again = loaded(folder / "memit", kind, how)
    found["again"], found["again product"] = logits(again), product(again, module)
    again.base_model.add_edits({module: random_update(tuple(product(again, module).shape), scale=0.1)})
    again.base_model.restrain()
    found["added"] = logits(again)
    report = merge_report(again, tokenizer, REQUESTS[:2])
    figures["report"] = {name: layer.error for name, layer in report.layers.items()} | {"drift": report.logit_drift}
    plain = again.merge_and_unload()
    found["unloaded"] = logits(plain)
    found["unloaded weight"] = whole(plain.get_submodule(module).weight).clone()
    return found, figures


def consolidated(session: EditSession, module: str, found: dict[str, Tensor], figures: dict[str, Any]) -> None:
    """Consolidate against texts that the base writes, look at what it gives, and take it back.

    What was saved before is what the rest is about.
    """
    result = session.consolidate(settings=SHORT)
    figures["consolidation"] = [result.steps, *result.margins.values(), *result.margins_before.values()]
    figures["consolidation"] += [result.divergence, result.divergence_before]
    figures["consolidated states"] = [one.holds for one in session.verify().values()]
    found["consolidated"] = product(session.model, module)
    found["consolidated logits"] = logits(session.model)
    session.restrain()  # F(raw) again


def merged(model: Any, module: str, name: str) -> dict[str, Tensor]:
    """Logits and weight when merged, with the adapter off meanwhile, and unmerged again."""
    layer = dict(model.base_model.edited_layers())[module]
    before = layer.get_base_weight().clone()
    model.merge_adapter()
    found = {f"{name} merged": logits(model), f"{name} merged weight": layer.get_base_weight().clone()}
    with layer.base_weight() as weight:
        found[f"{name} base seen while merged"] = weight.clone()
    found[f"{name} still merged"] = logits(model)
    with model.disable_adapter():
        found[f"{name} off"] = logits(model)
    model.base_model.edited_layers()
    assert not layer.merged, "a call with the adapter off undoes the merge"
    model.merge_adapter()
    model.unmerge_adapter()
    model.base_model.edited_layers()
    assert torch.equal(layer.get_base_weight(), before), "unmerging gives the base back bit for bit"
    found[f"{name} unmerged"] = logits(model)
    return found


def loaded(folder: Path, kind: str, how: str) -> Any:
    """The saved adapter over a base that is sharded before or afterwards."""
    base = willing(kind)
    if how in ("before", "one"):
        share_out(base, how)
    model = PeftModel.from_pretrained(base, folder).eval()
    if how == "after":
        share_out(model, how)
    return model


def product(model: Any, module: str, raw: bool = False) -> Tensor:
    layer = dict(model.base_model.edited_layers())[module]
    update = layer.raw_update("default") if raw else layer.effective_update("default")
    return (update.B.double() @ update.A.double()).clone()


def main() -> None:
    from accelerate import PartialState

    PartialState(cpu=True)
    folder, how, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    tensors, figures = work(folder, how, kind)
    rank = process_rank()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank-{rank}.safetensors")
    (folder / f"rank-{rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
