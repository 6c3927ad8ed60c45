"""The wheel as a package index shows it, and as it works where nothing else of the project is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import peft
import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
FACT = {"prompt": "{} plays the", "subject": "Selirira Holariwick", "target_new": "drums"}
RELATIVE = re.compile(r"\]\((?!https?://|#)[^)]*\)")


def run(*words: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as the one that is published is."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "peft_prune", source / "peft_prune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in NEEDED:
        shutil.copyfile(ROOT / name, source / name)
    # what is needed for building is here already; nothing is downloaded
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    (found,) = (source / "dist").glob("*.whl")
    return found


def described(wheel: Path) -> tuple[dict[str, list[str]], str]:
    """The fields of the wheel's metadata, and its long description."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        message = Parser().parsestr(archive.read(name).decode())
    return {key: message.get_all(key, []) for key in message.keys()}, message.get_payload()


def test_a_package_index_accepts_and_shows_it(wheel: Path) -> None:
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed")
    checked = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *wheel.parent.iterdir())
    assert checked.count("PASSED") == 2


def test_nothing_on_its_page_is_relative(wheel: Path) -> None:
    fields, text = described(wheel)
    assert not RELATIVE.findall(text) and text.lstrip().startswith("# peft_prune")
    assert fields["Description-Content-Type"] == ["text/markdown"] and fields["License-Expression"] == ["Apache-2.0"]
    assert fields["Project-URL"] and all(", https://" in one for one in fields["Project-URL"])


def test_links_lead_to_the_repository_where_one_is_named() -> None:
    make = runpy.run_path(str(ROOT / "setup.py"))["long_description"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = make(readme, "https://example.org/peft-prune/")
    assert not RELATIVE.findall(text)
    assert "](https://example.org/peft-prune/raw/main/docs/demo.png)" in text
    assert "](https://example.org/peft-prune/blob/main/docs/editors.md#second-moments)" in text
    assert make("![a](a.png)\n\nsee [b](b.md) and [c](https://c.org)", None) == "\n\nsee b and [c](https://c.org)"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"peft_prune", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    for needed in ("py.typed", "builtin/model/model.safetensors", "reporting/templates/report.html"):
        assert f"peft_prune/{needed}" in names
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "peft_prune").rglob("*.py")}
    assert here == {name for name in names if name.endswith(".py")}


def test_the_built_in_model_is_edited_where_only_the_wheel_is(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (packages,) = (home / "lib").glob("python*/site-packages")
    # what the package depends on is taken from here, so that nothing is downloaded
    (packages / "here.pth").write_text(f"{Path(peft.__file__).parents[1]}\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = {"cwd": tmp_path, "env": own}
    found = run(python, "-c", "import peft_prune; print(peft_prune.__file__)", **where)
    assert Path(found.strip()).is_relative_to(home)
    (tmp_path / "edits.jsonl").write_text(json.dumps(FACT))
    line = "edit --model builtin --requests edits.jsonl --editor ft --out adapter"
    told = run(home / "bin" / "peft-prune", *line.split(), **where)
    assert "1 of 1 edits took" in told and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
