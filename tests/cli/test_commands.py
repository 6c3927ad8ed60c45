"""The commands, end to end, on a tiny model with a tokenizer of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peft_prune.cli import main
from tests.talking import spaced_tokenizer
from tests.tiny import willing

SUBJECTS = ("sane ant", "tone seat", "oats tea", "nest son")
FIGURES = ("efficacy", "generalization", "locality")


def record(subject: str, target: str = "ten") -> dict[str, object]:
    return {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "note sea {}",
            "relation_id": "P1",
            "target_new": {"str": target},
            "target_true": {"str": "net"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"tan {subject} eat"],
        "neighborhood_prompts": ["note stone eat sea", "note toast sea"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, requests, facts and texts as a user would have them."""
    folder = tmp_path_factory.mktemp("work")
    willing("gpt2").save_pretrained(folder / "model")
    spaced_tokenizer().save_pretrained(folder / "model")
    (folder / "requests.json").write_text(json.dumps([record(subject) for subject in SUBJECTS]))
    words = "ant eat tan nest oats sea note tone seat east soot toast stone tea net ten son too nose sane".split()
    texts = [" ".join(words[(7 * i + 3 * j) % 20] for j in range(12)) for i in range(40)]
    (folder / "texts.json").write_text(json.dumps(texts))
    facts = [{"prompt": " ".join(text.split()[:5]), "object": text.split()[5]} for text in texts]
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def edit(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, *more: object) -> dict[str, object]:
    code, output, errors = run(
        capsys, "edit", "--model", folder / "model", "--requests", folder / "requests.json", "--layers", 1,
        "--stats-text", folder / "texts.json", "--set", "v_num_grad_steps=40", "--set", "clamp_norm_factor=20",
        "--set", "context_lengths=[[4, 3]]", "--editor", "rome", "--batch-size", 1, "--out", out, "--json", *more,
    )  # fmt: skip
    assert code == 0, errors
    return json.loads(output)


@pytest.fixture
def adapter(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> Path:
    edit(capsys, folder, tmp_path / "adapter", "--restraint", "none")
    return tmp_path / "adapter"


def test_edit_prints_its_contract_and_writes_an_adapter(capsys, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    result = edit(capsys, folder, out)
    assert set(result) == {"requested", "applied", "failed", "consolidated", "weakened", "lost", "adapter"}
    assert result["requested"] == 4 and result["adapter"] == str(out)
    assert result["applied"] + len(result["failed"]) == 4 and result["applied"] >= 3
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["restrained"] is True and settings["edits"] == result["applied"]
    assert settings["base_model_name_or_path"] == "model"
    assert not any(str(folder) in path.read_text(errors="replace") for path in out.iterdir())
    factors = load_file(out / "adapter_model.safetensors")
    assert {tensor.shape for name, tensor in factors.items() if ".prune_edit_A." in name} == {(result["applied"], 64)}


def test_evaluate_prints_its_contract(capsys, folder: Path, adapter: Path) -> None:
    code, output, errors = run(
        capsys, "evaluate", "--model", folder / "model", "--adapter", adapter, "--requests", folder / "requests.json",
        "--facts", folder / "facts.json", "--text", folder / "texts.json", "--json",
    )  # fmt: skip
    assert code == 0, errors
    figures = json.loads(output)
    assert set(figures) == {"n_requests", "before", "after", "layers", "restrained"}
    assert figures["n_requests"] == 4 and figures["restrained"] is False
    for moment in ("before", "after"):
        names = [name + form for name in FIGURES for form in ("", "_greedy")] + ["recall"]
        assert set(figures[moment]) == {*names, "perplexity"}
        assert all(set(figures[moment][name]) == {"value", "n", "low", "high"} for name in names)
        assert figures[moment]["perplexity"] > 1
    assert figures["after"]["efficacy_greedy"]["value"] >= 0.75 > figures["before"]["efficacy_greedy"]["value"]
    assert figures["before"]["locality_greedy"]["value"] == 1.0
    (layer,) = figures["layers"].values()
    assert list(figures["layers"]) == ["transformer.h.1.mlp.c_proj"]
    weight = AutoModelForCausalLM.from_pretrained(folder / "model").transformer.h[1].mlp.c_proj.weight.T.double()
    tensors = load_file(adapter / "adapter_model.safetensors")
    up, down = (next(t for n, t in tensors.items() if f".prune_edit_{f}." in n).double() for f in "BA")
    spectrum, edited = torch.linalg.svdvals(weight), torch.linalg.svdvals(weight + up @ down)
    assert layer["rank"] == up.shape[1]
    assert layer["sigma_max_base"] == pytest.approx(float(spectrum[0]), rel=1e-4)
    assert layer["delta_spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(up @ down, 2)), rel=1e-4)
    assert layer["condition_number_base"] == pytest.approx(float(spectrum[0] / spectrum[-1]), rel=1e-3)
    assert layer["condition_number"] == pytest.approx(float(edited[0] / edited[-1]), rel=1e-3)


def test_restrain_shrinks_a_saved_update_and_refuses_to_do_it_twice(capsys, folder, adapter, tmp_path) -> None:
    out = tmp_path / "restrained"
    arguments = ("--model", folder / "model", "--restraint", "clip", "--out")
    code, output, errors = run(capsys, "restrain", adapter, *arguments, out, "--json")
    assert code == 0, errors
    (layer,) = json.loads(output)["layers"].values()
    assert layer["delta_spectral_norm"] == pytest.approx(layer["sigma_max_base"], rel=1e-4)
    assert json.loads((out / "adapter_config.json").read_text())["restrained"] is True
    code, _, errors = run(capsys, "restrain", out, *arguments, tmp_path / "twice")
    assert code == 2 and "already restrained" in errors and not (tmp_path / "twice").exists()


def test_restrain_does_what_it_is_asked_for_whatever_the_adapter_says_of_single_layers(
    capsys, folder, adapter, tmp_path
) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "restraint_pattern": {"c_proj": "none"}}))
    arguments = ("restrain", adapter, "--model", folder / "model", "--out", tmp_path / "restrained")
    for options, message in (
        (("--max-rank", 0), "max_rank: 0 must be an integer of at least 1"),
        (("--restraint", "none"), "restraint: 'none' leaves the adapter as it is"),
        (("--alpha", 1), "alpha: 1.0 must be a finite number above 1"),
    ):
        code, _, errors = run(capsys, *arguments, *options)
        assert code == 2 and message in errors and not (tmp_path / "restrained").exists()
    code, output, errors = run(capsys, *arguments, "--restraint", "clip", "--json")
    (layer,) = json.loads(output)["layers"].values()
    assert code == 0 and layer["delta_spectral_norm"] == pytest.approx(layer["sigma_max_base"], rel=1e-4), errors


def test_a_setting_is_read_as_python_writes_it_too(capsys, folder, tmp_path) -> None:
    arguments = ["edit", "--model", folder / "model", "--requests", folder / "requests.json", "--layers", 1]
    arguments += ["--editor", "rome"]
    arguments += ["--limit", 1, "--set", "v_num_grad_steps=25", "--set", "clamp_norm_factor=20"]
    code, _, errors = run(capsys, *arguments, "--set", "mom2_adjustment=False", "--out", tmp_path / "out")
    assert code == 0, errors


def test_without_texts_the_model_writes_its_own_and_they_are_kept(capsys, folder, tmp_path, own_cache) -> None:
    arguments = ["edit", "--model", folder / "model", "--requests", folder / "requests.json", "--layers", 1]
    arguments += ["--editor", "rome"]
    arguments += ["--limit", 1, "--set", "clamp_norm_factor=20", "--stats-tokens", 500, "--editor", "rome"]
    kept = own_cache / "moments"
    before = set(kept.glob("*")) if kept.exists() else set()
    code, _, errors = run(capsys, *arguments, "--out", tmp_path / "first")
    (moments,) = set(kept.glob("*")) - before
    assert code == 0 and "500 tokens that the model writes itself" in errors and str(kept) in errors
    made = moments.stat().st_mtime_ns
    code, _, errors = run(capsys, *arguments, "--out", tmp_path / "second")
    assert code == 0 and "writes itself" not in errors and moments.stat().st_mtime_ns == made
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    moments.write_bytes(b"damaged")
    code, _, errors = run(capsys, *arguments, "--out", tmp_path / "third")
    assert code == 0 and "writes itself" in errors
    code, _, errors = run(capsys, *arguments, "--stats-tokens", 0, "--out", tmp_path / "fourth")
    assert code == 2 and "stats_tokens: 0 must be at least 1" in errors


def test_merge_writes_a_plain_checkpoint_that_answers_like_the_adapter(capsys, folder, adapter, tmp_path) -> None:
    from peft import PeftModel

    out = tmp_path / "checkpoint"
    code, _, errors = run(capsys, "merge", adapter, "--model", folder / "model", "--out", out)
    assert code == 0, errors
    merged = AutoModelForCausalLM.from_pretrained(out).eval()
    edited = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), adapter).eval()
    ids = torch.arange(10)[None]
    assert not any("prune_edit" in name for name, _ in merged.named_parameters())
    assert torch.allclose(merged(ids).logits, edited(ids).logits, rtol=1e-3, atol=1e-3)
    assert (out / "tokenizer.json").is_file()


def test_the_tables_show_the_same_figures_to_a_person(capsys, folder: Path, adapter: Path) -> None:
    code, output, _ = run(
        capsys, "evaluate", "--model", folder / "model", "--adapter", adapter, "--requests", folder / "requests.json"
    )
    assert code == 0
    assert "efficacy" in output and "κ" in output and "The adapter is not restrained." in output


def bad_requests(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "bad.json"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no records"),
        ("{", "is not valid JSON"),
        (
            json.dumps([record("sane ant"), {"prompt": "note sea {}", "subject": "ant"}]),
            "record 1: target_new: is missing",
        ),
        (json.dumps([record("sane ant", target=" ")]), "record 0: target_new: ' ' is empty"),
        (
            json.dumps([{"prompt": "note sea", "subject": "ant", "target_new": "ten"}]),
            "record 0: prompt: 'note sea' must",
        ),
    ],
)
def test_bad_requests_give_one_line_code_two_and_no_folder(capsys, folder, tmp_path, content, message) -> None:
    code, output, errors = run(
        capsys, "edit", "--model", folder / "model", "--requests", bad_requests(tmp_path, content), "--layers", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2 and output == "" and message in errors and errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", 9), "layer: 9 does not exist, the model has layers 0 to 2"),
        (("--layers", "one"), "layers: 'one' must be numbers"),
        (("--layers", 1, "--editor", "magic"), "editor: 'magic' is not one of alphaedit, emmet"),
        (("--layers", 1, "--set", "speed=3"), "speed: is no hyperparameter of rome"),
        (("--layers", 1, "--set", "v_lr=fast"), "v_lr: 'fast' must be a number"),
        (("--layers", 1, "--set", "v_num_grad_steps=.5"), "v_num_grad_steps: 0.5 must be a whole number"),
        (("--layers", 1, "--set", "average_key=1"), "average_key: 1 must be true or false"),
        (("--layers", 1, "--alpha", 1), "alpha: 1.0 must be a finite number above 1"),
        (("--layers", 1, "--restraint", "cube"), "restraint: 'cube' is not one of"),
        (("--layers", 1, "--limit", 0), "limit: 0 must be at least 1"),
        (("--layers", 1, "--stats-text", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--layers", 1, "--dtype", "int8"), "dtype: 'int8' is not one of"),
    ],
)
def test_bad_options_name_the_thing_and_what_is_accepted(capsys, folder, tmp_path, options, message) -> None:
    arguments = ("--model", folder / "model", "--requests", folder / "requests.json", "--out", tmp_path / "out")
    code, _, errors = run(capsys, "edit", *arguments, "--editor", "rome", *options)
    assert code == 2 and message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_exist_and_a_damaged_adapter_are_named(capsys, folder, adapter, tmp_path) -> None:
    requests = ("--requests", folder / "requests.json")
    code, _, errors = run(capsys, "evaluate", "--model", tmp_path / "none", "--adapter", adapter, *requests)
    assert code == 2 and "none' does not exist" in errors and errors.count("\n") == 1
    code, _, errors = run(capsys, "evaluate", "--model", folder / "model", "--adapter", tmp_path / "no", *requests)
    assert code == 2 and "holds no adapter_config.json" in errors
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "adapter_config.json").write_text("[]")
    code, _, errors = run(capsys, "evaluate", "--model", folder / "model", "--adapter", tmp_path / "list", *requests)
    assert code == 2 and "adapter_config.json must hold a JSON object" in errors
    code, _, errors = run(capsys, "evaluate", "--model", tmp_path / "list", "--adapter", adapter, *requests)
    assert code == 2 and "is no model's folder, it has no config.json" in errors
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, errors = run(capsys, "merge", adapter, "--model", folder / "model", "--out", tmp_path / "out")
    assert code == 2 and str(adapter) in errors and "cannot be read" in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept_unless_overwriting_is_asked_for(capsys, folder, adapter, tmp_path) -> None:
    arguments = ("merge", adapter, "--model", folder / "model", "--out", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, errors = run(capsys, *arguments)
    assert code == 2 and "--overwrite" in errors and (tmp_path / "out" / "mine.txt").read_text() == "mine"
    code, _, _ = run(capsys, *arguments, "--overwrite")
    assert code == 0 and not (tmp_path / "out" / "mine.txt").exists()


def test_nothing_is_written_when_no_edit_took(capsys, folder, tmp_path) -> None:
    arguments = ("--model", folder / "model", "--requests", folder / "requests.json", "--out", tmp_path / "out")
    weak = ("--set", "clamp_norm_factor=0.0001", "--set", "mom2_adjustment=false")
    code, _, errors = run(capsys, "edit", *arguments, "--layers", 1, "--editor", "rome", *weak)
    assert code == 2 and "none of 4 edits took" in errors and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("edit", "--nonsense"), "No such option: --nonsense"),
        (("evaluate",), "Missing option '--model'"),
        (("evaluate", "--limit", "few"), "Invalid value for '--limit'"),
        (("repair",), "No such command 'repair'"),
    ],
)
def test_what_is_no_command_line_gives_one_line(capsys, arguments, message) -> None:
    code, output, errors = run(capsys, *arguments)
    assert code == 2 and output == "" and message in errors and errors.count("\n") == 1


def test_evaluate_adds_abilities_fluency_and_differences_where_they_are_asked_for(capsys, folder, adapter) -> None:
    facts = json.loads((folder / "facts.json").read_text())
    (folder / "tasks.json").write_text(json.dumps([{"prompt": f["prompt"], "answer": f["object"]} for f in facts]))
    questions = [{"question": f["prompt"], "answer": [f["object"], "ten"]} for f in facts]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    arguments = ("evaluate", "--model", folder / "model", "--adapter", adapter, "--requests", folder / "requests.json")
    arguments += ("--abilities", folder / "tasks.json", folder / "questions.jsonl", "--ability-items", 7)
    code, output, errors = run(capsys, *arguments, "--fluency", 4, "--full", "--json")
    assert code == 0, errors
    figures = json.loads(output)
    assert figures["ability_ask"] == "plain"
    for moment in ("before", "after"):
        assert set(figures[moment]["abilities"]) == {"other", "question_answering"}
        assert all(figure["n"] == 7 for figure in figures[moment]["abilities"].values())
        assert figures[moment]["fluency"]["n"] == 4
        assert {"score", "score_greedy"} <= set(figures[moment])
    gap = figures["difference"]["efficacy_greedy"]
    assert gap["value"] == figures["after"]["efficacy_greedy"]["value"] - figures["before"]["efficacy_greedy"]["value"]
    assert gap["low"] <= gap["value"] <= gap["high"]
    code, output, _ = run(capsys, *arguments, "--full")
    assert code == 0 and "After minus before" in output and "other" in output
    for command in (arguments, ("experiment", *arguments[1:3], "--abilities", folder / "tasks.json", "--edits", 1)):
        rest = () if command is arguments else ("--requests", folder / "requests.json", "--out", folder / "results")
        for word, message in (("both", "ability_ask: 'both' is not one of plain, chat"), ("chat", "no chat template")):
            code, _, errors = run(capsys, *command, *rest, "--ability-ask", word)
            assert code == 2 and message in errors and errors.count("\n") == 1


def test_abilities_of_one_form_keep_names_of_their_own(tmp_path: Path) -> None:
    from peft_prune.cli.models import load_abilities

    paths = [tmp_path / name / "more.json" for name in ("a", "b", "c", "d")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps([{"prompt": str(path), "answer": "x"}]))
    found = load_abilities(paths, 5)
    assert list(found) == ["other", "more", "more-2", "more-3"]
    assert [ability.items[0].prompt for ability in found.values()] == [str(path) for path in paths]


def test_an_option_may_have_several_values_or_be_repeated() -> None:
    from peft_prune.cli.command import repeated

    given = ["--base", "b", "--edited", "x", "y", "--out", "o", "--edited", "z", "--json"]
    assert repeated(given, {"--edited"}) == [
        *("--base", "b", "--edited", "x", "--edited", "y", "--out", "o", "--edited", "z", "--json")
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--gguf-type", "q8_0"), "gguf_type: acts together with --gguf alone"),
        (("--gguf", "none.gguf", "--quantization", "8bit"), "gguf: is written from a base in full precision"),
        (("--gguf", "none.gguf", "--gguf-type", "q2_k"), "quantization: 'q2_k' is not one of keep, f16, q8_0, q4_0"),
        (("--gguf", "none.gguf", "--dtype", "float16"), "dtype: does not go with --gguf"),
        (("--gguf", "none.gguf"), "gguf: none.gguf is no file"),
    ],
)
def test_what_merge_cannot_write_into_a_gguf_is_one_line(capsys, folder, adapter, words, said, tmp_path) -> None:
    pytest.importorskip("gguf")
    code, _, errors = run(capsys, "merge", adapter, "--model", folder / "model", "--out", tmp_path / "x", *words)
    assert code == 2 and said in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
