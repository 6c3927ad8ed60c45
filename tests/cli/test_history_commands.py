"""A history on the command line: written, listed, undone from, tuned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_prune.monitoring import Alert
from peft_prune.requests import EditRequest
from peft_prune.session import EditSession, History
from peft_prune.session.tuning import SETTINGS
from tests.cli.test_commands import edit, folder, run  # noqa: F401
from tests.reporting.builder import Builder
from tests.session.scene import MODULE
from tests.talking import spaced_tokenizer


@pytest.fixture
def log(capsys, folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    result = edit(capsys, folder, tmp_path / "adapter", "--restraint", "clip", "--history", tmp_path / "edits.db")
    assert result["applied"] >= 3
    return tmp_path / "edits.db"


def resumed_on(folder: Path, log: Path) -> EditSession:  # noqa: F811
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return EditSession.resume(log, base, spaced_tokenizer(), monitor=False)


def logits(folder: Path, adapter: Path) -> torch.Tensor:  # noqa: F811
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return PeftModel.from_pretrained(base, str(adapter))(torch.arange(9)[None]).logits


def test_history_lists_the_edits_for_people_and_for_programs(capsys, log: Path) -> None:
    code, output, _ = run(capsys, "history", log, "--json")
    document = json.loads(output)
    assert code == 0 and set(document) == {"model", "editor", "edits", "events"}
    assert [one["id"] for one in document["edits"]] == [1, 2, 3, 4] and document["editor"] == "rome"
    assert document["edits"][0]["request"]["subject"] == "sane ant" and "probability_after" in document["edits"][0]
    states = {one["id"]: one["status"] for one in document["edits"]}
    assert all(one["took"] for one in document["edits"]) and set(states.values()) <= {"applied", "weakened", "lost"}
    code, output, _ = run(capsys, "history", log, "--status", states[4], "--last", 1)
    assert code == 0 and "nest son" in output and "sane ant" not in output
    code, _, errors = run(capsys, "history", log, "--status", "gone")
    assert code == 2 and "status: 'gone' is not one of applied, weakened, lost, undone, failed" in errors
    code, _, errors = run(capsys, "history", log.parent / "none.db")
    assert code == 2 and "does not exist" in errors


def test_undo_saves_the_adapter_without_the_edit_and_marks_the_history(capsys, folder, log, tmp_path) -> None:  # noqa: F811
    standing = [record.id for record in History.read(log).edits(standing=True)]
    code, output, errors = run(
        capsys, "undo", log, standing[1], standing[1], "--model", folder / "model", "--out", tmp_path / "less",
        "--reason", "wrong",
    )  # fmt: skip
    assert code == 0, errors
    assert f"1 undone, {len(standing) - 1} stand" in output
    assert History.read(log).edit(standing[1]).undone_reason == "wrong"
    assert not torch.equal(logits(folder, tmp_path / "less"), logits(folder, tmp_path / "adapter"))
    settings = json.loads((tmp_path / "less" / "adapter_config.json").read_text())
    assert settings["edits"] == len(standing) - 1
    code, _, errors = run(capsys, "undo", log, standing[1], "--model", folder / "model", "--out", tmp_path / "again")
    assert code == 2 and "does not stand" in errors and not (tmp_path / "again").exists()
    code, _, errors = run(capsys, "undo", log, standing[0], "--model", folder / "model", "--out", tmp_path / "less")
    assert code == 2 and "exists" in errors
    assert History.read(log).edit(standing[0]).stands


@pytest.mark.filterwarnings("ignore")
def test_tune_saves_the_adapter_under_the_recommended_restraint(capsys, folder, log, tmp_path) -> None:  # noqa: F811
    options = ["--model", folder / "model", "--facts", folder / "facts.json"]
    code, output, errors = run(
        capsys, "tune", log, *options, "--margin", 0.01, "--plot", tmp_path / "front.png", "--out", tmp_path / "tuned",
        "--json",
    )  # fmt: skip
    assert code == 0, errors
    document = json.loads(output)
    assert set(document) == {"recommended", "reference", "points", "edits", "adapter"}
    with History.read(log) as history:
        assert document["edits"] == by_state(history)
    assert len(document["points"]) == len(SETTINGS)
    (word,) = set(document["recommended"]["restraints"].values())
    settings = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    assert settings["restraint"] == word.partition(":")[0]
    assert (tmp_path / "front.png").stat().st_size > 5_000
    kinds = [row["kind"] for row in History.read(log).table("events")]
    assert [kind for kind in kinds if kind != "look"][-2:] == ["strengths", "tune"]
    code, output, _ = run(capsys, "tune", log, *options, "--out", tmp_path / "more")
    assert code == 0 and "recommended" in output and "edits hold" in output


def test_an_existing_history_is_not_written_over(capsys, folder, log, tmp_path) -> None:  # noqa: F811
    code, _, errors = run(
        capsys, "edit", "--model", folder / "model", "--requests", folder / "requests.json", "--layers", 1,
        "--stats-text", folder / "texts.json", "--out", tmp_path / "other", "--history", log,
    )  # fmt: skip
    assert code == 2 and "exists" in errors and not (tmp_path / "other").exists()


NEW = [{"prompt": "note sea {}", "subject": subject, "target_new": "ten"} for subject in ("soot", "net")]


def test_resume_goes_on_with_the_editor_and_the_moments_of_the_history(capsys, folder, log, tmp_path) -> None:  # noqa: F811
    (tmp_path / "more.json").write_text(json.dumps(NEW))
    before = [record.id for record in History.read(log).edits(standing=True)]
    arguments = ("--model", folder / "model", "--requests", tmp_path / "more.json")
    code, output, errors = run(capsys, "resume", log, *arguments, "--out", tmp_path / "longer", "--json")
    assert code == 0, errors
    document = json.loads(output)
    assert set(document) == {"requested", "applied", "failed", "consolidated", "weakened", "lost", "earlier", "adapter"}
    assert document["requested"] == 2 and document["earlier"]["standing"] == len(before)
    assert [failure["index"] for failure in document["failed"]] == [0, 1][document["applied"] :]
    with History.read(log) as history:
        assert history.last_edit == 6 and len(history.table("runs")) == 2
        settings = json.loads((tmp_path / "longer" / "adapter_config.json").read_text())
        assert settings["edits"] == history.standing == len(before) + document["applied"]
        assert settings["restraint"] == "clip" and settings["restrained"] is True
    log.with_name("edits.db.moments.safetensors").unlink()
    code, _, errors = run(capsys, "resume", log, *arguments, "--out", tmp_path / "again")
    assert code == 2 and "give its file by --stats" in errors and not (tmp_path / "again").exists()


def test_limits_on_the_command_line_are_watched_and_written_down(capsys, folder, tmp_path) -> None:  # noqa: F811
    options = ("--restraint", "none", "--history", tmp_path / "edits.db", "--max-growth", 1.01, "--watch-every", 2)
    options += ("--watch-facts", folder / "facts.json", "--watch-text", folder / "texts.json", "--max-drop", 0.9)
    with pytest.warns(UserWarning, match="ConditionGuard"):
        edit(capsys, folder, tmp_path / "adapter", *options)
    with History.read(tmp_path / "edits.db") as history:
        limits = {one["figure"]: one for one in history.meta["limits"]}
        measured = history.table("measurements")
        kinds = {event["kind"] for event in history.table("events")}
    assert set(limits) == {"condition_growth", "recall", "perplexity"} and "alert" in kinds
    code, output, _ = run(capsys, "history", tmp_path / "edits.db")
    assert code == 0 and f"alert after batch 1: ConditionGuard: {MODULE}: the condition number is" in output
    assert limits["recall"]["value"] == pytest.approx(0.1 * limits["recall"]["base"])
    assert limits["perplexity"]["value"] == pytest.approx(1.9 * limits["perplexity"]["base"])
    assert [(row["batch"], row["name"]) for row in measured] == [
        *((2, "recall"), (2, "perplexity"), (4, "recall"), (4, "perplexity"))
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-growth", 1), "max_growth: 1.0 must be above 1"),
        (("--max-drop", 0.1), "max_drop: 0.1 needs --watch-facts or --watch-text"),
        (("--on-limit", "cry"), "on_limit: 'cry' is not one of warn, restrain, rollback, stop"),
        (("--watch-facts", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--watch-every", 0), "watch_every: 0 must be at least 1"),
        (
            ("--on-limit", "stop"),
            "on_limit: 'stop' needs a limit, --max-growth, --max-norm, --max-output-change or --max-drop",
        ),
        (("--max-output-change", -1), "max_output_change: -1.0 must be a number above 0"),
        (("--set", "v_lr=0.1", "--set", "v_lr=0.5"), "set: v_lr is given twice; give it once"),
        (("--set", "layers=[0]"), "set: layers is given twice; give it once"),
        (("--set", "mom2_adjustment=No"), "mom2_adjustment: 'No' must be true or false"),
        (("--watch-facts", "{facts}", "--max-drop", 5), "max_drop: 5.0 must be below 1, recall cannot lose more"),
        (
            ("--set", "mom2_adjustment=false", "--watch-facts", "{zero}", "--history", "{new}"),
            "zero.json: probe: recall gives 0.0 on the base model",
        ),
    ],
)
def test_limits_that_cannot_be_give_one_line(capsys, folder, tmp_path, options, message) -> None:  # noqa: F811
    zero = folder / "zero.json"
    zero.write_text(json.dumps([{"prompt": "note tea", "object": "<end>"}]))
    names = {"facts": folder / "facts.json", "zero": zero, "new": tmp_path / "new.db"}
    options = [str(option).format(**names) for option in options]
    code, _, errors = run(
        capsys, "edit", "--model", folder / "model", "--requests", folder / "requests.json", "--layers", 1,
        "--editor", "rome", "--quiet", "--out", tmp_path / "out", *options,
    )  # fmt: skip
    assert code == 2 and message in errors and errors.count("\n") == 1 and not list(tmp_path.iterdir())


def test_after_an_interruption_the_rest_of_the_file_is_gone_on_with(capsys, folder, tmp_path, monkeypatch) -> None:  # noqa: F811
    from peft_prune.cli.bars import EditProgress

    log, original = tmp_path / "edits.db", EditProgress.on_batch_end

    def stopping(self: EditProgress, session: object, report: object) -> None:
        original(self, session, report)
        if self._done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(EditProgress, "on_batch_end", stopping)
    model = ("--model", folder / "model", "--requests", folder / "requests.json", "--batch-size", 1)
    more = ("--layers", 1, "--stats-text", folder / "texts.json", "--history", log, "--out", tmp_path / "adapter")
    code, _, errors = run(capsys, "edit", *model, *more)
    done = History.read(log).last_edit
    assert code == 130 and errors.endswith("peft-prune: interrupted\n") and not (tmp_path / "adapter").exists()
    assert f"{done} of the requests are done" in errors and f"peft-prune resume {log} --skip {done}" in errors
    monkeypatch.setattr(EditProgress, "on_batch_end", original)
    code, _, errors = run(capsys, "resume", log, *model, "--skip", 5, "--out", tmp_path / "adapter")
    assert code == 2 and "skip: 5 must be at least 0 and at most the 4 requests" in errors
    code, _, errors = run(capsys, "resume", log, *model, "--skip", done, "--out", tmp_path / "adapter")
    subjects = [record.request.subject for record in History.read(log).edits()]
    assert subjects == ["sane ant", "tone seat", "oats tea", "nest son"]


def test_any_state_of_a_history_is_turned_into_its_adapter(capsys, folder, log, tmp_path) -> None:  # noqa: F811
    model = ("--model", folder / "model")
    standing = [record.id for record in History.read(log).edits(standing=True)]
    # as after a kill between the last edit and the save: no second moment is needed to write what is there
    log.with_name("edits.db.moments.safetensors").unlink()
    code, output, errors = run(capsys, "resume", log, *model, "--out", tmp_path / "again")
    assert code == 0 and f"{len(standing)} edits stand" in output and "No new edits; adapter in" in output, errors
    assert torch.equal(logits(folder, tmp_path / "again"), logits(folder, tmp_path / "adapter"))
    requests = ("--requests", folder / "requests.json", "--skip", 4)
    code, _, errors = run(capsys, "resume", log, *model, *requests, "--out", tmp_path / "all-done")
    assert code == 0, errors
    assert torch.equal(logits(folder, tmp_path / "all-done"), logits(folder, tmp_path / "adapter"))
    # undone, and killed before the adapter was saved
    with resumed_on(folder, log) as session:
        session.undo(standing)
    code, output, errors = run(capsys, "resume", log, *model, "--out", tmp_path / "none")
    assert code == 0 and "0 edits stand" in output, errors
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    assert torch.equal(logits(folder, tmp_path / "none"), base(torch.arange(9)[None]).logits)
    code, _, errors = run(capsys, "resume", log, *model, "--skip", 2, "--out", tmp_path / "skipped")
    assert code == 2 and "skip: 2 needs --requests" in errors


def test_new_edits_that_all_fail_do_not_keep_the_others_from_their_adapter(capsys, folder, log, tmp_path) -> None:  # noqa: F811
    bad = [{"prompt": "note {}" + " sea" * 60, "subject": "tea", "target_new": "ten"}]
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    standing = History.read(log).standing
    arguments = ("--model", folder / "model", "--requests", tmp_path / "bad.json", "--out", tmp_path / "adapter2")
    code, output, errors = run(capsys, "resume", log, *arguments)
    assert code == 0 and f"0 of 1 edits took; adapter in {tmp_path / 'adapter2'}" in output, errors
    settings = json.loads((tmp_path / "adapter2" / "adapter_config.json").read_text())
    assert settings["edits"] == standing


def test_what_saving_restrained_away_is_told(capsys, folder, tmp_path) -> None:  # noqa: F811
    options = ("--restraint", "clip", "--restrain-on", "merge", "--history", tmp_path / "edits.db")
    document = edit(capsys, folder, tmp_path / "adapter", *options)
    with History.read(tmp_path / "edits.db") as history:
        states = {record.id - 1: record.state for record in history.edits()}
        seen = {record.seen.cause for record in history.edits(standing=True) if record.seen}
    assert seen == {"restraint"}
    for state in ("weakened", "lost"):
        assert document[state] == [index for index, own in states.items() if own == state]
    assert document["lost"], "the scene must lose one"
    code, output, _ = run(capsys, "history", tmp_path / "edits.db", "--status", "lost")
    assert code == 0 and output.count("lost") >= len(document["lost"])
    shown = [index + 1 for index in states if states[index] == "lost"]
    assert all(re.search(rf"^ *{edit} ", output, re.MULTILINE) for edit in shown)


def by_state(history: History) -> dict:
    records = history.edits(standing=True)
    fallen = {state: [one.id for one in records if one.state == state] for state in ("weakened", "lost")}
    return {"standing": len(records), **fallen}


def test_commands_that_go_on_with_a_history_say_which_of_its_edits_are_lost(capsys, folder, tmp_path) -> None:  # noqa: F811
    log = tmp_path / "edits.db"
    edit(capsys, folder, tmp_path / "adapter", "--restraint", "clip", "--restrain-on", "merge", "--history", log)
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    with EditSession.resume(log, base, spaced_tokenizer(), monitor=False, look_again=False) as session:
        ids = [record.id for record in session.history.edits(standing=True)]
        session.set_strengths(dict.fromkeys(ids[:2], 0.0))
    arguments = ("--model", folder / "model", "--out")
    code, output, errors = run(capsys, "resume", log, *arguments, tmp_path / "again")
    assert code == 0 and output.startswith(
        f"No new edits; adapter in {tmp_path / 'again'}\n{len(ids)} edits stand\n"
    ), errors
    with History.read(log) as history:
        lost = by_state(history)["lost"]
        assert set(ids[:2]) <= set(lost)
    assert f"edits {lost[0]}" in output and "are lost" in output
    code, output, errors = run(capsys, "resume", log, *arguments, tmp_path / "json", "--json")
    assert code == 0 and json.loads(output)["earlier"]["lost"] == lost, errors
    code, output, errors = run(capsys, "undo", log, ids[-1], *arguments, tmp_path / "less")
    with History.read(log) as history:
        assert ("are lost" in output) is (len(by_state(history)["lost"]) > 1)
    assert code == 0 and "1 undone" in output and "lost" in output, errors


def test_the_limits_of_norm_and_output_are_watched_and_written_down(capsys, folder, tmp_path) -> None:  # noqa: F811
    options = ("--history", tmp_path / "edits.db", "--max-norm", 0.01, "--max-output-change", 1e-6)
    with pytest.warns(UserWarning, match="NormGuard"):
        edit(capsys, folder, tmp_path / "adapter", *options)
    with History.read(tmp_path / "edits.db") as history:
        limits = {one["figure"]: one["value"] for one in history.meta["limits"]}
        sources = {event["data"]["source"] for event in history.events() if event["kind"] == "alert"}
    assert limits == {"update_norm": 0.01, "output_perturbation": 1e-6} and sources == {"NormGuard", "OutputGuard"}
    code, output, errors = run(capsys, "report", tmp_path / "edits.db", "--out", tmp_path / "r.html", "--json")
    document = json.loads(output)
    assert code == 0 and document["level"] == "passed", errors
    assert (
        "size of ΔW as a share of σmax(W₀)" in document["tiles"] and "change of ordinary outputs" in document["tiles"]
    )


def test_what_people_typed_is_printed_as_it_is_and_steers_no_terminal(capsys, tmp_path) -> None:
    alert = Alert("warn", "OwnGuard", "seen [red]\x1b[31m here")
    builder = Builder(path=tmp_path / "edits.db")
    builder.batch(
        {"request": EditRequest("{} is in", "x [/b] y", "[bold]ten[/bold]"), "answer_after": " \x1b[2Jten\x07"},
        alerts=[alert],
    )
    builder.history.record_undo([1], "asked [/i] for")
    builder.history.close()
    code, output, errors = run(capsys, "history", tmp_path / "edits.db")
    assert code == 0, errors
    for text in ("x [/b] y", "[bold]", "[/i]", r"[red]\x1b[31m"):
        assert text in output, text
    assert "\x1b" not in output and "\x07" not in output
