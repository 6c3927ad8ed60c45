"""`peft-prune audit`: checkpoints that were edited or fine-tuned by any tool, against their base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..outputs import require_outputs
from .options import JsonOutput
from .plain import close_with, plain, say
from .progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from ..audit import Audit, CheckpointAudit, Extraction


def audit(
    base: Annotated[str, typer.Option(help="The model from before: a folder, a safetensors file or a Hub name.")],
    edited: Annotated[
        list[str], typer.Option(help="The checkpoints from after, one or several, in the order of the series.")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write; one that exists is replaced.")] = Path("audit.html"),
    only: Annotated[
        Optional[str], typer.Option(help="Regular expression: compare only tensors whose name it matches.")
    ] = None,
    max_growth: Annotated[
        Optional[float], typer.Option(help="Growth of the condition number to judge the last checkpoint by.")
    ] = None,
    extract_to: Annotated[
        Optional[Path], typer.Option("--extract", help="Folder for an adapter of the last checkpoint's difference.")
    ] = None,
    rank: Annotated[Optional[int], typer.Option(help="With --extract: most directions of a matrix.")] = None,
    energy: Annotated[
        Optional[float], typer.Option(help="With --extract: share of the difference's energy to keep, such as 0.99.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="With --extract: replace an existing folder.")] = False,
    json_output: JsonOutput = False,
) -> None:
    """Compare edited checkpoints with their base, shard by shard, and write a report."""
    from rich.console import Console

    from ..audit import Rule, extract, require_apart
    from ..audit import audit as audit_checkpoints
    from ..reporting import audit_report, require_report, write_report
    from ..reporting.limits import limits_of
    from .models import open_checkpoint, print_json

    rule = Rule(rank, energy)
    if extract_to is None and (rank is not None or energy is not None):
        raise ValueError("extract: --rank and --energy need --extract DIR")
    limits_of({}, max_growth)
    require_report(out)
    folders = {} if extract_to is None else {"extract": extract_to}
    require_outputs(folders=folders, files={"out": out}, overwrite=overwrite)
    before, after = open_checkpoint(base), [open_checkpoint(one) for one in edited]
    if extract_to is not None:
        require_apart(extract_to, [before, *after])
    made = None
    with progress_bar(quiet=json_output) as progress:
        found = audit_checkpoints(
            before, after, only=only, progress=lambda name, done, total: progress(f"Comparing {name}", done, total)
        )
        # before the extraction, which may find that there is nothing to extract
        write_report(audit_report(found, max_growth=max_growth), out)
        if extract_to is not None:
            made = extract(
                before,
                after[-1],
                found.series[-1],
                extract_to,
                rule=rule,
                overwrite=overwrite,
                progress=lambda name, done, total: progress(f"Extracting {name}", done, total),
            )
            write_report(audit_report(found, max_growth=max_growth, extraction=made), out)
    if json_output:
        extraction = None if made is None else made.to_json()
        print_json({**found.to_json(), "extraction": extraction, "report": str(out)})
        return
    Console().print(_table(found))
    lines = [*found.notes, *_rest(found.series[-1]), *([] if made is None else [_extracted(made)]), f"Report in {out}"]
    for line in lines[:-1]:
        say(line)
    close_with(lines[-1])


def _table(found: Audit, most: int = 20) -> Table:
    from rich.table import Table

    from ..reporting.words import count, number

    last = found.series[-1]
    matrices = count(len(last.matrices), "matrix differs", "matrices differ")
    table = Table(title=plain(f"{last.given}: {matrices}, {last.unchanged:,} tensors do not"))
    for column in ("matrix", "rank", "effective rank", "‖ΔW‖₂ / σmax(W₀)", "κ before", "κ after", "growth"):
        table.add_column(column, justify="left" if column == "matrix" else "right", overflow="fold")
    shown = sorted(last.matrices.values(), key=lambda one: (one.growth != one.growth, -one.growth))
    for one in shown[:most]:
        values = (one.effective_rank, one.relative_norm, one.condition_number_base, one.condition_number, one.growth)
        table.add_row(plain(one.name), str(one.rank), *(number(value) for value in values))
    if len(shown) > most:
        table.add_row(f"and {len(shown) - most} more, in the report")
    return table


def _rest(last: CheckpointAudit) -> list[str]:
    kinds = {
        "other tensors differ": last.others,
        "tensors hold NaN or Inf": last.not_finite,
        "tensors have another shape and were not compared": last.reshaped,
        "masks and position tables were ignored": last.ignored,
    }
    return [f"{len(names)} {what}, such as {next(iter(names))}" for what, names in kinds.items() if names]


def _extracted(made: Extraction) -> str:
    from ..reporting.words import count, percent

    error = "" if made.error is None else f": error {percent(made.error)} of the difference"
    left = f"; {len(made.left_out)} tensors left out, such as {next(iter(made.left_out))}" if made.left_out else ""
    base = "" if made.knows_base else "; it does not know its base, whose names transformers changes when it loads them"
    layers = count(len(made.ranks), "layer")
    return f"Adapter of {layers}, rank up to {max(made.ranks.values())}, in {made.folder}{error}{left}{base}"
