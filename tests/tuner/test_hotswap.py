"""Another adapter in the place of a loaded one, while requests are under way."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file

from peft_prune import PruneEditConfig
from peft_prune.errors import AdapterError, MergedAdapterError
from peft_prune.tuner.in_flight import Earlier, Moment
from tests.tiny import agree, random_update, tiny_gpt2, tiny_llama

IDS = torch.tensor([[3, 14, 15]])
LAYERS = [0, 1, 2]


def saved(place: Path, seed: int, rank: int, layers=LAYERS, base=tiny_gpt2, **config) -> Path:
    """An adapter's folder; every layer has its own factors."""
    settings = {"restraint": "none", "layers_to_transform": layers, **config}
    model = get_peft_model(base(), PruneEditConfig(**settings)).eval()
    for index, (name, layer) in enumerate(list(model.edited_layers())):
        shape = (layer.out_features, layer.in_features)
        model.add_edits({name: random_update(shape, rank=rank, scale=2.0, seed=100 * seed + index)}, edits=rank)
    model.save_pretrained(place)
    return place


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / str(seed), seed, rank) for seed, rank in ((0, 2), (1, 5))]


@torch.no_grad()
def logits(model, **options) -> torch.Tensor:
    return model(input_ids=IDS, **options).logits


def loaded(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_gpt2(), folder).eval()


def test_a_swapped_adapter_is_the_one_that_loading_would_give(folders, tmp_path: Path) -> None:
    model = loaded(folders[0])
    for turn in (1, 0, 1):
        model.hotswap(folders[turn])
        assert torch.equal(logits(model), logits(loaded(folders[turn])))
        assert model.peft_config["default"].edits == (2, 5)[turn]
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_gpt2()))
    model.save_pretrained(tmp_path / "again")
    assert agree(logits(loaded(tmp_path / "again")), logits(loaded(folders[1])))


def test_a_layer_that_the_new_adapter_leaves_alone_is_the_base_again(folders, tmp_path: Path) -> None:
    model, fewer = loaded(folders[0]), saved(tmp_path / "fewer", 3, 1, layers=[1])
    model.hotswap(fewer)
    assert torch.equal(logits(model), logits(loaded(fewer)))
    with pytest.raises(AdapterError, match=r"transformer\.h\.0\.mlp\.c_proj: the new adapter adapts it"):
        loaded(fewer).hotswap(folders[1])


def test_a_restrained_adapter_is_not_restrained_again(folders, tmp_path: Path) -> None:
    restrained = saved(tmp_path / "restrained", 4, 6, restraint="clip", restrain_every=1)
    model = loaded(folders[0])
    model.hotswap(restrained)
    assert not model.restraint_is_pending() and torch.equal(logits(model), logits(loaded(restrained)))
    with pytest.raises(AdapterError, match="already restrained"):
        model.restrain()


def test_a_request_under_way_ends_with_the_factors_that_it_began_with(folders) -> None:
    """A swap in the middle of a forward pass, and of a generation, deterministically."""
    model, want = loaded(folders[0]), [logits(loaded(folder)) for folder in folders]
    settings = {"input_ids": IDS, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 49}
    texts = [loaded(folder).generate(**settings).tolist() for folder in folders]
    assert texts[0] != texts[1]
    middle = model.get_submodule("base_model.model.transformer.h.1")
    passes: list[int] = []

    def in_another_thread(*_: object) -> None:
        passes.append(1)
        if len(passes) in (1, 4):
            thread = threading.Thread(target=model.hotswap, args=(folders[1 if len(passes) == 1 else 0],))
            thread.start()
            thread.join()
            assert torch.equal(seen_by_another_request(model), want[1 if len(passes) == 1 else 0])

    def seen_by_another_request(model) -> torch.Tensor:
        found: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: found.append(logits(model)))
        handle.remove()
        thread.start()
        thread.join()
        return found[0]

    handle = middle.register_forward_hook(in_another_thread)
    assert torch.equal(logits(model), want[0])
    assert torch.equal(logits(model), want[1])
    passes[:] = [1, 1]
    handle = middle.register_forward_hook(in_another_thread)
    assert model.generate(**settings).tolist() == texts[1]
    assert model.generate(**settings).tolist() == texts[0]
    assert torch.equal(logits(model), want[0])


def test_two_adapters_swapped_one_after_the_other_both_stay_for_an_earlier_request(folders, tmp_path: Path) -> None:
    model = loaded(folders[0])
    model.load_adapter(folders[1], "other")
    model.base_model.set_adapter(["default", "other"])
    before, third = logits(model), saved(tmp_path / "third", 7, 3)
    middle = model.get_submodule("base_model.model.transformer.h.0")

    def swap_both(*_: object) -> None:
        handle.remove()
        model.load_adapter(folders[0], "new")
        for name, place in (("default", third), ("other", folders[0]), ("default", folders[1])):
            thread = threading.Thread(target=model.hotswap, args=(place, name))
            thread.start()
            thread.join()

    handle = middle.register_forward_pre_hook(swap_both)
    assert torch.equal(logits(model), before)
    after = logits(model)
    # both adapters have changed places; floats add in another order
    assert torch.allclose(after, before, atol=1e-4)
    mixed = logits(model, adapter_names=["default"])
    assert torch.allclose(mixed, logits(loaded(folders[1])), atol=1e-5)


def test_a_model_that_calls_another_one_keeps_both_as_they_began(folders) -> None:
    outer, inner = loaded(folders[0]), loaded(folders[0])
    want, seen = logits(inner), []

    def swap(*_: object) -> None:
        swapping.remove()
        thread = threading.Thread(target=inner.hotswap, args=(folders[1],))
        thread.start()
        thread.join()

    def call_the_other(*_: object) -> None:
        calling.remove()
        seen.append(logits(inner))

    swapping = inner.get_submodule("base_model.model.transformer.h.1").register_forward_hook(swap)
    calling = outer.get_submodule("base_model.model.transformer.h.1").register_forward_hook(call_the_other)
    assert torch.equal(logits(outer), want) and torch.equal(seen[0], want)
    assert torch.equal(logits(inner), logits(loaded(folders[1])))


def test_threads_that_generate_see_the_old_adapter_or_the_new_one(folders) -> None:
    model = loaded(folders[0])
    settings = {"input_ids": IDS, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 49}
    allowed = [loaded(folder).generate(**settings).tolist() for folder in folders]
    found, errors, stop = [], [], threading.Event()

    def serve() -> None:
        try:
            while not stop.is_set():
                found.append(model.generate(**settings).tolist())
        except BaseException as error:  # a thread's errors are seen by nobody else
            errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        model.hotswap(folders[1 - turn % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors and len(found) >= 3
    assert all(text in allowed for text in found)
    assert model.generate(**settings).tolist() == allowed[0]


def test_the_old_factors_go_with_the_last_request_that_sees_them(folders) -> None:
    model = loaded(folders[0])
    model.hotswap(folders[1])
    layer = next(layer for _, layer in model.edited_layers())
    assert len(layer._earlier._kept) == 0
    earlier, moment = Earlier(), Moment()
    earlier.keep(moment, "default", layer._acting_now("default"))
    assert len(earlier._kept) == 1
    del moment
    assert len(earlier._kept) == 0
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    assert len(pickle.loads(pickle.dumps(layer._earlier))._kept) == 0


def damaged(folder: Path, place: Path, change) -> Path:
    """A copy of a folder with other entries in its file."""
    place.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (place / file.name).write_bytes(file.read_bytes())
    entries = load_file(folder / "adapter_model.safetensors")
    change(entries)
    save_file(entries, place / "adapter_model.safetensors")
    return place


def _without_one(entries) -> None:
    del entries[sorted(entries)[0]]


def _not_finite(entries) -> None:
    entries[sorted(entries)[0]][0, 0] = float("nan")


def _of_another_width(entries) -> None:
    for key in entries:
        if "_A." in key:
            entries[key] = entries[key][:, :-1].contiguous()


def _with_more(entries) -> None:
    entries["base_model.model.lm_head.weight"] = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_one, "holds one factor of two"),
        (_not_finite, "NaN or Inf"),
        (_of_another_width, r"the new adapter's update is \(16, 63\), this base needs \(16, 64\)"),
        (_with_more, "lm_head.weight: is no factor"),
        (dict.clear, "it holds no factors"),
    ],
)
def test_a_damaged_file_leaves_the_old_adapter_in_place(folders, tmp_path: Path, change, message: str) -> None:
    model = loaded(folders[0])
    before, config = logits(model), model.peft_config["default"]
    with pytest.raises(AdapterError, match=message):
        model.hotswap(damaged(folders[1], tmp_path / "damaged", change))
    assert torch.equal(logits(model), before) and model.peft_config["default"] is config


def test_a_wrong_base_no_adapter_and_a_merged_one_leave_the_old_adapter_in_place(folders, tmp_path: Path) -> None:
    model = loaded(folders[0])
    before = logits(model)
    other = saved(tmp_path / "other", 1, 2, base=lambda: tiny_gpt2(seed=5))
    with pytest.raises(AdapterError, match="the base is"):
        model.hotswap(other)
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(AdapterError, match="cannot be loaded"):
            model.hotswap(place)
    empty = damaged(folders[1], tmp_path / "empty", lambda entries: None)
    (empty / "adapter_model.safetensors").rename(empty / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"holds no adapter_model\.safetensors"):
        model.hotswap(empty)
    torn = damaged(folders[1], tmp_path / "torn", lambda entries: None)
    (torn / "adapter_model.safetensors").write_bytes(b"\x08" * 30)
    with pytest.raises(AdapterError, match=r"cannot be (read|loaded)"):
        model.hotswap(torn)
    with pytest.raises(ValueError, match="must name one of default"):
        model.hotswap(folders[1], "other")
    assert torch.equal(logits(model), before)
    model.merge_adapter()
    with pytest.raises(MergedAdapterError, match=r"merged into .* before swapping"):
        model.hotswap(folders[1])
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)


def test_a_lora_folder_is_named_and_pefts_own_function_refuses_this_method(folders, tmp_path: Path) -> None:
    from peft import LoraConfig

    get_peft_model(tiny_llama(), LoraConfig(target_modules=["down_proj"])).save_pretrained(tmp_path / "lora")
    model = loaded(folders[0])
    before = logits(model)
    with pytest.raises(AdapterError, match="LORA"):
        model.hotswap(tmp_path / "lora")
    with pytest.raises(ValueError, match="only supports LORA but PRUNE_EDIT"):
        hotswap_adapter(model, str(folders[1]), "default")
    assert torch.equal(logits(model), before)
