"""A GGUF of the base with the edits in its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from peft_prune import AdapterError, CheckpointError, EditRequest, PruneEditConfig, UnsupportedModelError, verify
from peft_prune.export import lost_in_gguf, merge_into_gguf
from tests.export.test_forms import edited
from tests.export.tiny_gguf import write_tiny_gguf
from tests.talking import WORDS, dense_greedy, spaced_tokenizer
from tests.tiny import random_update, tiny_llama, willing
from tests.tuner.test_edits import INPUTS, base_weight, dense_log

gguf = pytest.importorskip("gguf")

DOWN = "model.layers.{}.mlp.down_proj"


def llama():
    return willing("llama")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of the base, in float32."""
    file = tmp_path_factory.mktemp("gguf") / "base.gguf"
    write_tiny_gguf(llama(), spaced_tokenizer(), file)
    return file


def tensors(file: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Type and values of every tensor, by name."""
    found = {}
    for one in gguf.GGUFReader(file).tensors:
        values = gguf.dequantize(one.data, one.tensor_type).copy()
        found[one.name] = one.tensor_type.name, torch.from_numpy(values).double()
    return found


def fields(file: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if "GGUF." not in name}


def settings_of(file: Path) -> dict[str, object]:
    own = fields(file)
    return {name: value for name, value in own.items() if not name.startswith("general.")}


@pytest.mark.parametrize(
    "quantization, kind, rounding",
    [("keep", "Q8_0", 0.01), ("f16", "F16", 1e-3), ("q8_0", "Q8_0", 0.01), ("q4_0", "Q4_0", 0.15)],
)
def test_the_edited_tensors_are_the_sum_rounded_once(source, quantization, kind, rounding, tmp_path) -> None:
    model = edited(llama, (0, 2, 3), restrain_on="merge")
    expected = {}
    for layer, (_, own) in enumerate(model.edited_layers()):
        base = base_weight(own).double()
        expected[f"blk.{layer}.ffn_down.weight"] = base + dense_log(own.raw_update("default").dense(), base, 1.2)
    done = merge_into_gguf(model, source, tmp_path / "x", quantization=quantization)
    assert done.restraint_applied and done.modules == (DOWN.format(1), DOWN.format(2))
    before, after = tensors(source), tensors(done.file)
    for name in ("blk.1.ffn_down.weight", "blk.2.ffn_down.weight"):
        assert after[name][0] == kind
        assert float((after[name][1] - expected[name]).norm()) < rounding * float(expected[name].norm())
    assert list(before) == list(after) and settings_of(source) == settings_of(done.file)
    untouched = [name for name in before if name not in ("blk.1.ffn_down.weight", "blk.2.ffn_down.weight")]
    same = [name for name in untouched if after[name][0] == before[name][0]]
    assert all(torch.equal(after[name][1], before[name][1]) for name in same)
    assert (same == untouched) == (quantization == "keep")
    assert all(name in same for name in untouched if "norm" in name)


def test_a_model_of_transformers_reads_it_and_answers_as_the_adapter(source, tmp_path) -> None:
    model = edited(llama, (0, 2, 3), restraint="none")
    done = merge_into_gguf(model, source, tmp_path / "x", quantization="f16")
    read = AutoModelForCausalLM.from_pretrained(str(tmp_path / "x"), gguf_file=done.file.name, dtype=torch.float32)
    with torch.no_grad():
        found, expected, base = (one.eval()(INPUTS).logits for one in (read, model, llama()))
    assert float((found - expected).norm()) < 0.01 * float((base - expected).norm())


def test_which_edits_the_numbers_lose_is_measured(source, tmp_path) -> None:
    model, tokenizer = edited(llama, (0, 2, 3), restraint="none"), spaced_tokenizer()
    done = merge_into_gguf(model, source, tmp_path / "x", quantization="f16")
    request = said_by(model, tokenizer)
    assert verify(model, tokenizer, [request])[0].holds
    assert lost_in_gguf(model, tokenizer, [request], done.file) == []
    assert lost_in_gguf(model, tokenizer, [request], source) == [0], "the base says something else"


def said_by(model, tokenizer) -> EditRequest:
    """An edit that the adapter makes: what it says, and the base does not."""
    for word in WORDS:
        ids = tokenizer(f"note sea {word}")["input_ids"]
        said = tokenizer.decode(dense_greedy(model, ids, 8)).split()[:1]
        with model.disable_adapter():
            before = tokenizer.decode(dense_greedy(model, ids, 8)).split()[:1]
        if said and before and said[0][:1] != before[0][:1]:
            return EditRequest(prompt="note sea {}", subject=word, target_new=said[0])
    raise AssertionError("the adapter changes no answer")


def test_the_gguf_must_be_the_bases_own(source, tmp_path) -> None:
    model = edited(llama, (0, 1, 0), restraint="none")
    other = tmp_path / "other.gguf"
    write_tiny_gguf(tiny_llama(seed=5), spaced_tokenizer(), other)
    half = tmp_path / "half.gguf"
    half.write_bytes(source.read_bytes()[:700])
    for file, said in (
        (other, "is not the base's weight"),
        (tmp_path / "none.gguf", "is no file"),
        (half, "is no GGUF, or a damaged one"),
        (Path(__file__), "is no GGUF, or a damaged one"),
    ):
        with pytest.raises(CheckpointError, match=said) as raised:
            merge_into_gguf(model, file, tmp_path / "x")
        assert "\n" not in str(raised.value) and not (tmp_path / "x").exists()


def test_what_cannot_be_written_is_refused(source, tmp_path) -> None:
    with pytest.raises(ValueError, match="quantization: 'q2_k' is not one of keep, f16, q8_0, q4_0"):
        merge_into_gguf(edited(llama), source, tmp_path / "x", quantization="q2_k")
    with pytest.raises(AdapterError, match="holds no edits"):
        merge_into_gguf(edited(llama, (0, 0, 0)), source, tmp_path / "x")
    rows = get_peft_model(
        llama(), PruneEditConfig(target_modules=["q_proj"], layers_to_transform=[1], restraint="none")
    )
    ((name, layer),) = rows.edited_layers()
    rows.add_edits({name: random_update((layer.out_features, layer.in_features))})
    with pytest.raises(UnsupportedModelError, match="stores its rows in another order"):
        merge_into_gguf(rows, source, tmp_path / "x")
    with pytest.raises(ValueError, match="gguf"):
        merge_into_gguf(edited(llama), source, source.parent, overwrite=True)
    assert not (tmp_path / "x").exists() and source.is_file()
