"""``model.save_pretrained`` of PEFT, and of transformers, with a PRUNE_EDIT adapter: its card, its basis, its LoRA.

Neither asks a method how its folder is made, so theirs are wrapped; models without such an adapter go straight to them.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from transformers import PreTrainedModel

from ..cards import own_text, read_card
from ..errors import AdapterError
from ..models.naming import public_name
from ..publishing import publisher
from .card import SECTION, write_card
from .card_layers import SECTION as LAYERS
from .card_layers import base_figures, write_layers
from .config import PruneEditConfig
from .layer import layers_of
from .stored import LORA, read_config, store_in_own_basis, store_lora, updates_of

_PLAIN = "_peft_prune_plain"


def extend_saving() -> None:
    """Wrap ``PeftModel.save_pretrained``; calling it again has no further effect."""
    plain = getattr(PeftModel.save_pretrained, _PLAIN, PeftModel.save_pretrained)

    @functools.wraps(plain)
    def save_pretrained(
        self: PeftModel, save_directory: str, *args: Any, also_lora: bool = False, **kwargs: Any
    ) -> None:
        given = inspect.signature(plain).bind(self, save_directory, *args, **kwargs)
        given.apply_defaults()
        chosen = given.arguments["selected_adapters"] or list(self.peft_config)
        own = [name for name in chosen if isinstance(self.peft_config.get(name), PruneEditConfig)]
        if also_lora and not own:
            raise AdapterError("also_lora: goes with PRUNE_EDIT adapters, and none is saved here")
        if not own or not given.arguments["is_main_process"]:
            plain(self, save_directory, *args, **kwargs)
            return
        card = Path(save_directory) / "README.md"
        before = card.read_bytes() if card.is_file() else None
        if before is not None:
            _readable(card)
        plain(self, save_directory, *args, **kwargs)
        _restore(card, before)
        for name in own:
            folder = Path(save_directory) / ("" if name == "default" else name)
            # a trainer hands the values over: they belong to the state of its optimizer, and come back with that
            own_basis = "state_dict" not in kwargs and _store(name, folder, given.arguments["safe_serialization"])
            if also_lora:
                store_lora(folder, fan_in_fan_out=any(layer.fan_in_fan_out for _, layer in layers_of(self, name)))
            sections = (SECTION, LAYERS) if name == "default" else (f"{SECTION} {name}", f"{LAYERS} {name}")
            _write_cards(card, folder, self, name, *sections, own_basis)

    setattr(save_pretrained, _PLAIN, plain)
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


def extend_transformers_saving() -> None:
    """Wrap ``PreTrainedModel.save_pretrained``, which saves an attached adapter; again, it has no further effect."""
    plain = getattr(PreTrainedModel.save_pretrained, _PLAIN, PreTrainedModel.save_pretrained)

    @functools.wraps(plain)
    def save_pretrained(self: PreTrainedModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(plain).bind(self, save_directory, *args, **kwargs)
        given.apply_defaults()
        name = _attached(self)
        if name is None or not given.arguments["is_main_process"]:
            plain(self, save_directory, *args, **kwargs)
            return
        folder = Path(save_directory)
        if (folder / "README.md").is_file():
            _readable(folder / "README.md")
        plain(self, save_directory, *args, **kwargs)
        # as above, a trainer hands the values over
        own_basis = "state_dict" not in kwargs and _store(name, folder, True)
        _write_cards(folder / "README.md", folder, self, name, SECTION, LAYERS, own_basis)

    setattr(save_pretrained, _PLAIN, plain)
    setattr(PreTrainedModel, "save_pretrained", save_pretrained)  # noqa: B010 - a checker refuses the plain form


def extend_push_to_hub() -> None:
    """Wrap ``PeftModel.push_to_hub``, which would put a card of its own over ours; again, it has no further effect."""
    plain = getattr(PeftModel.push_to_hub, _PLAIN, PeftModel.push_to_hub)

    @functools.wraps(plain)
    def push_to_hub(self: PeftModel, repo_id: str, *args: Any, **options: Any) -> Any:
        if not any(isinstance(config, PruneEditConfig) for config in self.peft_config.values()):
            return plain(self, repo_id, *args, **options)
        return publisher("push_model")(self, repo_id, *args, **options)

    setattr(push_to_hub, _PLAIN, plain)
    setattr(PeftModel, "push_to_hub", push_to_hub)  # noqa: B010 - a checker refuses the plain form


def _write_cards(
    card: Path, folder: Path, model: Any, adapter_name: str, adapter: str, layers: str, own_basis: bool
) -> None:
    """Write the sections of one adapter, under these names, as its folder and the model have it."""
    write_card(
        card,
        read_config(folder),
        section=adapter,
        base=_base_name(model),
        lora=(folder / LORA).is_dir(),
        own_basis=own_basis,
        licence=_licence_of_base(model),
    )
    if own_basis:
        write_layers(card, updates_of(folder), base_figures(layers_of(model, adapter_name), adapter_name), layers)


def _attached(model: PreTrainedModel) -> str | None:
    """The PRUNE_EDIT adapter that transformers would save with this model, if that is one."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return None
    active = model.active_adapters()
    if len(active) != 1 or not isinstance(model.peft_config.get(active[0]), PruneEditConfig):
        return None
    return str(active[0])


def _base_name(model: Any) -> str | None:
    return public_name(_base_place(model))


def _base_place(model: Any) -> str | None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(getattr(base, "config", None), "_name_or_path", None) or getattr(base, "name_or_path", None)


def _licence_of_base(model: Any) -> str | None:
    """The licence that the base's own card names, where that card is on this machine."""
    place = _base_place(model)
    if not place:
        return None
    card: Any = Path(place) / "README.md"
    if not card.is_file() and not Path(place).exists() and place.count("/") == 1:
        card = try_to_load_from_cache(place, "README.md")
    if not isinstance(card, (str, Path)) or not Path(card).is_file():
        return None
    try:
        found = read_card(Path(card)).data.get("license")
    except ValueError:
        return None  # another's card, whose metadata nobody can read, names none
    return found if isinstance(found, str) else None


def _store(name: str, folder: Path, safe: bool) -> bool:
    """Bring the file into the basis of its own; whether it was."""
    if not read_config(folder).get("edits"):
        return False  # trained factors have no rows of edits, and go on being trained
    if safe:
        store_in_own_basis(folder)
    else:
        warnings.warn(
            f"adapter {name!r}: without safe_serialization the factors are saved as they are in memory, where each row "
            "may belong to one edit"
        )
    return safe


def _readable(card: Path) -> None:
    try:
        own_text(card)
    except ValueError as error:
        raise AdapterError(str(error)) from None


def _restore(card: Path, before: bytes | None) -> None:
    """What was there before PEFT wrote its own card over it."""
    if before is None:
        card.unlink(missing_ok=True)
    else:
        card.write_bytes(before)
