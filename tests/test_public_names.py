"""What `import peft_prune` hands out, and what it costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import peft_prune

ROOT = Path(__file__).parents[1]


def names_in(source: str) -> set[str]:
    """What a text of Python imports from the package's top level."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes if node.module == "peft_prune" for alias in node.names}


def fresh(code: str) -> list[str]:
    """What a new interpreter prints after the code."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.parametrize("name", peft_prune.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(peft_prune, name) is not None
    assert name in dir(peft_prune)


def test_a_name_is_the_one_of_its_folder() -> None:
    from peft_prune.evaluation import evaluate
    from peft_prune.session import EditSession

    assert peft_prune.EditSession is EditSession
    assert peft_prune.evaluate is evaluate


def test_editors_and_checkers_see_the_same_names() -> None:
    seen = {
        alias.name
        for node in ast.walk(ast.parse((ROOT / "peft_prune" / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level and node.module not in (None, "late")
        for alias in node.names
    }
    late = {name for names in peft_prune._HOMES.values() for name in names.split()}
    assert seen == set(peft_prune.__all__)
    assert late < seen


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'peft_prune' has no attribute 'EditSesion'"):
        _ = peft_prune.EditSesion
    with pytest.raises(ImportError, match="cannot import name 'EditSesion'"):
        exec("from peft_prune import EditSesion", {})


def test_the_import_alone_brings_none_of_the_large_libraries() -> None:
    loaded = set(fresh("import sys, peft_prune; print(*sys.modules)"))
    assert not loaded & {"torch", "transformers", "peft", "accelerate", "rich", "typer"}


def test_the_import_beside_peft_brings_the_method_and_nothing_that_can_wait() -> None:
    loaded = fresh("import sys, peft_prune, peft; print(*sys.modules)")
    own = {name.split(".")[1] for name in loaded if name.startswith("peft_prune.")}
    floors_above = {
        "editors",
        "session",
        "monitoring",
        "evaluation",
        "metrics",
        "reporting",
        "experiment",
        "audit",
        "export",
    }
    assert "tuner" in own and own & (floors_above | {"builtin", "cli"}) == set()
    late = {"matplotlib", "rich", "typer", "datasets", "evaluate", "pandas", "sqlite3"}
    # what PEFT itself brings in is not ours to spare
    assert late & (set(loaded) - set(fresh("import sys, peft; print(*sys.modules)"))) == set()


@pytest.mark.parametrize(
    "imports",
    [
        "import peft_prune, peft",
        "import peft, peft_prune",
        "import importlib.util, peft_prune; assert importlib.util.find_spec('peft'); from peft.utils import PeftType; "
        "import peft",
        "import peft_prune; peft_prune.PruneEditConfig; import peft",
        "import peft_prune.tuner, peft",
    ],
)
def test_the_method_is_registered_whichever_is_imported_first(imports: str) -> None:
    code = "; print(peft.get_peft_config({'peft_type': 'PRUNE_EDIT'}).__class__.__name__)"
    assert fresh(imports + code) == ["PruneEditConfig"]


def test_a_module_that_is_only_looked_for_is_not_imported_and_what_follows_it_waits(tmp_path: Path) -> None:
    (tmp_path / "late_one.py").write_text("print('own')")
    code = f"""
import sys, importlib.util
sys.path.insert(0, {str(tmp_path)!r})
from peft_prune.late import when_imported
for word in ("first", "second"):
    when_imported("late_one", lambda word=word: print(word))
importlib.util.find_spec("late_one")
print("waiting")
import late_one
when_imported("late_one", lambda: print("now"))
importlib.reload(late_one)
"""
    assert fresh(code) == ["waiting", "own", "first", "second", "now", "own"]


def test_an_import_that_fails_once_is_followed_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "late_one.py").write_text("import builtins\nif not hasattr(builtins, 'may'): raise ImportError('no')")
    code = f"""
import sys, builtins
sys.path.insert(0, {str(tmp_path)!r})
from peft_prune.late import when_imported
when_imported("late_one", lambda: print("followed"))
try:
    import late_one
except ImportError as error:
    print(error)
builtins.may = True
import late_one
"""
    assert fresh(code) == ["no", "followed"]


def test_the_command_line_and_all_its_help_import_none_of_the_large_libraries() -> None:
    code = """
import contextlib, io, sys
import typer
from peft_prune.cli import main
from peft_prune.cli.app import app
names = typer.main.get_command(app).commands
with contextlib.redirect_stdout(io.StringIO()):
    for arguments in (["--version"], ["--help"], *([name, "--help"] for name in names)):
        assert main(arguments) == 0
print(*sys.modules)
"""
    loaded = set(fresh(code))
    assert "peft_prune.cli.edit" in loaded
    assert not loaded & {"torch", "transformers", "peft", "accelerate", "rich", "huggingface_hub", "matplotlib"}


@pytest.mark.parametrize(
    "page", ["README.md", "docs/sessions.md", "docs/evaluation.md", "docs/editors.md", "docs/serving.md"]
)
def test_what_the_pages_import_is_there(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        missing = {name for name in names_in(block) if not hasattr(peft_prune, name)}
        assert not missing


def test_what_waits_for_an_import_waits_once() -> None:
    import sys

    from peft_prune.late import when_imported

    before = list(sys.meta_path)
    try:
        for _ in range(3):
            when_imported("no_such_library", test_what_waits_for_an_import_waits_once)
        assert len(sys.meta_path) == len(before) + 1
    finally:
        sys.meta_path[:] = before
