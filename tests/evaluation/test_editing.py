"""Efficacy, generalization and locality against one dense computation for each prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peft_prune.evaluation import Proportion, request_answers, score_requests
from peft_prune.models.answers import answers_with, normalized
from peft_prune.models.tokenization import continuation_ids, prompt_ids
from peft_prune.requests import EditRequest, Question
from tests.talking import WORDS, dense_greedy, dense_target_score, outspoken, sentences, spaced_tokenizer

FORMS = ("efficacy", "generalization", "locality")


def make_requests(count: int = 12) -> list[EditRequest]:
    texts = iter(sentences(5 * count, seed=4, longest=3))
    targets = sentences(2 * count, seed=5, longest=2)
    return [
        EditRequest(
            prompt="{} " + next(texts),
            subject=WORDS[index % len(WORDS)],
            target_new=targets[index],
            target_true=targets[count + index],
            paraphrase_prompts=(next(texts), next(texts)),
            neighborhood_prompts=(next(texts), next(texts)),
        )
        for index in range(count)
    ]


def dense_preference(model, tokenizer, request: EditRequest, prompt: str) -> float:
    new, true = continuation_ids(tokenizer, [prompt] * 2, [request.target_new, request.target_true])
    return dense_target_score(model, new.prompt, new.target) - dense_target_score(model, true.prompt, true.target)


def dense_answer(model, tokenizer, prompt: str, count: int) -> str:
    return tokenizer.decode(dense_greedy(model, prompt_ids(tokenizer, [prompt])[0], count), skip_special_tokens=True)


def test_probability_metrics_equal_a_dense_computation(pair) -> None:
    model, tokenizer = pair
    requests = make_requests()

    def share(prompts, sign: int) -> Proportion:
        return Proportion.of_clusters(
            [sign * dense_preference(model, tokenizer, request, prompt) > 0 for prompt in prompts(request)]
            for request in requests
        )

    measured = score_requests(model, tokenizer, requests, base_answers=None)
    expected = {
        "efficacy": share(lambda request: [request.text], 1),
        "generalization": share(lambda request: request.paraphrase_prompts, 1),
        "locality": share(lambda request: request.neighborhood_prompts, -1),
    }
    assert {name: measured[name] for name in FORMS} == expected
    assert [expected[name].n for name in FORMS] == [12, 24, 24]
    assert all(0 < expected[name].value < 1 for name in FORMS)


def test_greedy_metrics_equal_free_generation(pair) -> None:
    model, tokenizer = pair
    # half of the requests ask for what the model says by itself, so that the shares are not all 0
    requests = [
        replace(request, target_new=dense_answer(model, tokenizer, request.text, 4).strip() or "east")
        if index % 2
        else request
        for index, request in enumerate(make_requests())
    ]
    measured = score_requests(model, tokenizer, requests, base_answers=None)
    hits = [answers_with(dense_answer(model, tokenizer, r.text, 12), r.target_new) for r in requests]
    assert sum(hits) > 0
    assert measured["efficacy_greedy"].n == 12
    assert measured["efficacy_greedy"] == Proportion.of_clusters([hit] for hit in hits)


def test_locality_greedy_compares_with_the_base_models_own_answers(pair) -> None:
    base, tokenizer = pair
    edited = outspoken(base.config.model_type, seed=1)
    requests = make_requests()
    # two models that agree on something: the edited one differs in its last layer norm only
    edited.load_state_dict(base.state_dict())
    norm = edited.transformer.ln_f if base.config.model_type == "gpt2" else edited.model.norm
    norm.weight.data[::3] *= 0.2
    base_answers = request_answers(base, tokenizer, requests)
    measured = score_requests(edited, tokenizer, requests, base_answers=base_answers)["locality_greedy"]

    def same(request: EditRequest, prompt: str) -> bool:
        pairs = continuation_ids(tokenizer, [request.text] * 2, [request.target_new, request.target_true])
        count = max(len(item.target) for item in pairs)
        answers = [dense_answer(model, tokenizer, prompt, count) for model in (base, edited)]
        return normalized(answers[0]) == normalized(answers[1])

    expected = Proportion.of_clusters(
        [same(request, prompt) for prompt in request.neighborhood_prompts] for request in requests
    )
    assert measured == expected
    assert 0 < expected.value < 1


def test_locality_greedy_of_the_base_is_one(pair) -> None:
    model, tokenizer = pair
    requests = make_requests()
    base_answers = request_answers(model, tokenizer, requests)
    assert score_requests(model, tokenizer, requests, base_answers=base_answers)["locality_greedy"].value == 1.0


def test_locality_greedy_has_no_value_without_the_bases_answers(pair) -> None:
    model, tokenizer = pair
    measured = score_requests(model, tokenizer, make_requests(2), base_answers=None)
    assert measured["locality_greedy"] == Proportion(None, 0, None, None)


def test_a_request_without_a_true_target_is_left_out_where_it_is_needed(pair) -> None:
    model, tokenizer = pair
    requests = make_requests(4)
    without = [replace(requests[0], target_true=None), *requests[1:]]
    base_answers = request_answers(model, tokenizer, without)
    measured = score_requests(model, tokenizer, without, base_answers=base_answers)
    rest = score_requests(model, tokenizer, requests[1:], base_answers=None)
    assert {name: measured[name] for name in FORMS} == {name: rest[name] for name in FORMS}
    assert [measured[f"{name}_greedy"].n for name in FORMS] == [4, 8, 8]


def test_metrics_without_prompts_have_no_value(pair) -> None:
    model, tokenizer = pair
    request = EditRequest(prompt="{} east", subject="sea", target_new="stone")
    measured = score_requests(model, tokenizer, [request], base_answers=None)
    empty = {name for name, figure in measured.items() if figure.value is None}
    names = ("efficacy", "generalization", "locality", "generalization_greedy", "locality_greedy", "portability_greedy")
    assert empty == set(names)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_scores_do_not_depend_on_the_batch_size(pair, batch_size: int) -> None:
    model, tokenizer = pair
    requests = make_requests(6)
    answers = request_answers(model, tokenizer, requests)
    reference = score_requests(model, tokenizer, requests, base_answers=answers)
    assert score_requests(model, tokenizer, requests, base_answers=answers, batch_size=batch_size) == reference


def test_the_mean_over_a_targets_tokens_decides_not_the_sum() -> None:
    model, tokenizer = outspoken("gpt2"), spaced_tokenizer()
    for request in make_requests(60):
        pairs = continuation_ids(tokenizer, [request.text] * 2, [request.target_new, request.target_true])
        new, true = (dense_target_score(model, item.prompt, item.target) for item in pairs)
        by_mean, by_sum = new > true, new * len(pairs[0].target) > true * len(pairs[1].target)
        if by_mean != by_sum:
            measured = score_requests(model, tokenizer, [request], base_answers=None)["efficacy"]
            assert measured.value == float(by_mean)
            return
    pytest.fail("no request tells the mean from the sum")


def test_answers_to_other_requests_are_refused(pair) -> None:
    model, tokenizer = pair
    answers = request_answers(model, tokenizer, make_requests(2))
    with pytest.raises(ValueError, match="base_answers: hold answers to 2 other requests than the 3 given"):
        score_requests(model, tokenizer, make_requests(3), base_answers=answers)
    # as many prompts, but of other requests
    with pytest.raises(ValueError, match="base_answers: hold answers to 2 other requests than the 2 given"):
        score_requests(model, tokenizer, make_requests(3)[1:], base_answers=answers)


def test_portability_and_unrelated_questions_are_counted_by_the_free_answer(pair) -> None:
    model, tokenizer = pair
    requests = make_requests(4)
    words = {prompt: dense_answer(model, tokenizer, prompt, 6).split() for prompt in sentences(40, seed=8, longest=3)}
    prompts = [prompt for prompt, said in words.items() if len(said) > 1][:8]
    right = [words[prompt][0] for prompt in prompts]
    wrong = next(word for word in WORDS if all(word not in answer for answer in right))
    asked = [
        replace(
            request,
            portability=(Question(prompts[i], (wrong, right[i])), Question(prompts[i], (wrong,))),
            unrelated=(Question(prompts[4 + i], (wrong,)),),
        )
        for i, request in enumerate(requests)
    ]
    answers = request_answers(model, tokenizer, asked)
    (length,) = {len(one.target) for one in continuation_ids(tokenizer, prompts[4:], [wrong] * 4)}
    assert [normalized(answer) for (answer,) in answers.unrelated] == [
        normalized(dense_answer(model, tokenizer, prompt, length)) for prompt in prompts[4:]
    ]
    scores = score_requests(model, tokenizer, asked, answers=answers, base_answers=answers)
    assert (scores["portability_greedy"].value, scores["portability_greedy"].n) == (0.5, 8)
    assert scores["locality_greedy"].n == 2 * 4 + 4 and scores["locality_greedy"].value == 1
    changed = replace(answers, unrelated=(("other",), *answers.unrelated[1:]))
    assert score_requests(model, tokenizer, asked, answers=changed, base_answers=answers)["locality_greedy"].value == (
        11 / 12
    )
