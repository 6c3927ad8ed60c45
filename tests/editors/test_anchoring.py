"""Norm anchoring of v*: the published scaling in dense float64, and where its reference comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peft_prune.editors import ROME, Prepared, get_editor
from peft_prune.editors.anchoring import KEPT, anchor_norm
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.editors.values import ValueSettings, anchored, optimize_values
from peft_prune.models.mlp import mlp_output_module
from tests.editors.test_rome import EASY, REQUEST, prepared
from tests.editors.test_spread import REQUESTS, ready
from tests.session.scene import REQUESTS as ASKED
from tests.session.scene import resumed, session
from tests.talking import spaced_tokenizer
from tests.tiny import willing


def mlp_output(model, tokenizer, request, layer: int) -> torch.Tensor:
    """What the MLP gives at the subject's last token of the bare prompt, by a hook of its own."""
    (prompt,) = tokenize_prompts(tokenizer, [request.prompt], request.subject)
    seen = []
    handle = mlp_output_module(model, layer)[1].register_forward_hook(
        lambda module, args, output: seen.append(output.detach().reshape(-1, output.shape[-1])[prompt.subject_last])
    )
    model(torch.tensor([prompt.ids]))
    handle.remove()
    return seen[0].double()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["mlp", "residual", "block"])
def test_every_value_gets_the_reference_norm_as_an_output_of_the_mlp(kind: str, site: str) -> None:
    model, tokenizer = willing(kind), spaced_tokenizer()
    settings = ValueSettings(steps=3, learning_rate=0.1, site=site, clamp_factor=20.0)
    free = optimize_values(model, tokenizer, REQUESTS, ("",), 1, settings)
    fixed = optimize_values(model, tokenizer, REQUESTS, ("",), 1, replace(settings, anchor=1.7, anchor_limit=1e6))
    for request, one, other in zip(REQUESTS, free, fixed, strict=True):
        v0 = mlp_output(model, tokenizer, request, 1)
        value = v0 + one.delta.double()
        expected = value * 1.7 / value.norm() - v0
        assert torch.allclose(other.delta.double(), expected, atol=1e-5 * float(expected.abs().max()) + 1e-6)
        assert float((v0 + other.delta.double()).norm()) == pytest.approx(1.7, rel=1e-4)
        assert torch.equal(one.output, other.output)


def test_a_value_beyond_the_limit_is_not_written() -> None:
    delta, output = torch.tensor([[3.0, 0.0], [30.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    found = anchored(delta, output, anchor=10.0, limit=2.0)
    assert torch.allclose(found[0], torch.tensor([6.0, 4.0]))  # (3, 4) has norm 5 and becomes (6, 8)
    assert torch.equal(found[1], torch.zeros(2))


def test_the_reference_is_the_mean_norm_of_the_smaller_stand_ins() -> None:
    model, tokenizer = willing("llama"), spaced_tokenizer()
    settings = ValueSettings(steps=2, learning_rate=0.1)
    found = anchor_norm(model, tokenizer, 1, settings, 20)
    assert found > 0 and found == anchor_norm(model, tokenizer, 1, replace(settings, anchor=3.0), 20)
    one = anchor_norm(model, tokenizer, 1, settings, 1)
    assert one > 0 and round(KEPT * 20) == 19


@pytest.mark.parametrize("name", ["memit", "emmet", "alphaedit"])
def test_editors_of_several_layers_move_to_anchored_values(name: str) -> None:
    model, tokenizer, editor, found = ready("llama", name, norm_anchor=4, anchor_limit=1e6, v_num_grad_steps=3)
    assert found.anchor is not None and found.anchor > 0
    free = get_editor(name, **{**vars(editor.hyperparameters), "norm_anchor": 0})
    with_anchor, without = (one.compute(model, tokenizer, REQUESTS, found).updates for one in (editor, free))
    assert any(not torch.allclose(with_anchor[key].dense(), without[key].dense()) for key in without)


def test_rome_moves_its_output_to_the_anchored_value() -> None:
    model, tokenizer, editor, ready_, name, module = prepared(
        "gpt2", replace(EASY, norm_anchor=3, anchor_limit=1e6, mom2_adjustment=False)
    )
    update = editor.compute(model, tokenizer, [REQUEST], ready_).updates[name].dense().double()
    (prompt,) = tokenize_prompts(tokenizer, [REQUEST.prompt], REQUEST.subject)
    keys = []
    handle = module.register_forward_pre_hook(lambda m, args: keys.append(args[0][0, prompt.subject_last].double()))
    model(torch.tensor([prompt.ids]))
    handle.remove()
    reached = mlp_output(model, tokenizer, REQUEST, 1) + update @ keys[0].detach()
    assert float(reached.norm()) == pytest.approx(ready_.anchor, rel=1e-4)


def test_a_resumed_session_has_the_reference_of_the_unedited_model(tmp_path) -> None:
    editor = ROME(replace(EASY, norm_anchor=3, anchor_limit=1e6))
    with session(tmp_path / "edits.db", editor, on_failure="keep") as run:
        run.edit(ASKED[:2])
        expected = run.prepared.anchor
    with resumed(tmp_path / "edits.db", on_failure="keep") as run:
        assert run.prepared.anchor == expected and expected is not None


def test_what_cannot_be_anchored_says_so() -> None:
    with pytest.raises(ValueError, match="norm_anchor: -1 must be 0 or above"):
        get_editor("rome", norm_anchor=-1)
    with pytest.raises(ValueError, match=r"anchor_limit: 0\.0 must be above 0"):
        get_editor("memit", anchor_limit=0.0)
    editor = get_editor("rome", layers=(1,), norm_anchor=2, mom2_adjustment=False)
    with pytest.raises(ValueError, match="prepared: holds no reference norm"):
        editor.compute(willing("gpt2"), spaced_tokenizer(), [REQUEST], Prepared((1,)))
