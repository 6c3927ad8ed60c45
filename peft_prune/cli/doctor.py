"""`peft-prune doctor`: whether a model can be edited here, told before its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PeftPruneError
from .options import EditorName, JsonOutput
from .plain import say

DTYPES = ("float32", "bfloat16")
ROOM = 0.8
"""Share of the free memory that may be asked for; the rest is for what the passes of the model need."""

TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("*.tiktoken", "tekken.json"),
)
"""The forms of a tokenizer on disk."""

_NO_PART = ("dev", "docs", "notebook", "space")
"""Extras that no command needs."""


def doctor(
    model: Annotated[str, typer.Argument(help="Model: a folder, a Hub name or 'builtin'.")],
    editor: EditorName = "memit",
    json_output: JsonOutput = False,
) -> int:
    """Tell what would be edited in a model, whether it fits memory, and what is missing; loads no weights.

    The exit code is 1 where the model cannot be edited as things stand.
    """
    from ..editors import get_editor
    from .models import print_json

    get_editor(editor)  # an unknown name shows first
    found = examined(model, editor)
    if json_output:
        print_json(found)
    else:
        _print(found)
    return 0 if found["can_be_edited"] else 1


def examined(model: str, editor: str) -> dict[str, Any]:
    """What is known of a model from its configuration, the headers of its files and its tokenizer.

    Raises:
        UnsupportedModelError: There is no model of that name, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    from .loading import readable, require_sizes
    from .places import place_of

    place = place_of(model)
    with readable("model", place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        require_sizes(place, config)
    problems: list[str] = []
    tokenizer = _tokenizer(model, config, problems)
    files = _files(Path(place), problems)
    quantization = _quantization(config, problems)
    edited, parameters, layout = _layout(place, config, editor, problems)
    return {
        "model": model,
        "architecture": (getattr(config, "architectures", None) or [type(config).__name__])[0],
        "can_be_edited": not problems,
        "problems": problems,
        "editor": editor,
        "edited": edited,
        "refused": layout,
        "parameters": parameters,
        "dtype": str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
        "quantization": quantization,
        "files": files,
        "memory": _memory(parameters, edited, files, quantization),
        "tokenizer": tokenizer,
        "extras_missing": sorted(_missing_extras()),
    }


def _layout(place: str, config: Any, editor: str, problems: list[str]) -> tuple[dict[str, Any], int | None, str | None]:
    """The modules that the editor would change, the number of parameters, and which layers cannot be edited."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..editors import get_editor
    from ..models.mlp import listed, mlp_output_modules, refused_layers, shape_of
    from .loading import readable

    try:
        with readable("model", place), torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        parameters = sum(one.numel() for one in empty.parameters())
        own = get_editor(editor, model=empty)
        names = mlp_output_modules(empty, own.layers(empty), experts=own.experts)
        refused = refused_layers(empty, experts=own.experts)
    except PeftPruneError as error:
        problems.append(str(error))
        return {}, None, None
    edited = {name: {"layer": layer, "shape": shape_of(empty.get_submodule(name))} for layer, name in names.items()}
    return edited, parameters, listed(refused) or None


def _tokenizer(model: str, config: Any, problems: list[str]) -> dict[str, Any] | None:
    from .models import load_tokenizer
    from .places import place_of

    folder = Path(place_of(model))
    if folder.is_dir() and not any(found for pattern in TOKENIZERS for found in folder.glob(pattern)):
        # transformers makes up an empty one in its place
        problems.append(f"tokenizer: {folder} holds none; copy the files of the model's tokenizer beside its weights")
        return None
    try:
        tokenizer: Any = load_tokenizer(model)
    except PeftPruneError as error:
        problems.append(str(error))
        return None
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(rows, int) and len(tokenizer) > rows:
        problems.append(f"tokenizer: it has {len(tokenizer)} tokens, the model's vocabulary {rows}; they do not belong")
    return {
        "kind": type(tokenizer).__name__,
        "tokens": len(tokenizer),
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "chat_template": bool(getattr(tokenizer, "chat_template", None)),
    }


def _files(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """Bytes and dtypes of the weights, from the headers of their files; None for a model that is not here."""
    from ..audit import Checkpoint
    from ..errors import CheckpointError

    if not folder.is_dir():
        return None
    if (folder / "adapter_config.json").is_file():
        problems.append(f"model: {folder} holds an adapter beside its weights; give the base alone")
    if not list(folder.glob("*.safetensors")):
        others = sorted(path.name for path in folder.glob("*.bin")) or ["none"]
        problems.append(f"model: {folder} holds no weights as safetensors; other files of weights: {', '.join(others)}")
        return None
    dtypes: dict[str, int] = {}
    try:
        tensors = Checkpoint.open(folder).tensors
        for one in tensors.values():
            dtypes[one.kind] = dtypes.get(one.kind, 0) + 1
        size = sum(file.stat().st_size for file in {one.file for one in tensors.values()})
    except (CheckpointError, OSError) as error:
        problems.append(str(error))
        return None
    return {"bytes": size, "tensors": len(tensors), "dtypes": dtypes}


def _quantization(config: Any, problems: list[str]) -> str | None:
    from importlib.util import find_spec

    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    known = settings if isinstance(settings, Mapping) else settings.to_dict()
    method = str(known.get("quant_method", "unknown")).rpartition(".")[2].lower()
    if method == "bitsandbytes" and find_spec("bitsandbytes") is None:
        problems.append("quantization: bitsandbytes is not installed; pip install 'peft-prune[quantization]'")
    return method


def _memory(
    parameters: int | None, edited: Mapping[str, Any], files: Mapping[str, Any] | None, quantization: str | None
) -> dict[str, Any]:
    """Bytes that editing needs at least, by dtype, and what is free."""
    free = dict(_free())
    if parameters is None:
        return {"free": free, "needed": {}}
    moments = sum(4 * one["shape"][1] ** 2 for one in edited.values())
    weights = {"float32": 4 * parameters, "bfloat16": 2 * parameters}
    if quantization is not None and files is not None:
        weights = {"as stored": files["bytes"]}
    needed = {
        dtype: {
            "weights": count,
            "second_moments": moments,
            "fits": {place: count + moments <= ROOM * room for place, room in free.items()},
        }
        for dtype, count in weights.items()
    }
    return {"free": free, "needed": needed}


def _free() -> Iterator[tuple[str, int]]:
    """Free bytes of this machine's memory and of the accelerator, where there is one."""
    import psutil
    import torch

    yield "memory", int(psutil.virtual_memory().available)
    if torch.accelerator.is_available():
        kind: Any = torch.accelerator.current_accelerator()
        yield str(kind), int(torch.accelerator.get_memory_info()[0])


def _missing_extras() -> Iterator[str]:
    """Extras of this package of which a package is not installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires("peft-prune") or ()]
        extras = metadata.metadata("peft-prune").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # run from a folder of sources
        return
    installed = {one.name.lower().replace("_", "-") for one in metadata.distributions() if one.name}
    for extra in extras:
        own = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        names = {one.name.lower().replace("_", "-") for one in own if not one.marker or "extra" in str(one.marker)}
        if extra not in _NO_PART and not names <= installed:
            yield extra


def _print(found: Mapping[str, Any]) -> None:
    say(f"{found['model']}: {found['architecture']}, {_parameters(found)}")
    for line in (*_edited_lines(found), *_memory_lines(found["memory"]), *_tokenizer_lines(found["tokenizer"])):
        say(line)
    if found["quantization"] is not None:
        say(f"quantization  {found['quantization']}")
    if found["extras_missing"]:
        say(f"extras        not installed: {', '.join(f'peft-prune[{one}]' for one in found['extras_missing'])}")
    for problem in found["problems"]:
        say(f"problem       {problem}")
    say("It can be edited." if found["can_be_edited"] else "It cannot be edited as things stand.")


def _parameters(found: Mapping[str, Any]) -> str:
    count = "parameters unknown" if found["parameters"] is None else f"{found['parameters']:,} parameters"
    return f"{count}, {found['dtype']}"


def _edited_lines(found: Mapping[str, Any]) -> Iterator[str]:
    for name, one in found["edited"].items():
        yield f"edits         {name}, {' × '.join(map(str, one['shape']))} ({found['editor']})"
    if found["refused"]:
        yield f"leaves out    {found['refused']}"


def _memory_lines(memory: Mapping[str, Any]) -> Iterator[str]:
    free = memory["free"]
    for dtype, one in memory["needed"].items():
        fits = [
            f"{'fits' if ok else 'does not fit'} {place} ({_size(free[place])} free)"
            for place, ok in one["fits"].items()
        ]
        total = one["weights"] + one["second_moments"]
        yield f"{dtype:<14}needs at least {_size(total)}: {', '.join(fits)}"


def _tokenizer_lines(tokenizer: Mapping[str, Any] | None) -> Iterator[str]:
    if tokenizer is not None:
        begins = "no BOS" if tokenizer["bos"] is None else f"BOS {tokenizer['bos']!r}"
        yield f"tokenizer     {tokenizer['kind']}, {tokenizer['tokens']:,} tokens, {begins}"
        yield f"chat template {'yes' if tokenizer['chat_template'] else 'none; --chat does not apply'}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
