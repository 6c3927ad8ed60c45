"""Option values that no command takes, and outputs that would cost an input."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .scene import (
    Case,
    Scene,
    options,
    placed,
)

NUMBERS = ("nan", "inf", "-inf", "-1", "1e999", "few", "", "0x10", "9" * 40)


def values(scene: Scene, draw: random.Random) -> Iterator[Case]:
    whole = ("limit", "batch_size", "restrain_every", "max_rank", "watch_every")
    for name in whole:
        for value in (*NUMBERS[:8], "0", "1.5"):
            yield _value(scene.edit(), name, value)
    for value in ("nan", "1", "0", "-2", "inf", "few", "0.5", ""):
        yield _value(scene.edit(), "alpha", value)
    for value in ("nan", "1", "0", "-1", "few", "0.5"):
        yield _value(scene.edit(), "max_growth", value)
        yield _value(["report", str(scene.history), "--out", "report.html"], "max_growth", value)
    for name in ("max_norm", "max_output_change", "max_update_norm", "max_output_perturbation"):
        line = scene.edit(stats=scene.moments, restrain_on="threshold")
        for value in NUMBERS[:8]:
            yield _value(line, name, value)
    restrain = ["restrain", str(scene.adapter), *options({"model": scene.model, "out": "out"})]
    for name, values in {
        "max_rank": ("0", "-1", "1.5", "few"),
        "alpha": ("1", "nan", "inf"),
        "restraint": ("", "none", "sqrt", "log:0.5"),
    }.items():
        for value in values:
            yield _value(restrain, name, value)
    for value in ("nan", "1", "2", "few", "inf"):
        yield _value(scene.edit(watch_facts=scene.facts), "max_drop", value)
    for name, values in {
        "editor": ("", "romeo", "ROME "),
        "restraint": ("", "sqrt", "LOG"),
        "restrain_on": ("", "never", "7"),
        "on_limit": ("", "cry", "Warn"),
        "dtype": ("", "float99", "int8", "fp32"),
        "serve_dtype": ("", "float99", "int8", "fp32"),
        "ask": ("", "aloud", "chat", "both"),  # the model has no template
        "layers": ("", "a", "1.5", "99", "-1", "1,,2", "1;2", "1,1", "9" * 30),
        "set": (
            *("a", "=1", "nonsense=1", "v_num_grad_steps=a", "v_num_grad_steps=-1", "v_lr=nan", "clamp_norm_factor=[]"),
            *("context_lengths=7", "layers=a", "v_num_grad_steps=1e400", "v_lr=" + "[" * 3000),
        ),
        "model": ("", "no such model", "../nowhere", "a/b/c/d", "~", "/dev/null"),
        "requests": ("", "nowhere.json", "/dev/null", ".", "hub:"),
        "stats": ("nowhere", "/dev/null"),
        "stats_text": ("nowhere.json", "/dev/null"),
    }.items():
        for value in values:
            yield _value(scene.edit(), name, value)
    for name, values in {
        "fluency": ("-1", "nan", "few"),
        "ability_items": ("0", "-1", "few"),
        "limit": ("0", "-1", "few"),
        "adapter": ("", "nowhere", "/dev/null"),
    }.items():
        for value in values:
            yield _value(scene.evaluate(), name, value)
    experiment = ["experiment", *options({"model": scene.model, "requests": scene.requests, "edits": 1, "out": "out"})]
    for name, values in {
        "edits": ("", "a", "0", "-1", "1,1", "2,1", "99", "1.5"),
        "restraints": ("", "sqrt", "log:", "log:a", "log:1", "log:nan", "none,none"),
        "schedule": ("", "never", "every", "every:0", "every:a", "compounding:-1"),
        "seeds": ("0", "-1", "few"),
        "batch_size": ("0", "-1"),
        "table": ("", "xlsx"),
        "fact_items": ("0",),
        "against": ("nowhere", str(scene.model), "/dev/null"),
    }.items():
        for value in values:
            yield _value(experiment, name, value)
    for edits in (["0"], ["-1"], ["99"], ["a"], ["1", "1", "99"], []):
        line = ["undo", str(scene.history), *options({"model": scene.model, "out": "out"}), "--", *edits]
        yield Case("option", f"undo {edits}", ("edit",), _on_copy(scene, line), log="edits.db")
    tune = ["tune", str(scene.history), *options({"model": scene.model, "facts": scene.facts, "out": "out"})]
    for name, values in {"margin": ("0", "1", "nan", "-1", "a"), "groups": ("", "some")}.items():
        for value in values:
            yield Case(
                "option",
                f"tune {name} = {value}",
                (name,),
                _on_copy(scene, [*tune, f"--{name}", value]),
                log="edits.db",
            )
    for name, values in {"status": ("", "done"), "last": ("0", "-1", "few")}.items():
        for value in values:
            yield _value(["history", str(scene.history)], name, value)
    for name, values in {"redact_key": ("", "short"), "limit": ("0", "3"), "facts": (str(scene.facts),)}.items():
        for value in values:
            yield _value(["report", str(scene.history), "--out", "report.html"], name, value)
    demo = ["demo", "--out", "out"]
    for name, values in {"edits": ("0", "-1", "9" * 9), "alpha": ("1", "nan"), "items": ("0", "-1")}.items():
        for value in values:
            yield _value(demo, name, value)
    audit = ["audit", *options({"base": scene.model, "edited": scene.model, "out": "audit.html"})]
    for name, values in {
        "only": ("(((", "nothing like it"),
        "rank": ("1",),
        "energy": ("0.5",),
        "max_growth": ("1",),
    }.items():
        for value in values:
            yield Case(
                "option",
                f"audit {name} = {value}",
                (name, "extract"),
                _at([*audit, f"--{name.replace('_', '-')}", value]),
            )


def _value(line: Sequence[str], name: str, value: str) -> Case:
    """The command with one option set to a value that it does not take; options that stood before are replaced."""
    flag = f"--{name.replace('_', '-')}"
    line = [*line]
    if flag in line:
        place = line.index(flag)
        del line[place : place + 2]
    names = (name, flag, name.split("_")[0], value[:20] if len(value) > 2 else flag)
    if name == "restraints":
        names = (*names, "restraint", "alpha", "variants")
    if name == "set":
        names = (*names, value.split("=")[0] or "set")
    return Case("option", f"{line[0]} {name} = {value[:24]!r}", names, _at([*line, flag, value]))


def _at(line: Sequence[str]) -> Callable[[Path], list[str]]:
    return lambda folder: placed(line, folder)


def _on_copy(scene: Scene, line: Sequence[str]) -> Callable[[Path], list[str]]:
    """The line on a copy of the history, for commands that write it."""

    def prepare(folder: Path) -> list[str]:
        copy = shutil.copy(scene.history, folder / "edits.db")
        return placed([str(copy) if part == str(scene.history) else part for part in line], folder)

    return prepare


def collisions(scene: Scene, draw: random.Random) -> Iterator[Case]:
    """A whole run in one folder, whose parts are given as outputs."""
    run = {"history": "run/edits.db", "model": "run/model", "adapter": "run/adapter", "requests": "run/requests.json"}
    run |= {"facts": "run/facts.json", "texts": "run/texts.json"}
    model = ["--model", run["model"]]
    requests = ["--requests", run["requests"]]
    lines = {
        "edit": ["edit", *model, *requests, "--stats-text", run["texts"], "--watch-facts", run["facts"]],
        "resume": ["resume", run["history"], *model, *requests],
        "undo": ["undo", run["history"], "1", *model],
        "tune": ["tune", run["history"], *model, "--facts", run["facts"]],
        "restrain": ["restrain", run["adapter"], *model],
        "merge": ["merge", run["adapter"], *model],
    }
    wholes = ["run", ".", run["model"], f"{run['model']}/inside", "run/../run", "link", "linked/model", "file"]
    wholes += ["file/inside", run["requests"], "x" * 300]
    for command, line in lines.items():
        for out in wholes:
            if out == run["requests"] and command not in ("edit", "resume"):
                continue
            names = ("out",)
            yield Case(
                "output",
                f"{command} --out {out[:20]}",
                names,
                _in_run(scene, run, [*line, "--out", out, "--overwrite"]),
            )
        yield Case("output", f"{command} over a folder", ("out",), _in_run(scene, run, [*line, "--out", "full"]))
    out = ["--out", "new"]
    more = {
        "history in out": [*lines["edit"], "--history", "new/edits.db", *out],
        "history is out": [*lines["edit"], "--history", "new", *out],
        "history exists": [*lines["edit"], "--history", run["history"], *out],
        "history is a folder": [*lines["edit"], "--history", "full", *out],
        "history below a file": [*lines["edit"], "--history", "file/edits.db", *out],
        "plot is facts": [*lines["tune"], "--plot", run["facts"], *out],
        "plot in out": [*lines["tune"], "--plot", "new/plot.png", *out],
        "plot is a folder": [*lines["tune"], "--plot", "full", *out],
        "plot is no picture": [*lines["tune"], "--plot", "file", *out],
        "plot of no known form": [*lines["tune"], "--plot", "plot.doc", *out],
        "plot is a link": ["locate", *model, *requests, "--plot", "link"],
        "plot is the history": ["locate", *model, *requests, "--plot", run["requests"]],
        "report is the history": ["report", run["history"], "--out", run["history"]],
        "report is a folder": ["report", run["history"], "--out", "full"],
        "report is a link": ["report", run["history"], "--out", "link"],
        "report below a file": ["report", run["adapter"], "--out", "file/report.html"],
        "report is no page": ["report", run["adapter"], "--out", f"{run['adapter']}/adapter_config.json"],
        "audit over the base": [
            "audit",
            "--base",
            run["model"],
            "--edited",
            run["model"],
            "--out",
            f"{run['model']}/config.json",
        ],
        "extract over the base": [
            "audit",
            "--base",
            run["model"],
            "--edited",
            run["model"],
            "--extract",
            run["model"],
            "--overwrite",
        ],
        "extract in the base": [
            "audit",
            "--base",
            run["model"],
            "--edited",
            run["model"],
            "--extract",
            f"{run['model']}/new",
        ],
        "extract over everything": [
            "audit",
            "--base",
            run["model"],
            "--edited",
            run["model"],
            "--extract",
            "run",
            "--overwrite",
        ],
        "extract is out": [
            "audit",
            "--base",
            run["model"],
            "--edited",
            run["model"],
            "--extract",
            "a.html",
            "--out",
            "a.html",
        ],
        "experiment into a file": ["experiment", *model, *requests, "--edits", "1", "--out", "file"],
        "experiment into the model": ["experiment", *model, *requests, "--edits", "1", "--out", run["model"]],
        "experiment beside others": ["experiment", *model, *requests, "--edits", "1", "--out", "full"],
        "demo into others": ["demo", "--out", "full"],
        "demo into a link": ["demo", "--out", "link"],
    }
    for name, line in more.items():
        yield Case("output", name, ("out", "history", "plot", "extract"), _in_run(scene, run, line))


def _in_run(scene: Scene, run: dict[str, str], line: Sequence[str]) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        (folder / "run").mkdir()
        for name, place in run.items():
            source = getattr(scene, name)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / place)
        (folder / "full").mkdir()
        (folder / "full" / "mine.txt").write_text("mine")
        (folder / "file").write_text("mine")
        (folder / "link").symlink_to(folder / "run")
        (folder / "linked").symlink_to(folder / "run")
        return list(line)

    return prepare
