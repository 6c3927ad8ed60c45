"""What a saved adapter's card says of it: what it is, how it is loaded, how it was restrained, what it gives away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import peft

from ..cards import read_card, write_section
from ..errors import AdapterError
from ..models.fingerprint import short_form
from ..models.naming import public_name

SECTION = "adapter"
TAGS = ("peft", "prune-edit", "model-editing")

_OWN_BASIS = """\
The factors are stored in a basis that follows from ΔW alone: no row of them belongs to one of several edits, and
neither the order of the edits nor their facts are in the files."""

_AS_LEFT = """\
The factors are stored as an editor or a trainer left them: a row may belong to one edit. `peft-prune push` brings them
into a basis that follows from ΔW alone before anything is published."""

_RECOVERABLE = """\
**The edits can still be recovered from ΔW itself**: it is of low rank, and its row space holds what the edited subjects
look like inside the model, so that whoever guesses a subject can test the guess
([arXiv 2602.10134](https://arxiv.org/abs/2602.10134)). Share an adapter only where its edits may become known."""


def write_card(
    path: Path,
    config: Mapping[str, Any],
    *,
    section: str = SECTION,
    base: str | None = None,
    lora: bool = False,
    own_basis: bool = True,
    licence: str | None = None,
) -> None:
    """Write the adapter's section into a card, which is made where there is none.

    Args:
        path: The card's file.
        config: The saved configuration.
        section: Name of the section; a card beside several adapters has one for each.
        base: What the base is called where the configuration does not name it.
        lora: Whether the same update stands beside it as a LoRA, in ``lora/``.
        own_basis: Whether the factors stand in the basis that follows from ΔW alone.
        licence: Of the base, where it is known.

    Raises:
        AdapterError: The metadata of a card that is there cannot be read.
    """
    name = config.get("base_model_name_or_path") or base
    tags = [*TAGS, *([f"base_model:adapter:{name}"] if name else [])]
    causal = config.get("task_type") == "CAUSAL_LM"
    try:
        known = read_card(path).data.get("pipeline_tag")
        pipeline = "text-generation" if causal and known is None else None
        write_section(
            path,
            section,
            adapter_text(config, name, lora=lora, own_basis=own_basis, licence=licence),
            library_name="peft",
            base_model=name,
            pipeline_tag=pipeline,
            tags=tags,
        )
    except ValueError as error:
        raise AdapterError(str(error)) from None


def adapter_text(
    config: Mapping[str, Any], base: str | None, *, lora: bool, own_basis: bool, licence: str | None = None
) -> str:
    """The section's Markdown."""
    made_for = config.get("base_fingerprint")
    edits = config.get("edits") or 0
    weights = f" (weights `{short_form(made_for)}`)" if made_for else ""
    return f"""\
# {edits or "No"} edit{"" if edits == 1 else "s"} of {base or "a language model"}

{_first_lines(lora)}

A low-rank adapter (ΔW = B·A) of method PRUNE_EDIT for **{base or "a base that was not loaded by a name"}**{weights}.
It holds {edits} edit{"" if edits == 1 else "s"} of what the model says, made with `peft_prune`, which keeps their sum
restrained (PRUNE, [arXiv 2405.16821](https://arxiv.org/abs/2405.16821)).

## How to load it

With the package (`pip install peft-prune`):

```python
{_loading(base)}
model = PeftModel.from_pretrained(base, "THIS_FOLDER_OR_REPOSITORY")
```

{_without(lora)}

## What it is

- restraint: {_restraint(config)}
- edits: {edits}
- consolidation: {_consolidation(config)}
- base: {base or "not named"}{weights}
- licence of the base: {licence or "not named on this machine; see the base's own card"}
- PEFT {peft.__version__}

### What this adapter gives away

{_OWN_BASIS if own_basis else _AS_LEFT}

{_RECOVERABLE}"""


def _loading(base: str | None) -> str:
    """How the base is loaded; models of this package by their names."""
    own = {"builtin": "load_builtin_model()", **{name: f'load_real_model("{name}")' for name in ("smollm2", "gemma3")}}
    if base in own:
        call = own[base]
        return (
            f"from peft import PeftModel\nfrom peft_prune import {call.partition('(')[0]}\n\nbase, tokenizer = {call}"
        )
    return (
        "import peft_prune  # makes the method known to PEFT\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base or "BASE"}")'
    )


def _first_lines(lora: bool) -> str:
    if lora:
        return (
            "> **Without `peft-prune`** take the same update as a LoRA, in the folder `lora/`; the files beside this "
            "card need `import peft_prune` first, otherwise PEFT ends in `KeyError: 'PRUNE_EDIT'`."
        )
    return (
        "> **`pip install peft-prune` and `import peft_prune` before loading it**: PEFT finds no method by a plugin, "
        "and without the import it ends in `KeyError: 'PRUNE_EDIT'`."
    )


def _without(lora: bool) -> str:
    if lora:
        return """\
Without it:

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER_OR_REPOSITORY", subfolder="lora")
```"""
    return """\
Without it, the adapter is first exported as a plain LoRA, where the package is at hand:

```
peft-prune export THIS_FOLDER_OR_REPOSITORY --format lora --out lora
```"""


def _restraint(config: Mapping[str, Any]) -> str:
    word = config.get("restraint")
    if word == "none":
        return "none"
    alpha = f" with α = {config.get('alpha')}" if word == "log" else ""
    own = ", some layers by their own" if config.get("restraint_pattern") else ""
    state = "applied to these factors" if config.get("restrained") else "not applied to these factors"
    return f"{word}{alpha}{own}, {state}"


def _consolidation(config: Mapping[str, Any]) -> str:
    """Whether the factors are those that edits left, or were trained for all of them together."""
    count, edits = config.get("consolidated") or 0, config.get("edits") or 0
    if not count:
        return "none; the factors are those that the edits and the restraint left"
    rest = f", the other {edits - count} were added afterwards" if edits > count else ""
    whose = "the edit was" if edits == count == 1 else f"all {count} edits were" if edits <= count else f"{count} were"
    return f"{whose} trained together within the restraint's singular values{rest}"


def hide_places(card: Path, places: Iterable[str], name: str) -> None:
    """Put a base's public name in the place of its paths, where ``card`` is a card that PEFT has written."""
    paths = sorted((place for place in places if public_name(place) != place), key=len, reverse=True)
    if not paths or not card.is_file():
        return
    text = found = card.read_text(encoding="utf-8")
    if "library_name: peft" not in text:
        return
    for path in paths:
        text = text.replace(path, name)
    if text != found:
        card.write_text(text, encoding="utf-8")
