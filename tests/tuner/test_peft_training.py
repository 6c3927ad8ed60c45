"""What PEFT asks of training, dtypes, compiling and generating."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import Trainer, TrainingArguments

from peft_prune import PruneEditConfig
from tests.tiny import tiny_llama
from tests.tuner.peft_cases import CASES, KINDS, Case, adapted, config_of, factors, fill
from tests.tuner.test_edits import INPUTS

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", KINDS)
transformers_only = pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)


def train(model, case: Case, steps: int = 3) -> None:
    """A few steps of SGD on a loss that every output enters."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2.0)
    for _ in range(steps):
        optimizer.zero_grad()
        case.differentiable_outputs(model).float().square().mean().backward()
        optimizer.step()
    model.eval()


@every_case
@every_kind
@pytest.mark.parametrize("modules_to_save", [False, True])
def test_training_changes_every_trainable_parameter_and_no_other(case, kind: str, modules_to_save: bool) -> None:
    model = adapted(case, kind, modules_to_save=[case.head] if modules_to_save else None)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    outputs = case.outputs(model)
    train(model, case)
    for name, parameter in model.named_parameters():
        mine = ".prune_edit_" in name or ".modules_to_save." in name
        assert torch.equal(parameter, before[name]) != mine, name
    with model.disable_adapter():
        assert torch.equal(case.outputs(model), case.outputs(case.build()))
    assert not torch.allclose(case.outputs(model), outputs, atol=1e-5)


@every_case
@pytest.mark.parametrize("init_weights", [True, False])
def test_trained_factors_merge_save_and_load_without_a_change(tmp_path, case: Case, init_weights: bool) -> None:
    model = get_peft_model(case.build(), config_of(case, "trained", init_weights=init_weights))
    train(model, case)
    expected = case.outputs(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(case.outputs(model), expected)
    assert torch.equal(case.outputs(PeftModel.from_pretrained(case.build(), tmp_path)), expected)
    assert torch.allclose(case.outputs(model.merge_and_unload()), expected, atol=1e-5)


def test_saving_in_the_middle_of_training_leaves_the_optimizer_its_parameters(tmp_path) -> None:
    """Also where saving restrains: the parameters get other values and stay the same objects."""
    case = CASES[0]
    model = adapted(case, "trained", restrain_on="merge", restraint="clip")
    for parameter in factors(model).values():
        parameter.data.mul_(10)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = case.outputs(model)
    model.save_pretrained(tmp_path)
    assert not torch.allclose(case.outputs(model), before, atol=1e-3)
    case.differentiable_outputs(model).square().mean().backward()
    at_saving = {name: parameter.detach().clone() for name, parameter in factors(model).items()}
    optimizer.step()
    assert not any(torch.equal(parameter, at_saving[name]) for name, parameter in factors(model).items())


def test_a_resumed_trainer_goes_on_where_the_checkpoint_stands(tmp_path) -> None:
    data = [{"input_ids": INPUTS[0], "labels": INPUTS[0]} for _ in range(8)]

    def trained(steps: int, folder: str, resume: str | None = None):
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(), PruneEditConfig(r=4, task_type="CAUSAL_LM"))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=steps,
            learning_rate=5e-2,
            lr_scheduler_type="constant",
            report_to=[],
            save_steps=3,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return model.eval()

    whole = trained(6, "whole")
    trained(3, "half")
    resumed = trained(6, "resumed", resume="half/checkpoint-3")
    assert torch.allclose(resumed(INPUTS).logits, whole(INPUTS).logits, atol=1e-5)


@every_case
@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_half_precision_base_gives_outputs_of_its_dtype(case, kind: str, dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(1)
    model = get_peft_model(case.build(dtype=dtype), config_of(case, kind), autocast_adapter_dtype=autocast)
    factor_dtype = torch.float32 if autocast else dtype
    assert {parameter.dtype for parameter in factors(model).values()} == {factor_dtype}
    model.add_adapter("second", config_of(case, kind), autocast_adapter_dtype=autocast)
    assert {parameter.dtype for parameter in factors(model, "second").values()} == {factor_dtype}
    unmerged = case.outputs(model)
    assert unmerged.dtype == dtype and torch.isfinite(unmerged).all()
    model.merge_adapter()
    assert torch.allclose(case.outputs(model), unmerged, atol=3e-2, rtol=3e-2)


@every_case
@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_casting_the_whole_model_work(case: Case, kind: str, dtype: torch.dtype) -> None:
    model = adapted(case, kind)
    expected = case.outputs(model)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.allclose(case.outputs(model).float(), expected, atol=5e-2, rtol=5e-2)
    model.to(dtype)
    assert torch.allclose(case.outputs(model).float(), expected, atol=5e-2, rtol=5e-2)


@transformers_only
@every_kind
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_gradients_equal_plain_ones(case: Case, kind: str, use_reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = adapted(case, kind)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train()
        torch.manual_seed(0)
        case.differentiable_outputs(model).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in factors(model).items()})
    assert gradients[0] and all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])
    assert all(gradient.any() for gradient in gradients[0].values())


@transformers_only
def test_a_base_prepared_for_quantized_training_trains_the_factors(case: Case) -> None:
    base = prepare_model_for_kbit_training(case.build())
    assert not any(parameter.requires_grad for parameter in base.parameters())
    model = get_peft_model(base, config_of(case, "trained"))
    train(model, case)
    assert all(parameter.grad is not None for parameter in factors(model).values())


@transformers_only
@every_kind
def test_generating_follows_the_adapter(case: Case, kind: str) -> None:
    model = adapted(case, kind, task_type="CAUSAL_LM")
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    generated = model.generate(input_ids=INPUTS, attention_mask=torch.ones_like(INPUTS), **options)
    assert torch.allclose(generated.logits[0], model(INPUTS).logits[:, -1], atol=1e-5)
    assert torch.equal(model.generate(INPUTS, **options).sequences, generated.sequences)
    with model.disable_adapter():
        base = model.generate(INPUTS, **options)
    assert not torch.allclose(base.logits[0], generated.logits[0], atol=1e-3)
    model.merge_adapter()
    assert torch.equal(model.generate(INPUTS, **options).sequences, generated.sequences)


@transformers_only
@every_kind
def test_embedded_inputs_give_the_same_outputs(case: Case, kind: str) -> None:
    model = adapted(case, kind, task_type="CAUSAL_LM")
    embedded = model.get_input_embeddings()(INPUTS)
    assert torch.allclose(model(inputs_embeds=embedded).logits, model(INPUTS).logits, atol=1e-6)


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
@every_kind
def test_a_compiled_model_gives_the_same_outputs_and_gradients_in_one_graph(case: Case, kind: str) -> None:
    model = adapted(case, kind)
    torch.compiler.reset()  # what other tests compiled counts against the limit
    compiled = torch.compile(model.base_model.model, backend="aot_eager", fullgraph=True)
    expected = case.outputs(model)
    assert torch.allclose(case.outputs(compiled), expected, atol=1e-6)
    case.differentiable_outputs(compiled).square().mean().backward()
    assert all(parameter.grad.any() for parameter in factors(model).values())
    with model.disable_adapter():
        assert torch.allclose(case.outputs(compiled), case.outputs(case.build()), atol=1e-6)
    assert torch.allclose(case.outputs(compiled), expected, atol=1e-6)


def test_a_compiled_model_sees_later_edits() -> None:
    case = CASES[0]
    model = get_peft_model(case.build(), config_of(case, "edited"))
    torch.compiler.reset()  # what other tests compiled counts against the limit
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(case.outputs(compiled), case.outputs(case.build()))
    for count in range(3):
        fill(model, "edited", "default", seed=count)
        assert torch.allclose(case.outputs(compiled), case.outputs(model), atol=1e-6)
