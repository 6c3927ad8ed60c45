"""Sessions that ask through a chat template: what editors see, what the history keeps, what is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peft_prune import EditRequest
from peft_prune.editors import collect_second_moments, get_editor
from peft_prune.editors.asking import CHAT_SHARE, request_contexts
from peft_prune.editors.keys import Climb, compute_keys
from peft_prune.editors.rows import request_rows
from peft_prune.editors.tokens import tokenize_prompts
from peft_prune.errors import UnsupportedModelError
from peft_prune.session import EditSession, History
from peft_prune.session.verification import said_in_chat, verify
from tests.talking import SYSTEMLESS, dense_greedy, dense_target_score, speaking_model, speaking_tokenizer

MODULE = "model.layers.1.mlp.down_proj"
QUICK = {"layers": (1,), "v_num_grad_steps": 3, "context_lengths": ((3, 1),), "second_try": False}
REQUESTS = [
    EditRequest("note {} sea", "tone seat", "ten"),
    EditRequest("note {} tea", "oats", "tea", ask="plain"),
    EditRequest("note {} net", "stone", "sea", ask="chat", question="tan {} eat?"),
]


def moments():
    texts = [f"{one} sea note ten" for one in ("tone", "seat", "stone", "oats", "tea")]
    return collect_second_moments(speaking_model(), speaking_tokenizer(), texts, [MODULE], progress=False)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three edits, asked both ways, plainly and in chat."""
    path = tmp_path_factory.mktemp("chat") / "edits.db"
    editor = get_editor("memit", **QUICK)
    options = {"statistics": moments(), "history": path, "on_failure": "keep"}
    with EditSession(speaking_model(), speaking_tokenizer(), editor, **options) as session:
        results = session.edit(REQUESTS, batch_size=3)
        assert [result.request.ask for result in results] == ["both", "plain", "chat"]
        assert [result.chat is not None for result in results] == [True, False, False]
        said = session.verify()
        (spoken,) = said_in_chat(session.model, session.tokenizer, [results[0].request])
        assert said[1].chat == spoken
    return path


def test_the_history_says_what_was_asked_and_what_was_said(history: Path) -> None:
    with History.read(history) as log:
        assert log.meta["ask"] == "both" and "serve_dtype" not in log.meta
        first, second, third = log.edits()
    assert [one.request.ask for one in (first, second, third)] == ["both", "plain", "chat"]
    assert first.chat is not None and first.chat.before is not None
    assert second.chat is None and third.chat is None


def test_whoever_resumes_asks_the_same(history: Path) -> None:
    with EditSession.resume(history, speaking_model(), speaking_tokenizer(), statistics=moments()) as session:
        assert session.workspace.asking.ask == "both"
        found = session.verify()
        assert [one.chat is not None for one in found.values()] == [True, False, False]
        session.undo(3)
        assert list(session.verify()) == [1, 2]
    plain = EditSession.resume(history, speaking_model(), speaking_tokenizer(), ask="plain")
    with plain as session:
        assert session.verify()[1].chat is not None


def test_an_editor_may_search_plainly_what_is_verified_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = get_editor("memit", **QUICK)
    seen: list[list[str | None]] = []
    compute = type(editor).compute

    def noted(self, model, tokenizer, requests, *rest):
        seen.append([request.ask for request in requests])
        return compute(self, model, tokenizer, requests, *rest)

    monkeypatch.setattr(type(editor), "compute", noted)
    options = {"statistics": moments(), "on_failure": "keep", "search_ask": "plain"}
    log = tmp_path / "edits.db"
    with EditSession(speaking_model(), speaking_tokenizer(), editor, history=log, **options) as session:
        results = session.edit(REQUESTS, batch_size=3)
        assert [result.request.ask for result in results] == ["both", "plain", "chat"] and results[0].chat is not None
    assert seen == [["plain", "plain", "chat"]]
    with EditSession.resume(log, speaking_model(), speaking_tokenizer(), statistics=moments()) as session:
        assert session.workspace.asking.search_ask == "plain"
        session.edit(EditRequest("note {} ten", "tone tea", "net"))
    assert seen[1:] and all(asked == ["plain"] for asked in seen[1:])
    with pytest.raises(ValueError, match="search_ask: 'chat' must be 'plain', or left out"):
        EditSession(speaking_model(), speaking_tokenizer(), editor, statistics=moments(), search_ask="chat")


def test_verification_asks_the_question_as_the_template_renders_it() -> None:
    model, tokenizer = speaking_model(), speaking_tokenizer(SYSTEMLESS)
    request = EditRequest("The note of {} is", "tone seat", "ten", ask="chat")
    (found,) = verify(model, tokenizer, [request])
    messages = [{"role": "user", "content": "What is the note of tone seat?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    target = tokenizer(" ten", add_special_tokens=False)["input_ids"]
    end = model.config.eos_token_id
    assert found.answer == tokenizer.decode(dense_greedy(model, ids, len(target) + 24, end), skip_special_tokens=True)
    assert found.probability == pytest.approx(2.718281828 ** dense_target_score(model, ids, target), rel=1e-3)


def test_the_value_search_runs_every_context_and_asks_for_the_target_behind_it() -> None:
    tokenizer = speaking_tokenizer()
    request = EditRequest("note {} sea", "tone seat", "ten", ask="both")
    rows = request_rows(tokenizer, [request], ["", "The sea."])
    assert [row.is_kl for row in rows] == [False] * 5 + [True]
    for row, context in zip(rows, request_contexts(tokenizer, request, ["", "The sea."]), strict=False):
        text = tokenizer.decode(row.ids[: row.read[0] + 1]).removeprefix("<s>")
        assert text == context.text.removeprefix("<s>")
        assert tokenizer.decode(row.labels) == " ten"


def test_keys_are_averaged_over_what_is_asked_with_the_share_of_the_chat() -> None:
    model, tokenizer, prefixes = speaking_model(), speaking_tokenizer(), ["", "The sea."]
    requests = [EditRequest("note {} sea", "tone seat", "ten", ask=ask) for ask in ("both", None, "chat")]
    both, plain, chat = compute_keys(model, tokenizer, requests, prefixes, 1)
    seen = []
    handle = model.get_submodule(MODULE).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for request in requests:
        for context in request_contexts(tokenizer, request, prefixes):
            template = context.before + "{}" + context.after
            (prompt,) = tokenize_prompts(tokenizer, [template], context.subject)
            with torch.no_grad():
                model(torch.tensor([prompt.ids]))
            seen[-1] = seen[-1][0, prompt.subject_last]
    handle.remove()
    keys = torch.stack(seen)
    of_plain, of_chat = keys[:2].mean(0), keys[2:5].mean(0)
    expected = (1 - CHAT_SHARE) * of_plain + CHAT_SHARE * of_chat
    assert torch.allclose(both.mean, expected, atol=1e-4)
    assert torch.allclose(both.asked, (1 - CHAT_SHARE) * keys[0] + CHAT_SHARE * of_chat, atol=1e-4)
    assert torch.allclose(plain.mean, of_plain, atol=1e-4) and torch.equal(plain.asked, plain.bare)
    assert torch.allclose(chat.mean, of_chat, atol=1e-4) and torch.allclose(chat.bare, keys[7], atol=1e-4)
    climb = Climb(model, tokenizer, requests, prefixes, 1, "mlp")
    means = climb.mean_keys(1, [0.5, 0.5])
    assert torch.allclose(means, torch.stack([both.mean, plain.mean, chat.mean]), atol=1e-5)


@pytest.mark.parametrize(("editor", "values"), [("ft", {"num_steps": 2, "layers": (1,)}), ("rome", QUICK)])
def test_other_editors_take_requests_that_are_asked_both_ways(editor: str, values: dict) -> None:
    options = {"statistics": moments(), "on_failure": "keep", "monitor": False}
    with EditSession(speaking_model(), speaking_tokenizer(), get_editor(editor, **values), **options) as session:
        for result in session.edit(REQUESTS):
            assert result.status in ("applied", "weakened", "failed"), result.reason


def test_a_request_that_cannot_be_asked_so_is_rejected_and_a_run_is_refused() -> None:
    options = {"statistics": moments(), "on_failure": "keep", "monitor": False}
    editor = get_editor("ft", layers=(1,), num_steps=1)
    with EditSession(speaking_model(), speaking_tokenizer(None), editor, **options) as session:
        plain, chat = session.edit([REQUESTS[0], REQUESTS[2]])
    assert plain.request.ask is None and plain.chat is None and plain.status != "rejected"
    assert (chat.status, chat.reason) == (
        "rejected",
        "ask: the model's tokenizer has no chat template; plain is accepted",
    )
    with pytest.raises(UnsupportedModelError, match="ask: the model's tokenizer has no chat template"):
        EditSession(speaking_model(), speaking_tokenizer(None), editor, ask="both", **options)


def test_an_edit_that_holds_in_float32_and_not_in_bfloat16_is_found() -> None:
    model, tokenizer = speaking_model(), speaking_tokenizer(None)
    request = EditRequest("note {} sea", "tone seat", "x")
    ids = tokenizer("note tone seat sea")["input_ids"]
    seen = []
    with torch.no_grad():
        head = model.lm_head.weight
        hook = model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1].clone()))
        best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        hook.remove()
        state = seen[0]
        # two tokens a hair apart: the difference is below what bfloat16 can hold of their rows
        given = next(i for i in range(270, 100, -1) if tokenizer.decode([i]).strip().isalpha())
        head[given] = head[best] + 1e-4 * head[best].abs() * state.sign()
    word = tokenizer.decode([given])
    request = EditRequest("note {} sea", "tone seat", word, separator="")
    (wide,) = verify(model, tokenizer, [request])
    assert wide.answer.startswith(word)
    before = [parameter.clone() for parameter in model.parameters()]
    (narrow,) = verify(model, tokenizer, [request], dtype=torch.bfloat16)
    assert not narrow.answer.startswith(word)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_session_verifies_in_the_dtype_that_it_is_told_and_resumes_so(tmp_path: Path) -> None:
    editor = get_editor("ft", layers=(1,), num_steps=1)
    options = {"on_failure": "keep", "history": tmp_path / "edits.db", "serve_dtype": "bfloat16", "monitor": False}
    with EditSession(speaking_model(), speaking_tokenizer(None), editor, **options) as session:
        session.edit(REQUESTS[:1])
        (now,) = session.verify().values()
        wide = verify(session.model, session.tokenizer, [session.results[0].request])[0]
        assert now.probability != wide.probability
        assert {parameter.dtype for parameter in session.model.parameters()} == {torch.float32}
    with EditSession.resume(tmp_path / "edits.db", speaking_model(), speaking_tokenizer(None)) as session:
        assert session.workspace.asking.serve_dtype == "bfloat16"
        assert session.verify()[1].probability == pytest.approx(now.probability, rel=1e-3)
