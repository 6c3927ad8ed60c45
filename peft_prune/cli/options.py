"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HistoryFile = Annotated[Path, typer.Argument(help="SQLite file of a session.", metavar="HISTORY")]
BaseModel = Annotated[str, typer.Option(help="The unedited base model: a folder or a Hub name.")]
Dtype = Annotated[str, typer.Option(help="Dtype to load the model in; 'auto' keeps its own.")]
