"""Load what a command works on, and write what it makes: whole or not at all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..audit import Checkpoint
from ..errors import AdapterError, CheckpointError, UnsupportedModelError
from ..evaluation import Ability, load_ability
from ..evaluation.tasks import require_ability_ask
from ..hub import adapter_folder
from ..models.gguf import load_gguf_model, load_gguf_tokenizer
from ..models.gradients import ensure_gradients
from ..models.serving import SERVE_DTYPES
from ..requests.asking import PLAIN
from ..session import EditSession
from ..tuner import PruneEditModel
from ..tuner.beneath import other_adapters
from .loading import first_line, readable, require_complete, require_sizes
from .placement import Placement
from .places import HUB_NAME, gguf_file_of, own_model_path, place_of

DTYPES = ("float32", "bfloat16", "float16", "auto")

_ACTING = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_COMPANIONS = (
    *("*processor_config.json", "chat_template.*", "additional_chat_templates/*.jinja", "generation_config.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
"""Processors of images, sound and video, chat templates, and the forms of a tokenizer that other tools read."""

ANYWHERE = Placement()


def load_model(path: str, dtype: str = "float32", placement: Placement = ANYWHERE) -> PreTrainedModel:
    """The causal language model at ``path``, in evaluation mode.

    Args:
        path: A folder, a Hub name, 'builtin', or the name of a real model; also as `in_gguf` gives it.
        dtype: One of `DTYPES`.
        placement: Quantized how, and on which devices.

    Raises:
        UnsupportedModelError: It cannot be loaded, ``dtype`` is unknown, or an adapter lies beside its weights.
        MissingPackageError: The library that is to quantize it is not installed.
    """
    require_dtype(dtype)
    given, gguf_file, path = path, gguf_file_of(path), place_of(path)
    shown = _shown(path, gguf_file)
    if (Path(path) / "adapter_config.json").exists():
        raise UnsupportedModelError(_beside(path, "adapter_config.json"))
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    if gguf_file is not None and placement != ANYWHERE:
        raise UnsupportedModelError(
            f"gguf_file: {gguf_file} is dequantized as a whole; leave --quantization and the device options out"
        )
    with readable("model", shown):
        if gguf_file is None:
            require_sizes(path, AutoConfig.from_pretrained(path, trust_remote_code=False))
            model, info = _stored(path, wanted, placement)
        else:
            model, info = load_gguf_model(path, gguf_file, wanted)  # to read such a file takes long, so it is read once
            require_sizes(shown, model.config)
    require_complete(shown, info)
    attached = other_adapters(model)  # the Hub may hold one beside the weights as well
    if attached:
        raise UnsupportedModelError(_beside(path, ", ".join(attached)))
    if own_model_path(given) is not None:
        model.name_or_path = given
    ensure_gradients(model)  # before second moments are taken, which needs forward passes
    return model.eval()


def _shown(path: str, gguf_file: str | None) -> str:
    return path if gguf_file is None else f"{path}/{gguf_file}"


def _stored(path: str, dtype: Any, placement: Placement) -> tuple[PreTrainedModel, dict[str, Any]]:
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, **placement.arguments()}
    # what does not fit or is missing is told by what is returned beside the model, so that it can be named
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    return loaded


def _beside(path: str, what: str) -> str:
    return (
        f"model: {path} holds an adapter beside its weights ({what}), which transformers attaches to them; give the "
        "base alone, or merge that adapter into it first"
    )


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model at ``path``, or in its GGUF file.

    Raises:
        UnsupportedModelError: It cannot be loaded.
    """
    gguf_file, path = gguf_file_of(path), place_of(path)
    with readable("tokenizer", _shown(path, gguf_file)):
        if gguf_file is not None:
            return load_gguf_tokenizer(path, gguf_file)
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def companions(path: str) -> list[tuple[Path, str]]:
    """What a model needs beside its weights, configuration and tokenizer: each file, and its name in the folder.

    Args:
        path: As for `load_model`.
    """
    place = Path(place_of(path))
    if not place.is_dir():
        # what is not there the Hub does not have
        place = Path(snapshot_download(path, allow_patterns=list(_COMPANIONS)))
    found = {file for pattern in _COMPANIONS for file in place.glob(pattern) if file.is_file()}
    return [(file, file.relative_to(place).as_posix()) for file in sorted(found)]


def serve_dtype(path: str, given: str) -> str | None:
    """The dtype in which a model will be served: the one given, or with 'auto' the one that its files are stored in.

    Returns:
        None where the files do not say it.

    Raises:
        UnsupportedModelError: ``given`` is unknown, or the configuration cannot be read.
    """
    if given != "auto":
        if given not in DTYPES:
            raise UnsupportedModelError(f"serve_dtype: {given!r} is not one of {', '.join(DTYPES)}")
        return given
    gguf_file, place = gguf_file_of(path), place_of(path)
    with readable("model", _shown(place, gguf_file)):
        config = AutoConfig.from_pretrained(place, gguf_file=gguf_file, trust_remote_code=False)
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    name = str(stored).removeprefix("torch.")
    return name if name in SERVE_DTYPES else None


def resumed(
    history: Path, model: str, dtype: str, placement: Placement = ANYWHERE, author: str | None = None
) -> EditSession:
    """A session that goes on with a history on the model at ``model``, to undo, tune or save."""
    base = load_model(model, dtype, placement)
    return EditSession.resume(history, base, load_tokenizer(model), monitor=False, author=author)


def require_dtype(dtype: str) -> None:
    """Raise UnsupportedModelError for a dtype that is unknown."""
    if dtype not in DTYPES:
        raise UnsupportedModelError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")


def load_adapter(model: PreTrainedModel, path: Path, *, strict_base: bool = True) -> PeftModel:
    """``model`` with the PRUNE_EDIT adapter of folder ``path``.

    Args:
        model: The base.
        path: Folder of the adapter, or user/name[@revision] on the Hub.
        strict_base: Refuse one that was made for other weights; off warns.

    Raises:
        AdapterError: The folder holds no whole adapter, or one that does not fit the model.
        HubError: The repository cannot be fetched.
    """
    path = adapter_folder(path)
    if not (path / "adapter_config.json").is_file():
        raise AdapterError(f"adapter: {path} holds no adapter_config.json")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise AdapterError(f"adapter: {path / 'adapter_config.json'} must hold a JSON object")
        peft_type = config.get("peft_type")
        if peft_type != "PRUNE_EDIT":
            raise AdapterError(f"adapter: {path} is of type {peft_type}, PRUNE_EDIT is accepted")
        if not (path / "adapter_model.safetensors").is_file():
            raise AdapterError(f"adapter: {path} holds no adapter_model.safetensors")
        return PeftModel.from_pretrained(model, str(path), strict_base=strict_base)
    except AdapterError as error:
        raise AdapterError(f"{error} ({path})" if str(path) not in str(error) else str(error)) from None
    except (SafetensorError, RecursionError, ValueError, KeyError) as error:
        raise AdapterError(f"adapter: {path} cannot be loaded: {first_line(error)}") from None


def tuner_of(edited: PeftModel) -> PruneEditModel:
    """The tuner of a model that `load_adapter` gave."""
    return cast(PruneEditModel, edited.base_model)  # the only kind of adapter that it loads


def open_checkpoint(given: str) -> Checkpoint:
    """A checkpoint's folder or file; what is no path is a Hub name, whose weights are fetched.

    Raises:
        CheckpointError: It is neither, or cannot be fetched or read.
    """
    if Path(given).exists() and given:
        return Checkpoint.open(given)
    own = own_model_path(given)
    if own is not None:
        return Checkpoint.open(own, given)
    if not HUB_NAME.fullmatch(given):
        raise CheckpointError(f"checkpoint: {given!r} does not exist")
    try:
        fetched = snapshot_download(given, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"])
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise CheckpointError(f"checkpoint: {given} is no folder here and cannot be fetched: {reason}") from None
    return Checkpoint.open(fetched, given)


def load_abilities(paths: Sequence[Path], items: int, ask: str = PLAIN) -> dict[str, Ability]:
    """General abilities by name, at most so many items of each; two files of one kind are told apart by file name.

    Raises:
        ValueError: ``items`` is below 1, or ``ask`` is neither "plain" nor "chat".
    """
    require_items(items)
    require_ability_ask(ask, "ability_ask")
    if ask != PLAIN and not paths:
        raise ValueError(f"ability_ask: {ask}: there are no abilities to ask; give --abilities")
    found: dict[str, Ability] = {}
    for path in paths:
        ability = load_ability(path, limit=items, ask=ask)
        name, place = ability.name if ability.name not in found else path.stem, 1
        while name in found:
            place += 1
            name = f"{path.stem}-{place}"
        found[name] = ability
    return found


def require_items(items: int, option: str = "ability_items") -> None:
    """Raise ValueError where less than one item is asked for."""
    if items < 1:
        raise ValueError(f"{option}: {items} must be at least 1")


def print_json(content: dict[str, Any]) -> None:
    """One JSON document on standard output, and nothing else there; NaN and infinity, unknown to JSON, become null."""
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    # what would act on a terminal, and half of a character, in JSON's own escapes
    print(_ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def finite(content: Any) -> Any:
    """The content with null for NaN and infinity, which JSON does not know."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
