"""A module's folder as a Space of the Hub: the module itself, and what is written from what it says of itself."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MissingPackageError
from ..evaluation import KINDS
from ..folders import whole_folder
from .folders import metric_path

if TYPE_CHECKING:
    from .base import EditMetric

REQUIREMENTS = "peft-prune[evaluation]\n"

_APP = '''\
"""The module as a Space: a form to try it in."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load(str(Path(__file__).parent / "{name}.py")))
'''

_README = """\
---
title: {title}
tags:
- evaluate
- metric
description: "{description}"
sdk: gradio
sdk_version: 3.50.2
app_file: app.py
pinned: false
license: apache-2.0
---

# {title}

{summary} {advice}

```python
import evaluate
from peft_prune.metrics import metric_path

metric = evaluate.load(metric_path("{name}"))
metric.compute({example})["{figure}"]
```

The result holds the figure, and with the endings `_n`, `_low` and `_high` its number of units and its 95 % interval.
`metric.inputs_description` says what is passed, `metric.info.reference_urls` where it was published.

## Citation

```bibtex
{citation}```
"""


def metric_class(name: str) -> type[EditMetric]:
    """The class that `evaluate` makes of a module.

    Raises:
        ValueError: There is no such module.
        MissingPackageError: `evaluate` is not installed.
    """
    metric_path(name)
    if importlib.util.find_spec("evaluate") is None:
        raise MissingPackageError("evaluate is not installed; pip install 'peft-prune[evaluation]'")
    module = importlib.import_module(f"{__package__}.{name}.{name}")
    (found,) = (one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__)
    return found


def write_space(name: str, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write the Space of a module as the new folder ``folder/name``, whole or not at all.

    `evaluate` loads a folder by the file that is named as it, hence the name.

    Returns:
        The folder that was written.

    Raises:
        ValueError: There is no such module, or the folder holds something and ``overwrite`` is not set.
        MissingPackageError: `evaluate` is not installed.
    """
    files = {"README.md": readme(name), "app.py": _APP.format(name=name), "requirements.txt": REQUIREMENTS}
    with whole_folder(Path(folder) / name, overwrite=overwrite) as space:
        shutil.copy(Path(metric_path(name)) / f"{name}.py", space)
        for file, text in files.items():
            (space / file).write_text(text, encoding="utf-8")
    return Path(folder) / name


def readme(name: str) -> str:
    """A Space's README.md: the front matter that the Hub reads, what the module says, an example, the citation."""
    from .base import CITATION

    metric = metric_class(name)
    return _README.format(
        name=name,
        title=name.replace("_", " ").capitalize(),
        description=KINDS[metric.figure].description,
        advice=KINDS[metric.figure].advice,
        summary=metric.summary,
        example=", ".join(f"{argument}={values!r}" for argument, values in metric.example.items()),
        figure=metric.figure,
        citation=CITATION,
    )
