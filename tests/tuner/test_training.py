"""The adapter as something that gradient descent trains."""

from __future__ import annotations

import copy

import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from peft_prune import PruneEditConfig
from tests.tiny import tiny_gpt2, tiny_llama
from tests.tuner.test_edits import INPUTS, base_weight, dense_log


def test_trainer_lowers_the_loss_and_saves_what_it_trained(tmp_path) -> None:
    model = get_peft_model(tiny_llama(), PruneEditConfig(r=4, task_type="CAUSAL_LM"))
    assert torch.equal(model.eval()(INPUTS).logits, tiny_llama()(INPUTS).logits)
    data = [{"input_ids": INPUTS[0], "labels": INPUTS[0]} for _ in range(8)]
    before = float(model(INPUTS, labels=INPUTS).loss.detach())
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, learning_rate=5e-2, report_to=[], save_strategy="steps", save_steps=20
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    after = float(model.eval()(INPUTS, labels=INPUTS).loss.detach())
    assert after < before - 0.1
    trained = PeftModel.from_pretrained(tiny_llama(), tmp_path / "checkpoint-20")
    assert torch.equal(trained(INPUTS).logits, model(INPUTS).logits)


def test_only_the_factors_of_the_active_adapter_are_trainable() -> None:
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(r=2), "first")
    model.add_adapter("second", PruneEditConfig(r=2))
    for active in ("first", "second"):
        model.set_adapter(active)
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable and all(f".{active}.weight" in name for name in trainable)


def test_random_initial_factors_change_the_output_and_identity_ones_do_not() -> None:
    expected = tiny_gpt2()(INPUTS).logits
    for init_weights in (True, False):
        torch.manual_seed(0)
        model = get_peft_model(tiny_gpt2(), PruneEditConfig(r=4, init_weights=init_weights)).eval()
        assert torch.allclose(model(INPUTS).logits, expected, atol=1e-3) == init_weights


def test_training_after_a_restraint_makes_it_pending_again_and_evaluating_does_not() -> None:
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(r=4, layers_to_transform=[1], init_weights=False))
    ((_, layer),) = model.edited_layers()
    layer.prune_edit_B["default"].weight.data.mul_(300)
    model.restrain()
    assert not model.restraint_is_pending()
    model.train()(INPUTS, labels=INPUTS).loss.backward()
    assert not copy.deepcopy(model).restraint_is_pending()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    optimizer.step()
    assert model.restraint_is_pending()
    trained = layer.effective_update("default").dense().double()
    model.restrain()
    expected = dense_log(trained, base_weight(layer), 1.2)
    assert torch.allclose(
        layer.effective_update("default").dense().double(), expected, atol=1e-4 * float(trained.norm())
    )


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(), PruneEditConfig(r=4, init_weights=False)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model(INPUTS, labels=INPUTS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert gradients[0] and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_biases_can_be_trained_along_and_come_back(tmp_path) -> None:
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(r=2, bias="prune_edit_only", layers_to_transform=[1]))
    ((_, layer),) = model.edited_layers()
    assert layer.get_base_layer().bias.requires_grad
    layer.get_base_layer().bias.data.add_(1.0)
    expected = model.eval()(INPUTS).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(tiny_gpt2(), tmp_path)(INPUTS).logits, expected)
