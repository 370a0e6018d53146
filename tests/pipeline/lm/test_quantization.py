"""Quantised weights under adapters: sampled, trained, merged and read back is one policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.config import ModelSection
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm import quantization
from pipeline.lm.check import check_policy
from pipeline.lm.generation import sample
from pipeline.lm.models import load_base, load_pretrained, make_trainable, prepare
from pipeline.lm.saving import save_policy
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig, PPOTrainer

pytest.importorskip("bitsandbytes", reason="the extra `quantization`")

PROMPTS = ["the film about love", "a movie", "this sequel about school is", "the drama"]
TOKENS = torch.arange(3, 27).view(2, 12)
KINDS: dict[str, Any] = {
    "4bit": "4bit",
    "8bit": "8bit",
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}


def section(kind: str = "4bit", **more: Any) -> ModelSection:
    return ModelSection(
        model_name_or_path="toy", quantization=KINDS[kind], use_peft=True, lora_r=4, **more
    )


@torch.no_grad()
def learn(model: nn.Module, size: float = 0.05) -> None:
    """Move all that is trained, as some steps would."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))


@torch.no_grad()
def logps(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS, use_cache=False).logits.float().log_softmax(-1)


def policy(kind: str) -> tuple[PeftModel, Any]:
    model, tokenizer = load_base(section(kind))
    made = make_trainable(model, section(kind))
    assert isinstance(made, PeftModel)
    return made, tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_with_the_numbers_its_codes_stand_for(kind: str) -> None:
    model, tokenizer = load_base(section(kind))
    codes = [m for m in model.modules() if quantization._is_code(m)]
    assert len(codes) == 7 * 4 and not quantization._is_code(model.lm_head)
    original = prepare(toy_language_model(0), tokenizer)
    plain = copy.deepcopy(original)
    for name, module in model.named_modules():
        if quantization._is_code(module):
            plain.get_submodule(name).weight.data = quantization.decoded(module)
    ours = logps(model)
    assert torch.allclose(ours, logps(plain), atol=1e-5)
    assert (ours - logps(original)).abs().max() > 1e-3  # it is not what it was


@pytest.mark.parametrize("kind", KINDS)
def test_training_evaluation_and_other_rows_change_nothing(kind: str) -> None:
    model, tokenizer = policy(kind)
    learn(model)
    whole = logps(model)
    with torch.no_grad():
        training = model.train()(input_ids=TOKENS, use_cache=False).logits.log_softmax(-1)
        alone = model.eval()(input_ids=TOKENS[1:], use_cache=False).logits.log_softmax(-1)
    assert torch.allclose(training, whole, atol=1e-5)
    assert torch.allclose(alone, whole[1:], atol=1e-5)
    check_policy(model, tokenizer, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_plain_layers(kind: str) -> None:
    model, _ = policy(kind)
    learn(model)
    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if quantization._is_code(child):
                setattr(parent, name, quantization._plain(child, child))
    for each in (model, plain):
        each(input_ids=TOKENS, labels=TOKENS).loss.backward()
    own, other = (
        {
            name: p.grad if p.grad is not None else torch.empty(0)
            for name, p in each.named_parameters()
            if "lora_" in name
        }
        for each in (model, plain)
    )
    assert own.keys() == other.keys() and len(own) == 56
    for name, gradient in own.items():
        assert torch.allclose(gradient, other[name], atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_policy_is_the_trained_one(kind: str, tmp_path: Path) -> None:
    model, tokenizer = policy(kind)
    learn(model)
    expected = logps(model)
    save_policy(model, tokenizer, tmp_path / "ppo" / "model", torch.float32)
    loaded, _ = load_pretrained(str(tmp_path / "ppo" / "model"), "auto")
    assert not quantization.is_quantized(loaded)
    assert not hasattr(loaded.config, "quantization_config")
    assert torch.allclose(logps(loaded), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_starts_from_sft_starts_from_what_sft_has_learnt(kind: str, tmp_path: Path) -> None:
    model, tokenizer = policy(kind)
    untrained = logps(model)
    learn(model, 0.02)
    expected = logps(model)
    quantization.keep_reference(model, tmp_path / "quantized")
    reference = quantization.load_reference(load_base(section(kind))[0], tmp_path / "quantized")
    assert quantization.is_quantized(reference)
    assert torch.allclose(logps(reference), expected, atol=1e-5)
    assert (expected - untrained).abs().max() > 1e-2
    again = make_trainable(reference, section(kind))
    assert isinstance(again, PeftModel)
    assert torch.allclose(logps(again), expected, atol=1e-5)
    learn(again)
    trained = logps(again)
    with again.disable_adapter():
        assert torch.allclose(logps(again), expected, atol=1e-5)
    save_policy(again, tokenizer, tmp_path / "ppo" / "model", torch.float32)
    loaded, _ = load_pretrained(str(tmp_path / "ppo" / "model"), "auto")
    assert torch.allclose(logps(loaded), trained, atol=1e-5)


def test_quantising_the_merged_sum_again_would_lose_what_sft_learnt(tmp_path: Path) -> None:
    """Why :func:`load_reference` does not."""
    model, tokenizer = policy("4bit")
    start = logps(model)
    learn(model, 3e-4)
    learnt = logps(model) - start
    save_policy(model, tokenizer, tmp_path / "model", torch.float32)
    more = {"quantization_config": quantization.quantization_config(section())}
    again, _ = load_pretrained(str(tmp_path / "model"), torch.float32, more=more)
    left = logps(again) - start
    assert float((left * learnt).sum() / (learnt * learnt).sum()) < 0.3


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_layers_that_stand_the_other_way_come_back_so(kind: str, tmp_path: Path) -> None:
    """GPT-2's, square ones too, whose shape would not tell."""
    config = GPT2Config(
        vocab_size=96, n_positions=32, n_embd=64, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    toy_tokenizer().save_pretrained(tmp_path / "gpt2")
    more = {"quantization_config": quantization.quantization_config(section(kind))}
    base, tokenizer = load_pretrained(str(tmp_path / "gpt2"), torch.float32, more=more)
    model = make_trainable(prepare(base, tokenizer), section(kind))
    learn(model)
    expected = logps(model)
    save_policy(model, tokenizer, tmp_path / "ppo" / "model", torch.float32)
    loaded, _ = load_pretrained(str(tmp_path / "ppo" / "model"), "auto")
    assert torch.allclose(logps(loaded), expected, atol=1e-4)


def test_another_base_is_refused(tmp_path: Path) -> None:
    model, _ = policy("4bit")
    quantization.keep_reference(model, tmp_path / "quantized", seed=5)
    assert quantization.base_seed(tmp_path / "quantized") == 5
    with pytest.raises(UserError, match="not the one that SFT was run with"):
        quantization.load_reference(load_base(section(), seed=3)[0], tmp_path / "quantized")
    with pytest.raises(UserError, match="SFT was run without it"):
        quantization.load_reference(load_base(section())[0], tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_ppo_records_the_plain_models_log_probabilities(kind: str, tmp_path: Path) -> None:
    model, tokenizer = policy(kind)
    arguments = PPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_mini_batches=1,
        num_ppo_epochs=2, response_length=8, max_steps=2, learning_rate=1e-2, save_steps=2,
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text) % 5) for text in completions]

    trainer = PPOTrainer(model, reward, arguments, tokenizer, PROMPTS)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer.train()
    made = sample(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=4, seed=3)
    batch = TokenBatch.collate(made, 0, torch.device("cpu"))
    record = trainer.actor_critic.eval().token_record(batch)
    with torch.no_grad():
        columns = []
        steps = batch.prompt_lengths[:, None] - 1 + torch.arange(batch.mask.shape[1])
        for adapters in (True, False):
            if adapters:
                logits = model(input_ids=batch.sequences, use_cache=False).logits
            else:
                with model.disable_adapter():
                    logits = model(input_ids=batch.sequences, use_cache=False).logits
            index = steps.clamp(max=logits.shape[1] - 1)[..., None]
            rows = logits.log_softmax(-1).gather(1, index.expand(-1, -1, logits.shape[-1]))
            columns.append(rows.gather(-1, batch.completion_ids[..., None]).squeeze(-1))
    for ours, plain in zip((record.logps, record.ref_logps), columns, strict=True):
        assert torch.allclose(ours, plain * batch.mask, atol=1e-5)
    assert float(record.exact_kl.sum()) > 1e-3  # it has learnt
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bnb_4bit_type": "nf4"}, "none of BitsAndBytesConfig's keys"),
        ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, "activations are not quantised"),
        ({"bnb_4bit_quant_type": "nf4"}, "set one of load_in_4bit and load_in_8bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int3"}, "model.quantization"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    wrong = ModelSection(model_name_or_path="toy", use_peft=True, quantization=given)
    with pytest.raises(UserError, match=said) as caught:
        load_base(wrong)
    assert "\n" not in str(caught.value)


def test_a_model_saved_in_few_bits_is_not_trained_as_if_it_were_whole(tmp_path: Path) -> None:
    model, tokenizer = load_base(section())
    model.save_pretrained(tmp_path / "few")
    tokenizer.save_pretrained(tmp_path / "few")
    with pytest.raises(UserError, match="is saved in few bits; set model.quantization"):
        load_pretrained(str(tmp_path / "few"), "auto")
