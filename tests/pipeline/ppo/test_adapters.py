"""PEFT models that someone else made: their reference, their checkpoints, their merging."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import sample
from pipeline.lm.models import load_pretrained
from pipeline.lm.saving import merged, save_policy
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.upkeep import state

PROMPTS = ["the film about love", "a movie", "this sequel about school is", "the drama"]
TOKENS = torch.arange(3, 15)[None]


def adapted(name: str = "default", **settings: Any) -> PeftModel:
    """The toy with LoRA adapters called ``name``."""
    torch.manual_seed(0)
    settings = {"target_modules": "all-linear", **settings}
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)  # type: ignore[arg-type]
    model = get_peft_model(toy_language_model(0), config, adapter_name=name)
    assert isinstance(model, PeftModel)
    return model


@torch.no_grad()
def learn(model: nn.Module, size: float = 0.05) -> None:
    """Move all that is trained, as some steps would."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))


def trainer_of(model: nn.Module, folder: Path) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_mini_batches=1,
        num_ppo_epochs=1,
        response_length=8,
        max_steps=2,
        learning_rate=1e-2,
        save_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        kl_warning=None,
    )

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text) % 5) for text in completions]

    return PPOTrainer(model, reward, arguments, toy_tokenizer(), PROMPTS)


@torch.no_grad()
def plain_logps(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS, use_cache=False).logits.float().log_softmax(-1)


@torch.no_grad()
def recorded(model: ActorCritic) -> tuple[TokenBatch, Any]:
    made = sample(model.policy, toy_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=4, seed=3)
    batch = TokenBatch.collate(made, 0, torch.device("cpu"))
    return batch, model.eval().token_record(batch)


@torch.no_grad()
def true_record(policy: nn.Module, reference: nn.Module, batch: TokenBatch) -> Any:
    """Log-probabilities of both and the exact KL, by the whole models."""
    columns = []
    steps = batch.prompt_lengths[:, None] - 1 + torch.arange(batch.mask.shape[1])
    for model in (policy, reference):
        logits = model.eval()(input_ids=batch.sequences, use_cache=False).logits.float()
        index = steps.clamp(max=logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1])
        columns.append(logits.log_softmax(-1).gather(1, index))
    ours, theirs = columns
    kl = (ours.exp() * (ours - theirs)).sum(-1) * batch.mask
    chosen = [
        c.gather(-1, batch.completion_ids[..., None]).squeeze(-1) * batch.mask for c in columns
    ]
    return chosen[0], chosen[1], kl


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"bias": "all"},
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_reference_is_the_policy_as_it_came(
    form: str, trained_before: bool, tmp_path: Path
) -> None:
    model = adapted(**FORMS[form])
    if trained_before:
        learn(model)
    came = copy.deepcopy(model)
    actor_critic = trainer_of(model, tmp_path).actor_critic
    _, before = recorded(actor_critic)
    assert not before.exact_kl.any()
    assert torch.equal(before.logps, before.ref_logps)
    learn(actor_critic.policy)
    batch, now = recorded(actor_critic)
    logps, ref_logps, kl = true_record(actor_critic.policy, came, batch)
    assert kl.sum() > 0.01
    assert torch.allclose(now.logps, logps, atol=1e-5)
    assert torch.allclose(now.ref_logps, ref_logps, atol=1e-5)
    assert torch.allclose(now.exact_kl, kl, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("name", ["default", "mine"])
@pytest.mark.parametrize("form", FORMS)
def test_resume_brings_back_all_that_is_trained(form: str, name: str, tmp_path: Path) -> None:
    whole = trainer_of(adapted(name, **FORMS[form]), tmp_path / "run")
    whole.train()
    expected = {n: p.clone() for n, p in whole.actor_critic.named_parameters()}
    again = trainer_of(adapted(name, **FORMS[form]), tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for key, parameter in again.actor_critic.named_parameters():
        assert torch.equal(parameter, expected[key]), key


def test_a_checkpoint_of_other_adapters_is_refused_in_one_line(tmp_path: Path) -> None:
    trainer = trainer_of(adapted(), tmp_path / "run")
    controllers = (trainer.kl_control, trainer.score_deviation)
    state.save(tmp_path / "c", trainer.actor_critic, toy_tokenizer(), *controllers)
    fewer = ActorCritic(adapted(target_modules=["q_proj"]), trainer.args)
    with pytest.raises(UserError, match="is no weight of this policy"):
        state.load(tmp_path / "c", fewer, *controllers)
    more = adapted()
    more.get_base_model().model.norm.weight.requires_grad_(True)  # type: ignore[operator]
    with pytest.raises(UserError, match="the trained weight .*norm.* is missing"):
        state.load(tmp_path / "c", ActorCritic(more, trainer.args), *controllers)


# -- merging ---------------------------------------------------------------------------------------


def rounded_base(size: float) -> PeftModel:
    """Adapters that add about ``size`` to the weights of a bfloat16 base."""
    model = adapted()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    learn(model, size)
    return model


def float32_logps(model: PeftModel) -> torch.Tensor:
    """The adapted policy's own, with the base's numbers in float32."""
    return plain_logps(copy.deepcopy(model).float())


def test_adapters_are_merged_without_loss(tmp_path: Path) -> None:
    model = rounded_base(3e-4)
    expected = float32_logps(model)
    rounded = merged(copy.deepcopy(model), torch.bfloat16, "rounded").float()
    lost = (plain_logps(rounded) - expected).abs().max()
    save_policy(model, toy_tokenizer(), tmp_path / "ppo" / "model", torch.float32)
    loaded, _ = load_pretrained(str(tmp_path / "ppo" / "model"), "auto")
    assert loaded.dtype == torch.float32
    assert torch.allclose(plain_logps(loaded), expected, atol=1e-5)
    assert lost > 1e-4


def test_what_rounding_leaves_of_adapters_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    merged(rounded_base(1e-4), torch.bfloat16, "small")
    told = capsys.readouterr().err
    assert "small: merged in bfloat16" in told and "model.dtype=float32" in told
    share = int(told.split("bfloat16, ")[1].split(" %")[0].split("%")[0])
    assert share < 90
    merged(rounded_base(1e-4), torch.float32, "exact")
    assert "exact" not in capsys.readouterr().err


def test_a_folder_of_adapters_is_base_and_adapters(tmp_path: Path) -> None:
    base = toy_language_model(0)
    base.save_pretrained(tmp_path / "base")
    toy_tokenizer().save_pretrained(tmp_path / "base")
    model = adapted()
    learn(model)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = plain_logps(model)
    loaded, tokenizer = load_pretrained(str(tmp_path / "adapter"), "auto")
    assert not isinstance(loaded, PeftModel)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.allclose(plain_logps(loaded), expected, atol=1e-5)
    assert (plain_logps(base) - expected).abs().max() > 0.01
    assert len(tokenizer) == len(toy_tokenizer())


def test_adapters_whose_base_is_gone_are_refused_in_one_line(tmp_path: Path) -> None:
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "nowhere")
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="nowhere") as caught:
        load_pretrained(str(tmp_path / "adapter"), "auto")
    assert "\n" not in str(caught.value)
