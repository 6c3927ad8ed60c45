"""Edits of fused experts: keys, second moments and updates against the formulas in float64; sessions, undo, resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from peft_prune import EditRequest, EditSession, PruneEditConfig, UnsupportedModelError
from peft_prune.editors import MEMIT, ROME, collect_second_moments, get_editor
from peft_prune.editors.keys import added
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.errors import EditFailedError
from peft_prune.session.verification import verify
from tests.editors.test_rome import EASY, TEXTS
from tests.expert_models import BESIDE_SHARED, EXPERTS, MIXTURES, calls, dense_key, experts_of, mixture
from tests.talking import spaced_tokenizer

PLACE = "model.layers.1.mlp.experts"
REQUESTS = [EditRequest("note sea {}", subject, "ten") for subject in ("sane ant", "oats east", "tea")]
MORE = [*REQUESTS, EditRequest("note sea {}", "nest tan", "tan"), EditRequest("note sea {}", "stone tan", "tan")]
BARE = replace(EASY, context_lengths=(), average_key=False, mom2_shrinkage=1e-3, experts="routed")
every_family = pytest.mark.parametrize("family", MIXTURES)


def moments_of(family: str, model: Any, layers=(1,)):
    names = [f"model.layers.{layer}.mlp.experts.down.{index}" for layer in layers for index in range(EXPERTS)]
    return collect_second_moments(model, spaced_tokenizer(), TEXTS, names, progress=False)


def key_at(family: str, model: Any, request: EditRequest) -> dict[int, Tensor]:
    """gate · k of each expert that the subject's last token is routed to, float64."""
    (prompt,) = tokenize_prompts(spaced_tokenizer(), [request.prompt], request.subject)
    experts = experts_of(model, 1)
    (((x, index, gates), _),) = calls(experts, lambda: model(torch.tensor([prompt.ids])))
    at = prompt.subject_last
    pairs = zip(index[at].tolist(), gates[at].double(), strict=True)
    return {own: gate * dense_key(family, experts, own, x[at]) for own, gate in pairs}


def dense_moments(family: str, model: Any) -> tuple[dict[int, Tensor], int]:
    experts, tokenizer = experts_of(model, 1), spaced_tokenizer()
    sums, tokens = dict[int, Tensor](), 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        (((x, index, gates), _),) = calls(experts, lambda ids=ids: model(ids))
        tokens += ids.numel()
        for at in range(len(x)):
            for own, gate in zip(index[at].tolist(), gates[at].double(), strict=True):
                key = gate * dense_key(family, experts, own, x[at])
                sums[own] = sums.get(own, 0) + torch.outer(key, key)
    return {own: total / tokens for own, total in sums.items()}, tokens


@every_family
def test_second_moments_are_those_of_the_tokens_routed_to_each_expert(family: str) -> None:
    model = mixture(family)
    found, (wanted, tokens) = moments_of(family, model), dense_moments(family, model)
    assert found.tokens == tokens and set(found.moments) == {f"{PLACE}.down.{own}" for own in wanted}
    for own, moment in wanted.items():
        assert torch.allclose(found.moments[f"{PLACE}.down.{own}"].double(), moment, atol=1e-4 * float(moment.max()))


@every_family
def test_rome_solves_for_the_experts_side_by_side(family: str) -> None:
    """u = C⁻¹ (g₁k₁, g₂k₂) with C block-diagonal, and the token's output then moves by v* - v."""
    model, tokenizer = mixture(family), spaced_tokenizer()
    statistics, editor = moments_of(family, model), ROME(BARE)
    edit = editor.compute(model, tokenizer, REQUESTS[:1], editor.prepare(model, tokenizer, statistics))
    keys = key_at(family, model, REQUESTS[0])
    assert set(edit.updates) == {f"{PLACE}.down.{own}" for own in keys} and edit.is_separable
    solved, along = {}, 0.0
    for own, key in keys.items():
        moment = statistics.moments[f"{PLACE}.down.{own}"].double()
        diagonal = moment.diagonal()
        scale = diagonal.clamp(max=100 * float(diagonal[diagonal > 0].median())).mean()
        solved[own] = torch.linalg.solve(moment + 1e-3 * scale * torch.eye(len(moment)), key)
        along += float(solved[own] @ key)
    column = next(iter(edit.updates.values())).B[:, 0].double()
    norm = torch.cat(list(solved.values())).norm()
    for own, direction in solved.items():
        update = edit.updates[f"{PLACE}.down.{own}"]
        expected = torch.outer(column, direction / norm)
        assert update.rank == 1
        assert torch.allclose(update.dense().double(), expected, atol=1e-4 * float(expected.abs().max()))
    moved = sum(edit.updates[f"{PLACE}.down.{own}"].dense().double() @ key for own, key in keys.items())
    (prompt,) = tokenize_prompts(tokenizer, [REQUESTS[0].prompt], REQUESTS[0].subject)
    ids = torch.tensor([prompt.ids])
    outputs = []
    for updates in ({}, edit.updates):
        with added(model, updates):
            outputs.append(calls(experts_of(model, 1), lambda: model(ids))[-1][1][prompt.subject_last].double())
    assert torch.allclose(moved, column * along / norm, rtol=1e-4, atol=1e-4 * float(moved.norm()))
    assert torch.allclose(outputs[1] - outputs[0], moved, rtol=1e-3, atol=1e-3 * float(moved.norm()))


@every_family
def test_memit_solves_for_the_experts_side_by_side(family: str) -> None:
    """R Kᵀ (λC + K Kᵀ)⁻¹ with the keys of all experts one under the other and C block-diagonal."""
    model, tokenizer = mixture(family), spaced_tokenizer()
    statistics = moments_of(family, model)
    values = {"layers": (1,), "context_lengths": (), "mom2_update_weight": 3.0, "mom2_shrinkage": 1e-3}
    values["experts"] = "routed"
    editor = MEMIT(v_num_grad_steps=3, **values)
    edit = editor.compute(model, tokenizer, REQUESTS, editor.prepare(model, tokenizer, statistics))
    keys = [key_at(family, model, request) for request in REQUESTS]
    names = sorted({own for key in keys for own in key})
    width = len(next(iter(keys[0].values())))
    K = torch.stack([torch.cat([key.get(own, torch.zeros(width).double()) for own in names]) for key in keys], dim=1)
    blocks = []
    for own in names:
        moment = statistics.moments[f"{PLACE}.down.{own}"].double()
        diagonal = moment.diagonal()
        scale = diagonal.clamp(max=100 * float(diagonal[diagonal > 0].median())).mean()
        blocks.append(3.0 * (moment + 1e-3 * scale * torch.eye(width)))
    rows = torch.linalg.solve(torch.block_diag(*blocks) + K @ K.T, K).T
    assert set(edit.updates) == {f"{PLACE}.down.{own}" for own in names}
    for own, part in zip(names, rows.split(width, dim=1), strict=True):
        update, owners = edit.updates[f"{PLACE}.down.{own}"], edit.owners[f"{PLACE}.down.{own}"]
        assert torch.allclose(update.A.double(), part[list(owners)], atol=1e-4 * float(rows.abs().max()))
        assert torch.allclose(edit.keys[f"{PLACE}.down.{own}"].double().T, K.split(width)[names.index(own)], atol=1e-4)


def stacked(edit: Any, keys: list[dict[int, Tensor]]) -> tuple[list[int], Tensor, Tensor]:
    """The experts of the keys, A of all of them side by side, (n, in), and the keys, (in, n), float64."""
    names = sorted({own for key in keys for own in key})
    width = len(next(iter(keys[0].values())))
    K = torch.stack([torch.cat([key.get(own, torch.zeros(width).double()) for own in names]) for key in keys], dim=1)
    A = torch.zeros(len(keys), len(names), width, dtype=torch.float64)
    for place, own in enumerate(names):
        module = f"{PLACE}.down.{own}"
        A[list(edit.owners[module]), place] = edit.updates[module].A.double()
    return names, A.flatten(1), K


def test_emmet_takes_the_values_exactly_and_alphaedit_stays_in_each_null_space() -> None:
    model, tokenizer = mixture("qwen3_moe"), spaced_tokenizer()
    statistics = moments_of("qwen3_moe", model)
    keys = [key_at("qwen3_moe", model, request) for request in REQUESTS]
    options = {"layers": (1,), "context_lengths": (), "v_num_grad_steps": 2}
    emmet = get_editor("emmet", ridge=0.0, mom2_shrinkage=1e-3, **options)
    edit = emmet.compute(model, tokenizer, REQUESTS, emmet.prepare(model, tokenizer, statistics))
    _, A, K = stacked(edit, keys)
    assert torch.allclose(A @ K, torch.eye(len(REQUESTS), dtype=torch.float64), atol=1e-3)
    middle = {
        name: float(torch.linalg.eigvalsh(moment.double()).median()) for name, moment in statistics.moments.items()
    }
    threshold = max(middle.values())
    alpha = get_editor("alphaedit", nullspace_threshold=threshold, L2=0.5, **options)
    edit = alpha.compute(model, tokenizer, REQUESTS, alpha.prepare(model, tokenizer, statistics))
    names, A, K = stacked(edit, keys)
    projections = []
    for own in names:
        values, vectors = torch.linalg.eigh(statistics.moments[f"{PLACE}.down.{own}"].double())
        kept = vectors[:, values < threshold]
        projections.append(kept @ kept.T)
    P = torch.block_diag(*projections)
    expected = torch.linalg.solve(P @ K @ K.T + 0.5 * torch.eye(len(P), dtype=torch.float64), P @ K).T
    assert torch.allclose(A, expected, atol=1e-4 * float(expected.abs().max()))


def session(model: Any, family: str, history=None, editor=None) -> EditSession:
    config = PruneEditConfig(layers_to_transform=[1], experts="routed", restraint="none")
    adapted = get_peft_model(model, config).eval()
    return EditSession(
        adapted,
        spaced_tokenizer(),
        ROME(BARE) if editor is None else editor,
        statistics=moments_of(family, mixture(family)),
        history=history,
    )


def said(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


@every_family
def test_a_session_edits_experts_undoes_saves_and_resumes(tmp_path, family: str) -> None:
    with session(mixture(family), family, tmp_path / "edits.db") as run:
        results = [result for result in run.edit(MORE) if result.took]
        assert len(results) > 1
        everything = said(run.model)
        run.undo(results[-1].id)
        without = said(run.model)
        assert not torch.allclose(without, everything, atol=1e-3)
        run.save(tmp_path / "adapter")
        saved = said(run.model)
        figures = [layer.figures("default") for _, layer in run.model.edited_layers() if layer.rank("default")]
        assert figures and all(one.condition.condition_number > 1 for one in figures)
    loaded = PeftModel.from_pretrained(mixture(family), tmp_path / "adapter", strict_base=True).eval()
    assert torch.allclose(said(loaded), saved, atol=1e-4)
    statistics = moments_of(family, mixture(family))
    with EditSession.resume(
        tmp_path / "edits.db", mixture(family), spaced_tokenizer(), ROME(BARE), statistics=statistics
    ) as run:
        assert torch.allclose(said(run.model), without, atol=1e-4)
        for result in results[:-1]:
            run.undo(result.id)
        assert torch.allclose(said(run.model), said(mixture(family)), atol=1e-5)


def test_edits_one_after_another_keep_the_outputs_of_the_earlier_ones(tmp_path) -> None:
    """MEMIT's history: the earlier keys enter each expert's own system."""
    values = {"layers": (1,), "context_lengths": (), "mom2_update_weight": 0.1, "mom2_shrinkage": 1e-3}
    editor = MEMIT(v_num_grad_steps=40, clamp_norm_factor=20.0, **values)
    with session(mixture("qwen3_moe"), "qwen3_moe", tmp_path / "edits.db", editor) as run:
        for request in REQUESTS:
            run.edit([request])
        assert sum(one.holds for one in verify(run.model, run.tokenizer, REQUESTS)) == len(REQUESTS)


def test_an_expert_that_no_text_went_through_is_left_alone_and_some_must_be_known() -> None:
    model, tokenizer = mixture("mixtral"), spaced_tokenizer()
    statistics, keys = moments_of("mixtral", model), key_at("mixtral", model, REQUESTS[0])
    first, *others = keys
    known = {name: moment for name, moment in statistics.moments.items() if not name.endswith(f".{first}")}
    editor = ROME(BARE)
    edit = editor.compute(
        model, tokenizer, REQUESTS[:1], editor.prepare(model, tokenizer, replace(statistics, moments=known))
    )
    assert set(edit.updates) == {f"{PLACE}.down.{own}" for own in others}
    unknown = {name: moment for name, moment in known.items() if int(name[-1]) not in keys}
    spread = MEMIT(layers=(1,), context_lengths=(), v_num_grad_steps=2)
    with pytest.raises(EditFailedError, match="no second moment is known"):
        spread.compute(
            model, tokenizer, REQUESTS[:1], spread.prepare(model, tokenizer, replace(statistics, moments=unknown))
        )


def test_an_editor_that_trains_weights_says_which_editors_edit_experts() -> None:
    with pytest.raises(UnsupportedModelError, match=r"by ft; .*memit.*rome.* edit experts"):
        get_editor("ft").layers(mixture("mixtral"))
    assert get_editor("rome", layers=(0,)).modules(mixture("mixtral")) == [
        f"model.layers.0.mlp.experts.down.{index}" for index in range(EXPERTS)
    ]


SHARED = {
    "deepseek_v3": "model.layers.1.mlp.shared_experts.down_proj",
    "qwen2_moe": "model.layers.1.mlp.shared_expert.down_proj",
}


@pytest.mark.parametrize("family", BESIDE_SHARED)
@pytest.mark.parametrize("choice", ["shared", "routed"])
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_session_edits_the_shared_expert_or_the_routed_ones(tmp_path, family: str, choice: str, method: str) -> None:
    """By the editor's setting alone, also where the session itself puts the adapter on."""
    values = {"layers": (1,), "context_lengths": (), "mom2_shrinkage": 1e-3, "v_num_grad_steps": 25}
    values |= {"mom2_update_weight": 0.1} if method == "memit" else {}
    editor = get_editor(method, model=mixture(family), experts=choice, clamp_norm_factor=20.0, **values)
    modules = editor.modules(mixture(family))
    routed = [f"{PLACE}.down.{index}" for index in range(EXPERTS)]
    assert modules == ([SHARED[family]] if choice == "shared" else routed)
    base, tokenizer = mixture(family), spaced_tokenizer()
    before, weights = said(base), {name: value.clone() for name, value in base.state_dict().items()}
    statistics = collect_second_moments(base, tokenizer, TEXTS, modules, progress=False)
    history, folder = tmp_path / "edits.db", tmp_path / "adapter"
    with EditSession(base, tokenizer, editor, statistics=statistics, history=history, on_failure="keep") as run:
        results = run.edit(REQUESTS)
        assert sum(result.took for result in results) > 1
        assert {name for name, layer in run.model.edited_layers() if layer.rank("default")} <= set(modules)
        run.undo(results[-1].id)
        run.save(folder)
        edited = said(run.model)
        assert not torch.allclose(edited, before, atol=1e-3)
    loaded = PeftModel.from_pretrained(mixture(family), folder, strict_base=True).eval()
    assert torch.allclose(said(loaded), edited, atol=1e-4)
    merged = loaded.merge_and_unload()
    assert torch.allclose(said(merged), edited, atol=1e-4)
    changed = {name for name, value in weights.items() if not torch.equal(merged.state_dict()[name], value)}
    assert changed == {f"{SHARED[family]}.weight" if choice == "shared" else f"{PLACE}.down_proj"}
    with EditSession.resume(history, mixture(family), tokenizer, statistics=statistics) as run:
        assert run.workspace.editor.experts == choice and torch.allclose(said(run.model), edited, atol=1e-4)
        for result in results[:-1]:
            run.undo(result.id)
        assert torch.allclose(said(run.model), before, atol=1e-5)


def test_what_a_memit_edit_weighs_follows_from_the_width_of_the_experts_it_edits() -> None:
    model = mixture("qwen2_moe")
    widths = {"shared": model.config.shared_expert_intermediate_size}
    widths["routed"] = EXPERTS * model.config.moe_intermediate_size
    for choice, width in widths.items():
        found = get_editor("memit", model=model, experts=choice).hyperparameters
        assert found.experts == choice and found.mom2_update_weight == 0.25 * width


def test_an_adapter_of_the_shared_expert_and_an_editor_of_the_routed_ones_do_not_fit() -> None:
    adapted = get_peft_model(mixture("deepseek_v3"), PruneEditConfig(layers_to_transform=[1])).eval()
    with pytest.raises(ValueError, match=r"does not adapt .*experts\.down\.0.*PruneEditConfig\(experts='routed'\)"):
        EditSession(
            adapted, spaced_tokenizer(), ROME(BARE), statistics=moments_of("deepseek_v3", mixture("deepseek_v3"))
        )
    with pytest.raises(ValueError, match="experts: 'every' is not one of shared, routed"):
        get_editor("memit", experts="every")
    with pytest.raises(ValueError, match="experts: is no hyperparameter of ft"):
        get_editor("ft", experts="routed")
