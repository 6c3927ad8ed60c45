"""`peft-prune export`: write an adapter as a plain LoRA that servers load without this package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..outputs import require_outputs
from .options import GgufFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_optional_gguf
from .plain import close_with, say
from .requested import edits_asked, lost_of, tell_lost

if TYPE_CHECKING:
    from ..export import Export


@placed
def export(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, or user/name[@revision] on the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder for the export.")],
    format: Annotated[
        str,
        typer.Option(
            help="lora (vLLM, SGLang, TGI, LoRAX, PEFT, transformers), gguf (llama.cpp, Ollama) or mlx; the last two "
            "need --base."
        ),
    ] = "lora",
    base: Annotated[
        Optional[str], typer.Option(help="The unedited base model the adapter was made for: a folder or a Hub name.")
    ] = None,
    rank: Annotated[
        Optional[int], typer.Option(help="Rank of every layer; the adapter's largest if not given. Padded with zeros.")
    ] = None,
    max_rank: Annotated[
        Optional[int],
        typer.Option(
            help="Truncate to this rank; which edits that loses is measured, with --base and --requests or --history."
        ),
    ] = None,
    requests: Annotated[Optional[Path], typer.Option(help="With --max-rank: the edit requests that were made.")] = None,
    history: Annotated[Optional[Path], typer.Option(help="With --max-rank: the history that holds them.")] = None,
    fill_layers: Annotated[
        bool, typer.Option(help="Write zero factors for the layers without edits, for TGI and LoRAX; needs --base.")
    ] = False,
    server: Annotated[
        Optional[list[str]],
        typer.Option(help="A server that must load it; repeatable. All that read the format if not given."),
    ] = None,
    gguf_file: GgufFile = None,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Write an adapter as a plain LoRA, in the form that a server loads."""
    from ..export import export_lora, lost_edits, require_format
    from .models import load_adapter, load_model, load_tokenizer, print_json

    base = in_optional_gguf(base, gguf_file, "base")
    require_format(format)
    inputs = {"adapter": adapter, "base": base, "requests": requests, "history": history}
    require_outputs(folders={"out": out}, inputs=inputs, overwrite=overwrite)
    _require_measurable(base, max_rank, requests, history)
    asked = edits_asked(requests, history)
    source = adapter if base is None else load_adapter(load_model(base, "auto", placement), adapter)
    options: dict[str, Any] = {"rank": rank, "max_rank": max_rank, "fill_layers": fill_layers, "servers": server}
    lost = None
    if base is not None and max_rank is not None:
        places = lost_edits(source, load_tokenizer(base), asked, max_rank=max_rank)
        lost = lost_of(asked, places)
    done = export_lora(source, out, format=format, overwrite=overwrite, **options)
    if json_output:
        print_json({**asdict(done), "folder": str(out), "lost": lost})
    else:
        _tell(done, lost, len(asked))


def _require_measurable(base: str | None, max_rank: int | None, requests: Path | None, history: Path | None) -> None:
    given = [name for name, value in (("--requests", requests), ("--history", history)) if value is not None]
    if max_rank is None and given:
        raise ValueError(f"{given[0][2:]}: acts together with --max-rank alone, to measure which edits it loses")
    if max_rank is not None and (base is None or not given):
        raise ValueError(
            "max_rank: to measure which edits it loses, give --base, and the edits by --requests or --history"
        )


def _tell(done: Export, lost: list[dict[str, Any]] | None, asked: int) -> None:
    applied = ", the pending restraint applied first" if done.restraint_applied else ""
    close_with(f"LoRA of rank {done.rank} for {len(done.modules)} modules in {done.folder} ({done.format}){applied}")
    for name, error in done.truncated.items():
        say(f"  {name}: truncated, ‖ΔW − truncated‖ / ‖ΔW‖ = {error:.3g}")
    tell_lost(lost, asked, "by it")
    for name, needed in done.servers.items():
        close_with(f"  {name}" + (f": {needed}" if needed else ""))
