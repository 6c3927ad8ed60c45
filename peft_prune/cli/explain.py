"""`edit --explain`: what was chosen for this model and these requests, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .plain import say

if TYPE_CHECKING:
    from ..editors import Editor
    from ..tuner import PruneEditConfig


_SEARCHED = "; the editor searches plainly, what is said in chat comes by consolidation"


def explain(
    editor: Editor,
    model: Any,
    config: PruneEditConfig,
    *,
    requests: int,
    batch_size: int,
    moments: str,
    ask: str | None,
    given_layers: bool,
    serve_dtype: str | None,
) -> None:
    """Print what an edit is about to do, a line for each choice with its reason, on standard error."""
    from ..editors.presets import known_model, preset

    known, published = known_model(model), preset(editor.name, model)
    source = (
        f"published for {known} ({published.source})"
        if published is not None
        else "settled on models that nothing was published for (docs: Editors)"
    )
    layers = ", ".join(str(layer) for layer in editor.admitted(model))
    depth = model.config.get_text_config().num_hidden_layers
    reason = "as given" if given_layers else source if published else f"by the editor's rule for {depth} layers"
    batches = -(-requests // batch_size)
    rows = [
        ("editor", f"{editor.pretty_name}, {editor.paper} ({editor.year})"),
        ("settings", f"{source}; peft-prune editors {editor.name} lists them"),
        ("layers", f"{layers}: {reason}; peft-prune locate looks where the model keeps its facts"),
        ("batches", f"{batches} of at most {batch_size}: computed together, each on what the batches before it left"),
        ("second moment", moments),
        ("asked", _asked(ask) + (_SEARCHED if ask == "both" and config.consolidates(requests) else "")),
        ("restraint", _restraint(config)),
        ("consolidated", _consolidation(config, requests)),
        ("verified", f"by greedy answer, served in {serve_dtype or 'the dtype that the model has'}"),
    ]
    for name, text in rows:
        say(f"{name}: {text}", err=True)


def _consolidation(config: PruneEditConfig, requests: int) -> str:
    from ..tuner.config import CONSOLIDATED_FROM

    if not config.consolidates(requests):
        of_many = f"that is for {CONSOLIDATED_FROM} restrained edits or more"
        return f"no, {'as told' if config.consolidate == 'demand' else of_many}; peft-prune consolidate does it later"
    often = f"every {config.consolidate_every} edits and " if config.consolidate == "every" else ""
    read = (
        "all edits" if config.consolidate_window is None else f"new edits and {config.consolidate_window} of the others"
    )
    trained = f"{read} are trained together against the base's own answers, within what the restraint left"
    return f"{often}before saving: {trained}"


def _asked(ask: str | None) -> str:
    if ask is None:
        return "plainly: the model has no chat template"
    return {
        "plain": "plainly, as told",
        "chat": "in chat, as told",
        "both": "plainly and in chat: the model has a chat template (--ask says otherwise)",
    }[ask]


def _restraint(config: PruneEditConfig) -> str:
    if config.restraint == "none":
        return "none, as told: nothing bounds what the edits add up to"
    name = f"log with α = {config.alpha}" if config.restraint == "log" else config.restraint
    when = {
        "every": f"every {config.restrain_every} edits, so that later ones make up for what it takes",
        "merge": "once, when the adapter is saved",
        "threshold": f"when a condition number has grown {config.max_condition_growth} times, or past another limit",
        "compounding": "upon itself at every edit, for comparison only",
        "compensated": f"every {config.restrain_every} edits on what came since, which the next edit makes up for",
    }[config.restrain_on]
    if config.restraint_function.needs_weight:
        return f"{name}, {when}; it takes directions of the base weight out of what the edits add up to"
    return f"{name}, {when}; it acts on what exceeds the base's largest singular value (Ma et al. 2025)"
