"""Histories of odd shapes: what the report says of them is true, and nothing crashes."""

from __future__ import annotations

import math
import re
import sqlite3
from pathlib import Path

import pytest

from peft_prune import EditRequest
from peft_prune.errors import HistoryError
from peft_prune.monitoring import AbilityGuard, Alert, ConditionGuard, Limit
from peft_prune.reporting import Report, history_report, render
from peft_prune.reporting.document import Cell, Chart, Table
from peft_prune.reporting.words import edits
from peft_prune.session import History
from tests.session.scene import REQUESTS, adapted, session

from .builder import MODULE, RECALL, Builder, figures, growth_limit


def said(report: Report) -> str:
    return " ".join([report.verdict, *report.summary, *report.advice])


def tile(report: Report, label: str) -> tuple[str, str | None]:
    return next((one.value, one.level) for one in report.tiles if one.label == label)


def table(report: Report, key: str) -> Table:
    found = next(one for section in report.sections for one in section.blocks if one.key == key)
    return found.numbers if isinstance(found, Chart) else found


def column(report: Report, name: str) -> list[str]:
    found = table(report, "edit-list")
    place = list(found.columns).index(name)
    return [one.text if isinstance(one := row[place], Cell) else one for row in found.rows]


def test_an_edit_that_the_restraint_took_away_has_not_taken() -> None:
    with session(model=adapted(restraint="clip", restrain_on="every", restrain_every=3)) as run:
        run.edit(REQUESTS)
        record = run.history.edit(3)
        assert record.status == "applied" and (record.answer_after or "").strip() != "ten"
        report = history_report(run.history)
    assert column(report, "state")[2] == "lost"
    lost = [edit for edit, state in enumerate(column(report, "state"), start=1) if state == "lost"]
    assert f"{edits([6 - edit for edit in lost]).capitalize()} took, and the model no longer gives" in said(report)
    assert "4 of 5 that were tried took" in said(report)


def test_figures_from_before_a_restraint_are_no_ground_to_act_on() -> None:
    builder = Builder([growth_limit(3.0)])
    for growth in (1.5, 2.0, 2.5, 2.8, 2.9):
        builder.batch({}, growth=growth)
    assert "Plan a restraint before the growth of the condition number" in said(builder.report())
    builder.history.record_restraint({MODULE: "log:1.2"})
    report = builder.report()
    assert report.verdict == "Close to a limit, after edit 5"
    assert "Plan a restraint" not in said(report) and "Look at the growth of the condition number again" in said(report)
    assert "Give --model to judge it as it is" in said(report)


def test_with_nothing_left_the_model_is_the_base() -> None:
    builder = Builder([growth_limit(3.0)]).batch({}, {}, growth=7.2)
    builder.history.record_undo([1, 2], "withdrawn")
    report = builder.report()
    assert report.level == "good" and "tune" not in said(report) and tile(report, "growth of κ") == ("1 ×", None)


def test_every_figure_says_when_it_was_measured() -> None:
    builder = Builder([growth_limit(3.0), RECALL]).batch({}, growth=1.2, measured={"recall": 0.99})
    for _ in range(4):
        builder.batch({})
    report = builder.report()
    assert "The recall, measured after edit 1 of 5, is 0.99" in said(report)
    assert "The growth of the condition number, measured after edit 1 of 5, is 1.2" in said(report)
    assert "those after edit 1; the adapter has been changed since" in said(report)


def test_a_limit_that_was_never_measured_is_no_limit_kept() -> None:
    report = Builder([growth_limit(3.0), RECALL]).batch({}, growth=1.1).report()
    assert report.verdict == "Within the limits that were measured"
    assert "Measure the recall" in said(report) and "Nothing needs to be done" not in said(report)
    alone = Builder([RECALL]).batch({}, growth=1.1).report()
    assert alone.verdict == "Limits that were never measured" and alone.level == "open"


def test_the_strictest_of_several_limits_counts_and_all_are_drawn() -> None:
    report = Builder([growth_limit(3.0), growth_limit(20.0)]).batch({}, growth=5.0).report()
    assert report.level == "passed" and tile(report, "growth of κ") == ("5 ×", "passed")
    chart = next(one for section in report.sections for one in section.blocks if one.key == "growth")
    assert "limit 3" in chart.svg and "limit 20" in chart.svg


def test_a_session_that_watches_less_does_not_lift_the_other_limits(tmp_path: Path) -> None:
    def probe(model: object) -> float:
        return 2.0

    with session(tmp_path / "e.db", callbacks=[ConditionGuard(5.0), AbilityGuard(probe, 0.5, name="ability")]) as run:
        run.edit(REQUESTS[:1])
        run.callbacks = [ConditionGuard(9.0)]
        run.edit(REQUESTS[1:2])
        limits = {one["figure"]: one["value"] for one in run.history.meta["limits"]}
    assert limits == {"ability": 1.0, "condition_growth": 9.0}


def test_measurements_of_a_batch_that_was_rolled_back_are_not_kept() -> None:
    class Probe(AbilityGuard):
        def on_batch_end(self, session, report) -> None:
            report.measurements["ability"] = 0.5
            report.alert("rollback", "AbilityGuard", "ability: 0.5")

    with pytest.warns(UserWarning, match="rollback"):
        with session(callbacks=[Probe(lambda model: 1.0, 0.1, name="ability")]) as run:
            run.edit(REQUESTS[:1])
            assert run.history.table("measurements") == []
            report = history_report(run.history)
    assert column(report, "state") == ["rolled back"]
    assert "Edit 1 gave the new answer and was taken out again by a guard" in said(report)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"status": "skipped", "reason": "the session was stopped: x"}, "Edit 2 was not tried"),
        ({"status": "rejected", "reason": "it contradicts edit 1, which stands"}, "Edit 2 was rejected; the table"),
        ({"status": "rejected", "request": None, "reason": "bad"}, "Edit 2 had no valid request"),
        ({"status": "failed", "answer_after": " Old", "reason": "did not take: x"}, "Edit 2 did not give the new"),
    ],
)
def test_each_kind_of_edit_has_its_own_advice(edit: dict, words: str) -> None:
    report = Builder([growth_limit(3.0)]).batch({}, growth=1.1).batch(edit).report()
    assert words in said(report) and "Nothing needs to be done" not in said(report)


def test_edits_that_share_their_factors_are_named_together() -> None:
    report = Builder([growth_limit(3.0)]).batch({}, {}, {}, {}, growth=5.0, together=True).report()
    assert "edits 1 to 4 together carry 100 %" in said(report)
    rows = table(report, "carriers-transformer-h-2-mlp-c_proj").rows
    assert "edits 1 to 4 together" in rows[0][2].text


def test_the_edits_that_are_blamed_change_the_layer_that_is_blamed() -> None:
    other = "transformer.h.3.mlp.c_proj"
    builder = Builder([growth_limit(3.0)]).batch({}, growth=1.0)
    builder.batch({}, growth={MODULE: figures(5.0), other: figures(1.1)}, modules=(other,))
    report = builder.report()
    assert f"Of the largest direction of {MODULE}, edit 1 carries 100 %" in said(report)


def test_a_restraint_by_layer_is_told(tmp_path: Path) -> None:
    report = Builder(restraint="none", restraint_pattern={"h.2.mlp.c_proj": "clip"}).batch({}).report()
    assert dict(report.facts)["restraint"] == "clip for h.2.mlp.c_proj, none for all others; every 10 edits"


def test_replaced_edits_are_listed_and_do_not_make_figures_old() -> None:
    builder = Builder([growth_limit(3.0)]).batch({}, growth=1.1)
    builder.batch({}, growth=1.2, undone={1: "replaced by edit 2"})
    report = builder.report()
    assert "changed since" not in said(report)
    assert "edit 1 undone: replaced by edit 2" in [row[1] for row in table(report, "changes").rows]
    builder.history.record_undo([2], "replaced by edit 2")  # a person's own words
    assert "0 edits stand today" in said(builder.report())


def test_failures_that_are_kept_stand_and_have_not_taken() -> None:
    failed = {"status": "failed", "stands": True, "answer_after": " Old", "reason": "did not take: x"}
    report = Builder().batch({}, failed, growth=1.1).report()
    assert "2 edits stand today." in report.summary
    row = [one.text if isinstance(one, Cell) else one for one in table(report, "relations").rows[0]]
    assert row[-1] == "1 of 2"


def test_infinite_and_missing_figures_are_drawn_and_written() -> None:
    builder = Builder([growth_limit(3.0)])
    builder.batch({}, growth={MODULE: figures(math.inf)})
    report = builder.report()
    assert report.level == "passed" and tile(report, "growth of κ") == ("∞ ×", "passed")
    chart = next(one for section in report.sections for one in section.blocks if one.key == "growth")
    assert "A triangle at the upper edge" in chart.caption
    builder.batch({}, growth={MODULE: figures(math.nan, delta_spectral_norm=math.nan)})
    assert builder.report().level == "passed" and render(builder.report())
    singular = Builder().batch({}, growth={MODULE: figures(1.0, base=math.inf)}).report()
    assert tile(singular, "growth of κ") == ("1 ×", None)


def test_edits_of_strength_zero_have_no_directions() -> None:
    report = Builder([growth_limit(3.0)]).batch({"strength": 0.0}, growth=1.0).report()
    assert not any(section.key == "directions" for section in report.sections)


def test_names_that_look_like_formulas_or_run_from_right_to_left_are_names() -> None:
    names = ("A$AP Rocky and Ke$ha", "cost $x_{$ y", "תל אביב", "東京", "x" * 300)
    builder = Builder()
    builder.batch(*({"request": EditRequest("{} is in", name, "ten", relation_id=name)} for name in names), growth=1.1)
    text = render(builder.report())
    assert all(name in text for name in names) and "A$AP Rocky" in text


def test_a_redacted_report_of_such_names_has_none_of_them() -> None:
    names = ("東京", "Straße", "John O'Neil", "Jane Roe")
    builder = Builder()
    for name in names:
        request = EditRequest(f"the brother of {name} {{}}", name, f"{name} junior", relation_id=f"home_of_{name}")
        failed = f"did not take: the edited model answers '{name}' instead of \"{name}\""
        builder.batch({"request": request, "answer_after": f" {name}", "status": "failed", "reason": failed})
        alert = Alert("warn", "OwnGuard", f"edit of {name} looks odd")
        builder.batch({"request": request, "answer_after": f" {name} junior"}, alerts=[alert])
    builder.history.record_undo([2], "asked for by «Jane Roe»")
    text = render(builder.report(redact=True))
    assert not any(name in text or name.casefold() in text for name in names)
    assert "OwnGuard" not in text and text.count("(text withheld)") >= 5 and "did not take" in text


def test_a_redacted_report_names_no_person_no_place_and_no_measurement_of_a_users_own(tmp_path: Path) -> None:
    named = Limit("facts about Jane Roe", 0.9, 1.0, True, "warn")
    builder = Builder([named, RECALL], tmp_path / "janes-secrets.db")
    message = f"{named.figure}: 0.4 against 1 of the base, a loss of 0.1 of it is allowed"
    builder.batch({}, measured={named.figure: 0.4, "recall": 0.95}, alerts=[Alert("warn", "AbilityGuard", message)])
    builder.history.record_undo([1], "Jane wants it")
    report, shown = builder.report(redact=True), builder.report()
    text = render(report)
    secrets = ("Jane", "jane", "facts about", "Ann", "janes-secrets", str(tmp_path), "/models", "gpt2")
    assert [name for name in secrets if name in re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)] == []
    assert all(name in render(shown) for name in ("facts about Jane Roe", "by Ann", str(tmp_path), "/models/gpt2"))
    assert "recall" in text and report.level == shown.level == "passed"
    assert [tile.value for tile in report.tiles] == [tile.value for tile in shown.tiles]


def test_relations_with_one_code_are_counted_together() -> None:
    builder = Builder()
    for prompt in ("Jane likes {}", "jane likes {}", "jane likes {}"):
        builder.batch({"request": EditRequest(prompt, "tea", "ten")})
    rows = table(builder.report(redact=True), "relations").rows
    assert len(rows) == 1 and rows[0][-1] == "3 of 3"


def test_a_key_that_hides_nothing_is_refused() -> None:
    for key in ("", "secret"):
        with pytest.raises(ValueError, match=rf"redact_key: has {len(key)} characters, at least 8 are needed"):
            Builder().batch({}).report(redact=True, redact_key=key)


def test_a_report_is_of_one_moment_while_a_session_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder([growth_limit(3.0)], tmp_path / "e.db").batch({}, growth=1.1)
    with History.read(tmp_path / "e.db") as reader:
        original = reader.edits

        def edits(**options):
            found = original(**options)
            if reader.path is not None and builder.history.last_edit == 1:
                builder.batch({}, growth=2.9)
            return found

        monkeypatch.setattr(reader, "edits", edits)
        report = history_report(reader)
    assert "1 edit asked for" in said(report) and "is 1.1" in said(report)


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    Builder(path=tmp_path / "e.db").batch({}).history.close()
    with sqlite3.connect(tmp_path / "e.db") as connection:
        connection.execute("UPDATE edits SET request = '{'")
    with (
        History.read(tmp_path / "e.db") as history,
        pytest.raises(HistoryError, match="edit 1: its request is"),
    ):
        history_report(history)


def test_a_guard_that_could_never_speak_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="monitor: ConditionGuard needs the figures of the layers"):
        session(tmp_path / "e.db", callbacks=[ConditionGuard(2.0)], monitor=False)
    assert not list(tmp_path.iterdir())


def test_probes_are_asked_at_every_so_many_batches_of_the_whole_history(tmp_path: Path) -> None:
    from tests.session.scene import resumed

    def guards() -> list[AbilityGuard]:
        return [AbilityGuard(lambda model: 1.0, math.inf, every=3, name="ability")]

    with session(tmp_path / "e.db", callbacks=guards()) as run:
        run.edit(REQUESTS[:2])
    with resumed(tmp_path / "e.db", callbacks=guards()) as run:
        run.edit(REQUESTS[2:3])
        assert [row["batch"] for row in run.history.table("measurements")] == [3]


def test_many_layers_and_many_days_stay_readable(tmp_path: Path) -> None:
    builder = Builder([growth_limit(3.0)])
    layers = {f"model.layers.{i}.mlp.down_proj": figures(1 + i / 100) for i in range(40)}
    report = builder.batch({}, growth=layers).batch({}, growth=layers).report()
    chart = next(one for section in report.sections for one in section.blocks if one.key == "growth")
    assert chart.caption.startswith("The 8 layers of 40 that have grown most.") and len(chart.numbers.columns) == 9
