"""`peft-prune compose`: one adapter from several."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..errors import AdapterError
from ..folders import recover, whole_folder
from ..outputs import require_outputs
from .options import Dtype, GgufFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with, say


@placed
def compose(
    adapters: Annotated[
        list[str],
        typer.Argument(help="Folders of adapters, files of histories, or names on the Hub.", metavar="ADAPTER..."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the new adapter.")],
    model: Annotated[
        Optional[str],
        typer.Option(help="The unedited base model: a folder or a Hub name; what the first adapter names if left out."),
    ] = None,
    weights: Annotated[
        Optional[str], typer.Option(help="One number for each, as in 1,-1, which subtracts; 1 each if left out.")
    ] = None,
    restraint: Annotated[
        Optional[str],
        typer.Option(help="Restraint of the sum, such as log:1.2; needed where the adapters' own differ."),
    ] = None,
    on_conflict: Annotated[
        str, typer.Option(help="Histories that give one subject different targets: refuse, or keep both.")
    ] = "refuse",
    gguf_file: GgufFile = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Add or subtract adapters of one base: raw updates are added where they are known, and restrained once."""
    from ..session import compose as composed
    from ..session.composition import require_options
    from .models import load_model, print_json

    numbers = _numbers(weights, len(adapters))
    require_options(restraint, on_conflict)
    sources = [source_of(place) for place in adapters]
    base = in_gguf(base_of(sources[0]) if model is None else model, gguf_file)
    require_outputs(folders={"out": out}, inputs={"adapter": sources, "model": base}, overwrite=overwrite)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        edited = composed(
            sources, numbers, model=load_model(base, dtype, placement), restraint=restraint, on_conflict=on_conflict
        )
        with whole_folder(out, overwrite=overwrite) as folder:
            edited.save_pretrained(str(folder))
    notes = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    kept = [str(one) for one in _conflicts(sources, numbers)]
    layers = _figures(edited)
    if json_output:
        document = {"adapter": str(out), "adapters": adapters, "weights": numbers, "conflicts": kept, "warnings": notes}
        print_json({**document, "layers": layers})
        return
    for note in notes:
        say(f"warning: {note}", err=True)
    for conflict in kept:
        say(f"kept in spite of a conflict: {conflict}")
    for name, figures in layers.items():
        close_with(
            f"{name}: rank {figures['rank']}, ‖ΔW‖₂ {figures['delta_spectral_norm']:.3g} "
            f"(σmax(W₀) {figures['sigma_max_base']:.3g})"
        )
    close_with(f"Composed adapter in {out}")


def _figures(edited: Any) -> dict[str, dict[str, Any]]:
    from .models import tuner_of

    return {
        name: {
            "rank": layer.rank("default"),
            "sigma_max_base": layer.sigma_max_base(),
            "delta_spectral_norm": layer.effective_update("default").spectral_norm(),
        }
        for name, layer in tuner_of(edited).edited_layers()
    }


def source_of(place: str) -> str:
    """Where an adapter or a history stands on this machine; ``user/name[@revision]`` is fetched from the Hub.

    Raises:
        AdapterError: A path holds neither an adapter nor a history.
        HubError: The repository cannot be fetched, or holds no adapter.
    """
    from ..hub import HubName, adapter_folder

    path = Path(place)
    if not path.exists():
        recover(path)
    if not place:
        raise AdapterError("adapter: '' is no adapter; a folder, a history or a Hub name is accepted")
    if path.is_dir() and not (path / "adapter_config.json").is_file():
        raise AdapterError(f"adapter: {place} holds no adapter_config.json")
    if not path.exists() and HubName.of(place) is None:
        raise AdapterError(f"adapter: {place!r} does not exist; a folder, a history or a Hub name is accepted")
    return str(adapter_folder(place))


def _numbers(weights: str | None, count: int) -> list[float]:
    from ..tuner.composition import require_weights

    found: list[float] = [1.0] * count if weights is None else []
    for part in [] if weights is None else weights.split(","):
        try:
            found.append(float(part))
        except ValueError:
            raise ValueError(f"weights: {part.strip()!r} is no number; one for each adapter, as in 1,-1") from None
    require_weights(found, count)
    return found


def base_of(place: str) -> str:
    """The base that an adapter's configuration or a history names."""
    from ..session import History
    from ..tuner.hotswap import read_adapter

    if Path(place).is_file():
        with History.read(place) as history:
            name = history.meta["model"]
    else:
        name = read_adapter(place)[0].base_model_name_or_path
    if not name:
        raise ValueError(f"model: {place} names no base; give it with --model")
    return str(name)


def _conflicts(adapters: list[str], weights: list[float]) -> list[Any]:
    from ..session import History
    from ..session.composition import conflicts

    places = [place for place, weight in zip(adapters, weights, strict=True) if weight > 0 and Path(place).is_file()]
    histories = [History.read(place) for place in places]
    try:
        return conflicts(histories)
    finally:
        for history in histories:
            history.close()
