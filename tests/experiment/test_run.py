"""A small experiment on the built-in model, against editing and measuring by hand."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from peft import get_peft_model

from peft_prune import EditRequest, PruneEditConfig
from peft_prune.builtin import edit_requests, known_facts, load_builtin_model, plain_texts
from peft_prune.cli import main
from peft_prune.editors import collect_second_moments, get_editor
from peft_prune.errors import MissingPackageError
from peft_prune.evaluation import Ability, AbilityItem, Fact, evaluate, exclude_subjects
from peft_prune.experiment import (
    Experiment,
    Material,
    Plan,
    Results,
    Schedule,
    Variant,
    comparisons_against,
    draw_figures,
    markdown,
    summarize,
    write_table,
)
from peft_prune.experiment.measuring import digest
from peft_prune.experiment.store import Store
from peft_prune.session import EditSession

WORDS = ("none", "log:2", "matched:log:2", "strengths:none")
REQUESTS = [EditRequest.from_record(record) for record in edit_requests(30)]
FACTS = exclude_subjects([Fact(one["prompt"], one["object"]) for one in known_facts()], REQUESTS)[:40]
PLAN = Plan(
    model="builtin",
    editor="rome",
    hyperparameters={"layers": (0,), "v_num_grad_steps": 25},
    marks=(2, 4),
    variants=tuple(Variant.parse(word) for word in WORDS),
    schedules=(Schedule("merge"), Schedule("every", 2)),
    seeds=1,
)


@pytest.fixture(scope="module")
def moments():
    model, tokenizer = load_builtin_model()
    editor = get_editor("rome", model=model, layers=(0,))
    return collect_second_moments(model, tokenizer, plain_texts(200), editor.modules(model), progress=False)


def make(folder: Path, moments, plan: Plan = PLAN) -> Experiment:
    model, tokenizer = load_builtin_model()
    return Experiment(plan, model, tokenizer, REQUESTS, folder, statistics=moments, material=Material(facts=FACTS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, moments) -> Experiment:
    work = make(tmp_path_factory.mktemp("experiment"), moments)
    work.run(progress=False)
    return work


@pytest.fixture(scope="module")
def rows(finished: Experiment) -> pandas.DataFrame:
    return pandas.DataFrame(Results(PLAN, finished.folder, finished.facts()).rows())


def one(rows: pandas.DataFrame, **place) -> pandas.Series:
    chosen = rows
    for name, value in {"quantity": "value", "moment": "final", "schedule": "merge", "edits": 4, **place}.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_figures_are_those_of_editing_and_evaluating_by_hand(rows: pandas.DataFrame, moments) -> None:
    model, tokenizer = load_builtin_model()
    editor = get_editor("rome", model=model, **PLAN.hyperparameters)
    config = PruneEditConfig(restrain_on="merge", alpha=2.0, layers_to_transform=[0], task_type="CAUSAL_LM")
    chosen = [REQUESTS[index] for index in random.Random(0).sample(range(30), 4)]
    edited = get_peft_model(model, config).eval()
    with EditSession(edited, tokenizer, editor, statistics=moments, on_failure="keep", on_conflict="keep") as session:
        session.edit(chosen)
    for word in ("none", "log:2"):
        if word != "none":
            edited.restrain()
        figures = evaluate(edited, tokenizer, chosen, facts=FACTS, full=True)
        for name in ("efficacy", "generalization_greedy", "locality_greedy", "recall"):
            row, expected = one(rows, restraint=word, figure=name), figures["after"][name]
            assert (row.value, row.n) == pytest.approx((expected["value"], expected["n"]))
            assert (row.low, row.high) == pytest.approx((expected["low"], expected["high"]))
        row = one(rows, restraint=word, figure="locality", quantity="difference to base")
        assert row.value == pytest.approx(figures["difference"]["locality"]["value"])
        (layer,) = [layer for _, layer in edited.edited_layers()]
        spectrum = torch.linalg.svdvals(
            layer.get_base_weight().double() + layer.effective_update("default").dense().double()
        )
        assert one(rows, restraint=word, figure="condition_number").value == pytest.approx(
            float(spectrum[0] / spectrum[-1]), rel=1e-3
        )


def test_the_matched_control_has_the_norm_that_the_restraint_leaves(rows: pandas.DataFrame) -> None:
    raw, restrained, matched = (
        one(rows, restraint=word, figure="delta_spectral_norm").value for word in ("none", "log:2", "matched:log:2")
    )
    assert restrained < 0.9 * raw
    assert matched == pytest.approx(restrained, rel=1e-4)
    frobenius = [one(rows, restraint=w, figure="delta_frobenius_norm").value for w in ("none", "matched:log:2")]
    assert frobenius[1] / frobenius[0] == pytest.approx(matched / raw, rel=1e-4)


def test_per_edit_strengths_never_enlarge_the_update(rows: pandas.DataFrame) -> None:
    plain, scaled = (one(rows, restraint=w, figure="delta_frobenius_norm").value for w in ("none", "strengths:none"))
    assert scaled <= plain * (1 + 1e-6)


def test_immediate_figures_count_every_edit_when_it_was_made(rows: pandas.DataFrame, finished: Experiment) -> None:
    row = one(rows, moment="immediate", restraint="none", figure="efficacy_greedy")
    assert row.n == 4
    from peft_prune.session.history import History

    with History.read(finished.folder / "histories" / "seed0-merge.sqlite") as history:
        held = [record.status == "applied" for record in history.edits()]
    assert row.value == sum(held) / 4


def test_the_every_schedule_is_a_sequence_of_its_own(rows: pandas.DataFrame) -> None:
    merged, every = (
        one(rows, schedule=word, restraint="log:2", figure="delta_frobenius_norm").value
        for word in ("merge", "every:2")
    )
    assert every != pytest.approx(merged, rel=1e-6)


def test_an_interrupted_experiment_goes_on_to_the_same_table(
    tmp_path: Path, moments, rows: pandas.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_prune.experiment import run

    calls, original = [], run.measure

    def breaking(*arguments, **options):
        calls.append(1)
        if len(calls) in (3, 7):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(run, "measure", breaking)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, moments).run(progress=False)
    work = make(tmp_path, moments)
    work.run(progress=False)
    found = pandas.DataFrame(Results(PLAN, tmp_path, work.facts()).rows())
    pandas.testing.assert_frame_equal(found, rows, rtol=1e-3, atol=1e-6)


def test_a_folder_of_another_experiment_is_refused(finished: Experiment, moments) -> None:
    other = make(finished.folder, moments, replace(PLAN, marks=(2, 5)))
    with pytest.raises(ValueError, match=r"holds an experiment with edits = \[2, 4\], this one has \[2, 5\]"):
        other.run(progress=False)


def test_a_run_that_stops_leaves_the_base_as_it_was_and_goes_on_in_the_same_process(
    tmp_path: Path, moments, rows: pandas.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_prune.experiment import run

    work, original, calls = make(tmp_path, moments), run.measure, []

    def breaking(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(run, "measure", breaking)
    with pytest.raises(KeyboardInterrupt):
        work.run(progress=False)
    work.run(progress=False)
    found = pandas.DataFrame(Results(PLAN, tmp_path, work.facts()).rows())
    pandas.testing.assert_frame_equal(found, rows, rtol=1e-3, atol=1e-6)


def test_a_model_with_an_adapter_is_no_base(tmp_path: Path, moments) -> None:
    model, tokenizer = load_builtin_model()
    get_peft_model(model, PruneEditConfig(layers_to_transform=[0]))
    with pytest.raises(ValueError, match="model: holds an adapter, the unedited base is needed"):
        Experiment(PLAN, model, tokenizer, REQUESTS, tmp_path, statistics=moments).run(progress=False)


def test_other_requests_material_or_moments_are_another_experiment(finished: Experiment, moments) -> None:
    model, tokenizer = load_builtin_model()
    requests = [replace(REQUESTS[0], target_new="Nowhere"), *REQUESTS[1:]]
    facts = [replace(FACTS[0], object="Nowhere"), *FACTS[1:]]
    for asked, known, statistics, name in (
        (requests, FACTS, moments, "requests_digest"),
        (REQUESTS, facts, moments, "material_digest"),
        (REQUESTS, FACTS, None, "moments"),
    ):
        other = Experiment(
            PLAN, model, tokenizer, asked, finished.folder, statistics=statistics, material=Material(facts=known)
        )
        with pytest.raises(ValueError, match=f"holds an experiment with {name} = "):
            other.run(progress=False)


def test_a_published_experiment_edits_as_the_authors_code_and_is_another_one(finished: Experiment, moments) -> None:
    plan = replace(PLAN, hyperparameters={"layers": (0,)}, published=True)
    own = make(finished.folder, moments, plan).editor
    published = get_editor("rome", published=True, layers=(0,))
    assert own.stronger() is None and own.hyperparameters == published.hyperparameters
    assert make(finished.folder, moments).editor.stronger() is not None
    with pytest.raises(ValueError, match="holds an experiment with published = False, this one has True"):
        make(finished.folder, moments, replace(PLAN, published=True)).run(progress=False)


def test_a_folder_from_before_published_experiments_is_gone_on_with(tmp_path: Path) -> None:
    facts = PLAN.facts()
    with Store(tmp_path / "measurements.sqlite", {name: own for name, own in facts.items() if name != "published"}):
        pass
    with Store(tmp_path / "measurements.sqlite", facts) as store:
        assert Plan.from_facts(store.facts()).published is False
    with pytest.raises(ValueError, match="published"):
        Store(tmp_path / "measurements.sqlite", replace(PLAN, published=True).facts())


def test_the_command_edits_as_published_where_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Experiment, "run", lambda self, **_: (seen.append(self.editor), 1 / 0))
    options = ["--model", "builtin", "--layers", "0", "--edits", "1,2", "--fact-items", "10", "--ability-items", "4"]
    with pytest.raises(ZeroDivisionError):
        main(["experiment", *options, "--out", str(tmp_path / "out"), "--published"])
    assert seen[0].hyperparameters == get_editor("rome", published=True, layers=(0,)).hyperparameters


def test_the_command_asks_for_facts_that_the_model_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Material] = []

    def run(work: Experiment, **_: object) -> None:
        seen.append(work._material)
        raise ZeroDivisionError

    monkeypatch.setattr(Experiment, "run", run)
    facts, edited = tmp_path / "facts.json", [EditRequest.from_record(record) for record in edit_requests(120)]
    free = exclude_subjects([Fact(one["prompt"], one["object"]) for one in known_facts()], edited)[:6]
    known = [{"prompt": fact.prompt, "object": fact.object} for fact in free]
    facts.write_text(json.dumps([*({**fact, "object": "zebra"} for fact in known[:4]), *known]))
    options = ["--model", "builtin", "--layers", "0", "--edits", "1", "--ability-items", "4", "--facts", str(facts)]
    with pytest.raises(ZeroDivisionError):
        main(["experiment", *options, "--out", str(tmp_path / "out"), "--known", "--fact-items", "5"])
    (material,) = seen
    assert len(material.facts) == 5 and set(material.facts) <= set(free)
    assert re.search(r"The model knows [56] of 10 facts", capsys.readouterr().out)


def test_a_folder_in_which_nothing_was_measured_is_named(tmp_path: Path, moments) -> None:
    work = make(tmp_path, moments)
    with pytest.raises(ValueError, match="nothing has been measured there yet"):
        Results(PLAN, tmp_path, work.facts())


def test_experiments_that_differ_in_one_thing_are_compared_pair_by_pair(
    finished: Experiment, moments, rows: pandas.DataFrame, tmp_path: Path
) -> None:
    values = {**PLAN.hyperparameters, "stop": "loss"}
    variants = tuple(Variant.parse(word) for word in ("none", "clip"))
    plan = replace(PLAN, hyperparameters=values, variants=variants, schedules=(Schedule("merge"),))
    work = make(tmp_path, moments, plan)
    work.run(progress=False)
    own, other = Results(plan, tmp_path, work.facts()), Results.load(finished.folder)
    assert json.dumps(other.plan.facts()) == json.dumps(PLAN.facts())
    (found,) = comparisons_against(own, other)
    assert found["pair"] == "rome with stop=loss − with stop=default: none (merge, 4 edits)"
    mine = pandas.DataFrame(own.rows())
    for figure in ("recall", "efficacy_greedy"):
        gap = one(mine, restraint="none", figure=figure).value - one(rows, restraint="none", figure=figure).value
        assert found["figures"][figure]["value"] == pytest.approx(gap)
    assert found in summarize(own, [other])["comparisons"]
    assert "rome with stop=loss − with stop=default" in markdown(summarize(own, [other]))


def test_experiments_on_other_edits_or_material_are_not_compared(finished: Experiment, moments, tmp_path: Path) -> None:
    theirs = Results.load(finished.folder)
    plan = replace(PLAN, marks=(4, 30), variants=PLAN.variants[:1], schedules=PLAN.schedules[:1])
    model, tokenizer = load_builtin_model()
    work = Experiment(plan, model, tokenizer, REQUESTS, tmp_path, statistics=moments, material=Material(facts=FACTS))
    work.plan = replace(plan, marks=(4,))
    work.run(progress=False)
    with pytest.raises(ValueError, match="against: that experiment edited other requests, or in another order"):
        comparisons_against(Results(work.plan, tmp_path, work.facts()), theirs)
    less = Experiment(
        plan, model, tokenizer, REQUESTS, tmp_path, statistics=moments, material=Material(facts=FACTS[:5])
    )
    theirs.facts = less.facts() | {"seeds": 1}
    with pytest.raises(ValueError, match="against: that experiment has material = "):
        comparisons_against(Results(work.plan, tmp_path, work.facts()), theirs)
    with pytest.raises(ValueError, match=r"against: .* holds no experiment"):
        Results.load(tmp_path / "nothing")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_reads_back(tmp_path: Path, rows: pandas.DataFrame, ending: str) -> None:
    path = tmp_path / f"table.{ending}"
    write_table(rows.to_dict("records"), path)
    back = pandas.read_csv(path) if ending == "csv" else pandas.read_parquet(path)
    assert list(back.columns) == list(rows.columns) and len(back) == len(rows)
    assert back["value"].dropna().to_list() == pytest.approx(rows["value"].dropna().to_list(), rel=1e-5)


def test_the_command_writes_table_figures_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = "--model builtin --fact-items 10 --json --table parquet --layers 0 --edits 1,2 --ability-items 4"
    options += " --restraints none,log:2,matched:log:2"
    assert main(["experiment", *options.split(), "--out", str(out)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [line["restraint"] for line in summary["final"]] == ["none", "log:2", "matched:log:2"]
    assert {pair["pair"] for pair in summary["comparisons"]} >= {"log:2 − all of ΔW scaled to the same norm"}
    assert {"abilities", "recall", "perplexity"} == {one["loss"] for one in summary["correlations"]}
    table = pandas.read_parquet(out / "table.parquet")
    assert set(table["edits"]) == {0, 1, 2}
    for name in ("condition_number", "abilities", "editing", "trade_off", "singular_values"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (out / f"{name}.svg").read_text()
    assert "log:2 − none" in (out / "summary.md").read_text()
    assert not list(out.glob(".*.part*"))
    (kept,) = out.glob("second_moments-*.safetensors")
    before = kept.stat().st_mtime_ns
    # the finished experiment again, for people, as CSV and against itself
    words = options.replace("--json --table parquet", "--table csv")
    assert main(["experiment", *words.split(), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "After 2 edits" in captured.out and "matched:log:2" in captured.out and "summary.md" in captured.out
    assert kept.stat().st_mtime_ns == before
    assert len(pandas.read_csv(out / "table.csv")) == len(table)


def test_what_cannot_be_compared_is_said_before_anything_is_measured(
    finished: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "run", lambda *_, **__: pytest.fail("the run began"))
    options = ["--model", "builtin", "--layers", "0", "--edits", "1,2", "--out", str(tmp_path / "out")]
    assert main(["experiment", *options, "--against", str(finished.folder)]) == 2
    assert "against: that experiment has requests = 30, this one 120" in capsys.readouterr().err


def test_figures_that_json_does_not_know_are_null_in_the_summary(finished: Experiment, tmp_path: Path) -> None:
    from peft_prune.cli.experiment import _write

    results = Results(PLAN, finished.folder, finished.facts())
    for point in results.points:
        for own in point.layers.values():
            own["growth"] = float("inf")
    _write(results, [], tmp_path, "csv")

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["final"][0]["layers"]["κ(W₀+ΔW) / κ(W₀)"]["value"] is None


def test_a_figure_that_one_seed_lacks_is_still_drawn_and_counted(finished: Experiment, tmp_path: Path) -> None:
    results = Results(PLAN, finished.folder, finished.facts())
    results.points[0].figures.pop("recall")
    assert any(path.name == "abilities.png" for path in draw_figures(results, tmp_path))
    assert summarize(results)["final"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--edits", "5,x"), "edits: '5,x' must be whole numbers"),
        (("--edits", "500"), "edits: 500 is more than the 120 requests"),
        (("--restraints", "log:0.5"), "alpha: 0.5 must be a finite number above 1"),
        (("--schedule", "often"), "schedule: 'often' is not one of merge, every:N, compounding:N"),
        (("--table", "xls"), "table: 'xls' is not one of parquet, csv"),
        (("--set", "stop=never"), "stop: 'never' is not one of probability, loss"),
        (("--fact-items", "0"), "fact_items: 0 must be at least 1"),
        (
            ("--model", "elsewhere", "--requests", "none.json", "--known"),
            "known: there are no facts to ask; give --facts",
        ),
        (("--ability-items", "-1"), "ability_items: -1 must be at least 1"),
    ],
)
def test_bad_options_give_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, options, message: str) -> None:
    assert main(["experiment", "--model", "builtin", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.md").write_text("my own")
    assert main(["experiment", "--model", "builtin", "--edits", "1", "--out", str(tmp_path)]) == 2
    assert "is no experiment's folder, it holds summary.md; give another folder" in capsys.readouterr().err
    assert main(["experiment", "--model", "builtin", "--edits", "1", "--out", str(tmp_path / "summary.md")]) == 2
    assert "summary.md is a file; give a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["summary.md"]


def test_a_csv_table_needs_no_pandas_and_parquet_says_what_it_needs(
    tmp_path: Path, rows: pandas.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = rows.to_dict("records")
    monkeypatch.setitem(sys.modules, "pandas", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pandas" else find(name, *a))
    write_table(records, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().count("\n") == len(records) + 1
    with pytest.raises(MissingPackageError, match="pandas and pyarrow are not installed"):
        write_table(records, tmp_path / "table.parquet")


def test_abilities_asked_in_chat_are_other_material_and_plain_ones_that_of_before() -> None:
    plain = Ability("other", (AbilityItem("east", ("ten",)),), ("match",))
    of = {ask: Material(abilities={"other": replace(plain, ask=ask)}).digest() for ask in ("plain", "chat")}
    item = {"prompt": "east", "answers": ("ten",)}
    before = {"name": "other", "items": (item,), "metrics": ("match",), "stop": "\n", "max_new_tokens": None}
    assert of["plain"] == digest([[], [], {"other": before}]) != of["chat"]
