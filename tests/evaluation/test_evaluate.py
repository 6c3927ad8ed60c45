"""Before and after on one PEFT model: before is the base, bit for bit, and nothing is left changed."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_prune import PruneEditConfig
from peft_prune.evaluation import Evaluation, Fact, evaluate, request_answers, score_requests, token_log_probabilities
from peft_prune.models.tokenization import continuation_ids
from peft_prune.requests import Question
from tests.talking import outspoken, sentences, spaced_tokenizer
from tests.tiny import random_update

from .test_editing import make_requests

FACTS = [Fact(prompt, "east") for prompt in sentences(15, seed=12)]
TEXTS = sentences(10, seed=13)
ITEMS = {"inference": [{"prompt": prompt, "answer": "yes"} for prompt in sentences(4, seed=14)]}


def with_adapter(kind: str = "gpt2") -> PeftModel:
    torch.manual_seed(0)
    target = "c_proj" if kind == "gpt2" else "down_proj"
    config = LoraConfig(r=4, lora_alpha=16, target_modules=[target], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(outspoken(kind), config)


def figures(model, requests=None):
    given = make_requests(6) if requests is None else requests
    return evaluate(model, spaced_tokenizer(), given, facts=FACTS, texts=TEXTS, abilities=ITEMS)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_before_is_the_base_models_own_outcome_bit_for_bit(kind: str) -> None:
    edited, base = figures(with_adapter(kind)), figures(outspoken(kind))
    assert edited["before"] == base["before"]
    assert edited["after"] != edited["before"]
    assert edited["after"]["perplexity"] != edited["before"]["perplexity"]


def test_log_probabilities_with_the_adapter_disabled_are_the_bases_bit_for_bit() -> None:
    edited, base, tokenizer = with_adapter(), outspoken("gpt2"), spaced_tokenizer()
    pairs = continuation_ids(tokenizer, sentences(9), ["east"] * 9)
    with edited.disable_adapter():
        disabled = token_log_probabilities(edited, pairs)
    assert all(map(torch.equal, disabled, token_log_probabilities(base, pairs)))
    assert not all(map(torch.equal, disabled, token_log_probabilities(edited, pairs)))


def test_after_is_the_outcome_of_the_merged_model() -> None:
    model, tokenizer, requests = with_adapter(), spaced_tokenizer(), make_requests(6)
    requests = [replace(request, portability=(Question("east", ("sea", "en")),)) for request in requests]
    after = figures(model, requests)["after"]
    assert after["portability_greedy"]["n"] == 6
    base_answers = request_answers(outspoken("gpt2"), tokenizer, requests)
    merged = score_requests(model.merge_and_unload(), tokenizer, requests, base_answers=base_answers)
    assert {name: figure.to_json() for name, figure in merged.items()} == {name: after[name] for name in merged}


def test_the_result_has_the_documented_keys_and_is_json() -> None:
    result = figures(with_adapter())
    assert json.loads(json.dumps(result)) == result
    assert list(result) == ["n_requests", "before", "after"] and result["n_requests"] == 6
    forms = [f"{name}{form}" for name in ("efficacy", "generalization", "locality") for form in ("", "_greedy")]
    for column in (result["before"], result["after"]):
        assert list(column) == [*forms, "recall", "perplexity", "abilities"]
        assert all(set(column[name]) == {"value", "n", "low", "high"} for name in [*forms, "recall"])
        assert isinstance(column["perplexity"], float)
    assert result["before"]["locality_greedy"]["value"] == 1.0


def test_what_was_not_asked_for_is_null() -> None:
    after = evaluate(with_adapter(), spaced_tokenizer(), make_requests(1))["after"]
    assert after["perplexity"] is None and "abilities" not in after
    assert after["recall"] == {"value": None, "n": 0, "low": None, "high": None}


def test_facts_on_edited_subjects_are_left_out_of_recall() -> None:
    requests = make_requests(2)
    facts = [*FACTS, Fact(f"{requests[0].subject} tone", "east")]
    kept = [fact for fact in facts if not {r.subject for r in requests} & set(fact.prompt.split())]
    result = evaluate(with_adapter(), spaced_tokenizer(), requests, facts=facts)
    assert result["before"]["recall"]["n"] == result["after"]["recall"]["n"] == len(kept) < len(facts)


def test_the_model_is_left_as_it_was() -> None:
    model = with_adapter()
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("h.1" in name)
    saved = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    settings, state = model.get_base_model().generation_config, torch.get_rng_state()
    figures(model)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert model.get_base_model().generation_config is settings
    assert torch.equal(state, torch.get_rng_state())


def test_two_evaluations_agree() -> None:
    model = with_adapter()
    assert figures(model) == figures(model)


def test_a_model_without_an_adapter_is_its_own_base() -> None:
    result = figures(outspoken("gpt2"))
    assert result["before"] == result["after"]


def test_a_merged_adapter_is_refused_because_it_hides_the_base() -> None:
    model = with_adapter()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"adapters \['default'\] are merged into the base"):
        figures(model)


def test_a_disabled_adapter_is_refused_because_it_hides_the_edits() -> None:
    model = with_adapter()
    with model.disable_adapter(), pytest.raises(ValueError, match="its adapter is disabled"):
        figures(model)


def test_an_evaluation_follows_the_edits_and_measures_the_base_once() -> None:
    model, seen = with_adapter(), []
    given = {"facts": FACTS, "texts": TEXTS, "abilities": ITEMS}
    evaluation = Evaluation(model, spaced_tokenizer(), make_requests(6), **given)
    first = evaluation.now(progress=lambda name, *_: seen.append(name))
    assert first == figures(model) and any(name.startswith("before") for name in seen)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.neg_()
    seen.clear()
    second = evaluation.now(full=True, progress=lambda name, *_: seen.append(name))
    assert seen and all(name.startswith("after") for name in seen)
    now = evaluate(model, spaced_tokenizer(), make_requests(6), **given, full=True)
    assert second == now and second["after"]["perplexity"] != first["after"]["perplexity"]


def test_progress_names_what_is_being_measured() -> None:
    seen = []
    evaluate(
        with_adapter(),
        spaced_tokenizer(),
        make_requests(2),
        texts=TEXTS,
        progress=lambda name, done, total: seen.append((name, done == total)),
    )
    finished = [name for name, complete in seen if complete]
    parts = ("answers", "probabilities", "perplexity")
    assert finished == [f"{moment}: {part}" for moment in ("before", "after") for part in parts]


def test_a_restraint_that_is_pending_is_told() -> None:
    config = PruneEditConfig(layers_to_transform=[1], restraint="clip")
    model = get_peft_model(outspoken("gpt2"), config).eval()
    model.add_edits({"transformer.h.1.mlp.c_proj": random_update((16, 64), rank=2, scale=500.0)})
    with pytest.warns(UserWarning, match="a restraint is pending: the figures are of the unrestrained edits"):
        loose = figures(model)
    model.restrain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures(model)["after"] != loose["after"]
