"""An export is the adapter's own ΔW to every server's loader, whatever the ranks of its layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from peft_prune import AdapterError, PruneEditConfig, UnsupportedModelError
from peft_prune.export import SERVERS, export_lora
from tests.export import loaders
from tests.families import tiny_family
from tests.tiny import random_update, tiny_gpt2, tiny_llama
from tests.tuner.test_edits import INPUTS, base_weight, dense_log, strong

DOWN = "model.layers.{}.mlp.down_proj"
ALL = [DOWN.format(layer) for layer in range(3)]


def edited(build=tiny_llama, counts=(0, 1, 3), **config):
    """An adapter whose layers hold different numbers of edits."""
    model = get_peft_model(build(), PruneEditConfig(**{"restrain_every": 3, **config})).eval()
    for count, (name, layer) in zip(counts, model.edited_layers(), strict=True):
        for seed in range(count):
            model.add_edits({name: strong(layer, seed)})
    return model


def deltas(model) -> dict[str, Tensor]:
    """ΔW (out, in) of the layers with edits, in float64."""
    updates = {name: layer.effective_update("default") for name, layer in model.edited_layers()}
    return {name: update.B.double() @ update.A.double() for name, update in updates.items() if update.rank}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, delta in expected.items():
        assert torch.allclose(found[name], delta, atol=2e-6 * float(delta.norm())), name


@pytest.fixture
def model():
    return edited()


def test_vllm_reads_the_adapters_update(model, tmp_path) -> None:
    done = export_lora(model, tmp_path / "x")
    assert done.rank == 3 and done.servers["vLLM"] == "--max-lora-rank 8"
    assert_same(loaders.vllm(tmp_path / "x", 8, {"down_proj"}), deltas(model))


def test_sglang_reads_the_adapters_update(model, tmp_path) -> None:
    export_lora(model, tmp_path / "x")
    assert_same(loaders.sglang(tmp_path / "x", 3), deltas(model))


def test_tgi_drops_a_kind_of_module_that_one_layer_lacks_unless_the_layers_are_filled(model, tmp_path) -> None:
    done = export_lora(model, tmp_path / "x")
    assert loaders.tgi(tmp_path / "x", ALL) == {}
    assert "mlp.down_proj" in done.servers["TGI"] and done.servers["LoRAX"] == done.servers["TGI"]
    with pytest.raises(AdapterError, match=r"TGI would leave out mlp\.down_proj.*--fill-layers"):
        export_lora(model, tmp_path / "y", servers=["tgi"])
    filled = export_lora(model, tmp_path / "z", servers=["TGI"], fill_layers=True)
    assert filled.servers == {"TGI": ""} and filled.modules == tuple(ALL)
    found = loaders.tgi(tmp_path / "z", ALL)
    assert not found.pop(ALL[0]).any()
    assert_same(found, deltas(model))


def test_ollama_takes_no_factor_for_a_transposed_one(model, tmp_path) -> None:
    export_lora(model, tmp_path / "x")
    assert_same(loaders.ollama(tmp_path / "x"), deltas(model))
    with pytest.raises(AdapterError, match="Ollama takes ranks up to 16, the smallest side"):
        export_lora(model, tmp_path / "y", rank=17)
    export_lora(model, tmp_path / "y", rank=17, servers=["vllm", "peft"])
    assert_same(loaders.vllm(tmp_path / "y", 32, {"down_proj"}), deltas(model))


def test_mlx_reads_the_adapters_update(model, tmp_path) -> None:
    export_lora(model, tmp_path / "x", format="mlx")
    assert_same(loaders.mlx(tmp_path / "x"), deltas(model))


@pytest.mark.parametrize(
    "family, architecture, there",
    [
        ("llama", "llama", "model.layers.{}.mlp.down_proj"),
        ("mistral", "llama", "model.layers.{}.mlp.down_proj"),
        ("qwen2", "qwen2", "model.layers.{}.mlp.down_proj"),
        ("qwen3", "qwen3", "model.layers.{}.mlp.down_proj"),
        ("gemma2", "gemma2", "model.layers.{}.mlp.down_proj"),
        ("gemma3_text", "gemma3", "model.layers.{}.mlp.down_proj"),
        ("gemma3", "gemma3", "language_model.model.layers.{}.mlp.down_proj"),
        ("gpt2", "gpt2", "model.h.{}.mlp.c_proj"),
        ("phi3", "phi3", "model.layers.{}.mlp.down_proj"),
        ("starcoder2", "starcoder2", "model.layers.{}.mlp.c_proj"),
    ],
)
def test_llama_cpp_and_mlx_read_the_update_under_their_own_names(family, architecture, there, tmp_path) -> None:
    pytest.importorskip("gguf")
    model = edited(lambda: tiny_family(family), (1, 0, 2))
    expected = dict(zip((0, 2), deltas(model).values(), strict=True))
    export_lora(model, tmp_path / "x", format="gguf")
    shapes = {f"blk.{layer}.ffn_down.weight": tuple(delta.shape) for layer, delta in expected.items()}
    found = loaders.llama_cpp(tmp_path / "x" / "adapter.gguf", architecture, shapes)
    assert_same(found, {f"blk.{layer}.ffn_down.weight": delta for layer, delta in expected.items()})
    export_lora(model, tmp_path / "y", format="mlx")
    assert_same(loaders.mlx(tmp_path / "y"), {there.format(layer): delta for layer, delta in expected.items()})


@pytest.mark.parametrize("form, program", [("gguf", r"llama\.cpp"), ("mlx", "MLX")])
def test_an_architecture_that_is_not_known_is_refused(form, program, tmp_path) -> None:
    pytest.importorskip("gguf")
    model = edited(lambda: tiny_family("gpt_neox"))
    with pytest.raises(UnsupportedModelError, match=f"'gpt_neox' cannot be exported for {program}; these can: llama"):
        export_lora(model, tmp_path / "x", format=form)
    assert not list(tmp_path.iterdir())


def test_rows_that_llama_cpp_reorders_are_refused(tmp_path) -> None:
    pytest.importorskip("gguf")
    model = edited(counts=(0, 1, 0), target_modules=["q_proj"])
    with pytest.raises(UnsupportedModelError, match="stores its rows in another order"):
        export_lora(model, tmp_path / "x", format="gguf")


def test_a_quantized_base_is_refused_for_gguf(tmp_path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("bitsandbytes")
    from tests.tuner.test_quantized import quantized

    model = get_peft_model(quantized(4), PruneEditConfig(layers_to_transform=[1], restraint="none")).eval()
    ((name, layer),) = model.edited_layers()
    model.add_edits({name: random_update((layer.out_features, layer.in_features))})
    with pytest.raises(UnsupportedModelError, match="is quantized"):
        export_lora(model, tmp_path / "x", format="gguf")
    export_lora(model, tmp_path / "x")
    assert_same(loaders.sglang(tmp_path / "x", 1), deltas(model))


PLAIN = """
import sys, torch
sys.modules["peft_prune"] = None  # an import of it raises
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
ids = torch.tensor([[3, 14, 15, 9, 26, 5]])
found = [PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)]
found.append(AutoModelForCausalLM.from_pretrained(base))
found[1].load_adapter(adapter)
with torch.no_grad():
    torch.save([model.eval()(ids).logits for model in found], out)
"""


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_peft_and_transformers_give_the_adapters_logits_without_this_package(build, tmp_path) -> None:
    build().save_pretrained(tmp_path / "base")
    model = edited(build)
    export_lora(model, tmp_path / "x")
    expected = model(INPUTS).logits  # under the restraint that was pending
    words = [str(tmp_path / name) for name in ("base", "x", "logits.pt")]
    subprocess.run([sys.executable, "-c", PLAIN, *words], check=True, capture_output=True)
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.allclose(logits, expected, atol=1e-4)
    # and with the package
    assert torch.allclose(PeftModel.from_pretrained(build(), tmp_path / "x")(INPUTS).logits, expected, atol=1e-4)
    with PeftModel.from_pretrained(build(), tmp_path / "x").disable_adapter():
        assert not torch.allclose(build()(INPUTS).logits, expected, atol=1e-2)


def test_the_lora_beside_a_saved_adapter_loads_without_this_package(tmp_path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = edited(tiny_llama)
    model.save_pretrained(tmp_path / "saved", also_lora=True)
    words = [str(tmp_path / name) for name in ("base", "saved/lora", "logits.pt")]
    subprocess.run([sys.executable, "-c", PLAIN, *words], check=True, capture_output=True)
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.allclose(logits, model(INPUTS).logits, atol=1e-4)


def test_the_configuration_holds_one_integer_for_rank_and_alpha_and_no_pattern(model, tmp_path) -> None:
    export_lora(model, tmp_path / "x", rank=5)
    config = loaders.config_of(tmp_path / "x")
    assert (config["r"], config["lora_alpha"]) == (5, 5) and type(config["lora_alpha"]) is int
    assert config["target_modules"] == ALL[1:]
    assert not any("pattern" in key for key in config)
    assert str(tmp_path) not in json.dumps(config)


def test_a_folder_gives_what_its_model_gives(model, tmp_path) -> None:
    model.save_pretrained(tmp_path / "adapter")
    export_lora(tmp_path / "adapter", tmp_path / "x")
    assert_same(loaders.sglang(tmp_path / "x", 3), deltas(model))
    export_lora(tmp_path / "adapter", tmp_path / "y", base=tiny_llama(), fill_layers=True)
    assert set(loaders.sglang(tmp_path / "y", 3)) == set(ALL)
    with pytest.raises(AdapterError, match="was made for"):
        export_lora(tmp_path / "adapter", tmp_path / "z", base=tiny_llama(seed=1))
    for options in ({"fill_layers": True}, {"format": "mlx"}):
        with pytest.raises((AdapterError, UnsupportedModelError), match="needs the base"):
            export_lora(tmp_path / "adapter", tmp_path / "z", **options)
    assert not (tmp_path / "z").exists()


def test_a_pending_restraint_is_applied_to_what_leaves(tmp_path) -> None:
    model = edited(counts=(0, 2, 0), restrain_on="merge")
    ((_, layer),) = [(name, layer) for name, layer in model.edited_layers() if layer.rank("default")]
    expected = dense_log(layer.raw_update("default").dense(), base_weight(layer), 1.2)
    done = export_lora(model, tmp_path / "x")
    assert done.restraint_applied
    assert_same(loaders.sglang(tmp_path / "x", 2), {ALL[1]: expected})
    assert torch.allclose(deltas(model)[ALL[1]], expected, atol=1e-4)


def test_a_folder_with_a_pending_restraint_needs_the_base(tmp_path) -> None:
    model = edited(counts=(0, 2, 0), restraint="none")
    model.save_pretrained(tmp_path / "adapter")
    export_lora(tmp_path / "adapter", tmp_path / "raw")
    settings = loaders.config_of(tmp_path / "adapter") | {"restraint": "log"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match="pending restraint"):
        export_lora(tmp_path / "adapter", tmp_path / "x")
    done = export_lora(tmp_path / "adapter", tmp_path / "x", base=tiny_llama())
    assert done.restraint_applied
    base = tiny_llama().model.layers[1].mlp.down_proj.weight.detach()
    assert_same(loaders.sglang(tmp_path / "x", 2), {ALL[1]: dense_log(deltas(model)[ALL[1]], base, 1.2)})


def test_a_rank_above_a_servers_limit_is_an_error_that_names_the_server(tmp_path) -> None:
    wide = get_peft_model(tiny_llama(width=600), PruneEditConfig(layers_to_transform=[1], restraint="none"))
    ((name, layer),) = wide.edited_layers()
    wide.add_edits({name: random_update((layer.out_features, layer.in_features), rank=513)})
    with pytest.raises(AdapterError, match=r"rank: 513 .*vLLM takes ranks up to 512.*--max-rank.*SGLang"):
        export_lora(wide, tmp_path / "x")
    assert export_lora(wide, tmp_path / "x", servers=["sglang"]).servers == {"SGLang": "--max-lora-rank 513"}
    done = export_lora(wide, tmp_path / "y", max_rank=512)
    (error,) = done.truncated.values()
    values = torch.linalg.svdvals(deltas(wide)[name])
    assert error == pytest.approx(float(values[512] / values.norm()), rel=1e-3)
    assert done.rank == 512 and done.servers["vLLM"] == "--max-lora-rank 512"


def test_truncation_keeps_the_nearest_update(model, tmp_path) -> None:
    done = export_lora(model, tmp_path / "x", max_rank=2)
    assert set(done.truncated) == {ALL[2]}
    u, s, vh = torch.linalg.svd(deltas(model)[ALL[2]])
    nearest = u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
    assert_same(loaders.vllm(tmp_path / "x", 8, {"down_proj"}), {**deltas(model), ALL[2]: nearest})
    assert done.truncated[ALL[2]] == pytest.approx(float(s[2] / s.norm()), rel=1e-4)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"format": "onnx"}, "format: 'onnx' is not one of lora, gguf, mlx"),
        ({"rank": 2}, "rank: 2 is below 3"),
        ({"rank": 0}, "rank: 0 must be"),
        ({"max_rank": True}, "max_rank: True must be"),
        ({"servers": ["triton"]}, "servers: 'triton' is none that reads the format 'lora'"),
        ({"servers": ["MLX"]}, "servers: 'MLX' is none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_written(model, options, said, tmp_path) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        export_lora(model, tmp_path / "x", **options)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_an_adapter_that_no_lora_can_hold_is_refused(tmp_path) -> None:
    with pytest.raises(AdapterError, match="holds no edits"):
        export_lora(edited(counts=(0, 0, 0)), tmp_path / "x")
    with pytest.raises(AdapterError, match="modules_to_save"):
        export_lora(edited(modules_to_save=["lm_head"]), tmp_path / "x")
    with pytest.raises(AdapterError, match="carries no PRUNE_EDIT adapter"):
        export_lora(tiny_llama(), tmp_path / "x")
    with pytest.raises(AdapterError, match=r"holds no adapter_config\.json"):
        export_lora(tmp_path / "nowhere", tmp_path / "x")


def test_every_server_has_its_row_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(any(server.name in row for row in rows) for server in SERVERS)
