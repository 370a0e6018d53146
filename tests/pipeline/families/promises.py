"""What PPO promises of any causal language model, held on one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pipeline.config import ModelSection
from pipeline.data.toy import toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import sample
from pipeline.lm.hardware import autocast
from pipeline.lm.models import make_trainable
from pipeline.lm.saving import save_policy
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.upkeep import state
from tests.pipeline.families.tiny import tiny_model

OUTCOMES = Path(__file__).parent / "outcomes.json"
"""Family and mode to "yes" or why it is refused; docs/make/models.py writes it."""
MODES = {
    "all": ModelSection(),
    "upper": ModelSection(trainable_layers=2),
    "lora": ModelSection(use_peft=True, lora_r=4),
}
PROMPTS = ["the film", "this movie about war and the", "a", "the drama about love while the cast"]
NEW = 12  # with the prompts beyond a window of 8
FLOAT32 = 1e-5  # nats between a log-probability and the plain model's


def some_reward(prompts: list[str], completions: list[str]) -> list[float]:
    """Something to learn from, whatever is written."""
    return [float(row) for row in range(len(completions))]


def prepared(kind: str, mode: str, bf16: bool) -> nn.Module:
    """The tiny model of ``kind`` with what is trained as ``mode`` says."""
    model = tiny_model(kind)
    if bf16:
        model = model.to(torch.bfloat16)  # type: ignore[arg-type]
    return make_trainable(model, MODES[mode])


def trainer_of(model: nn.Module, folder: Path, bf16: bool) -> PPOTrainer:
    """PPO with one rollout of four prompts and two steps."""
    arguments = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_mini_batches=1,
        num_ppo_epochs=2,
        response_length=NEW,
        max_steps=2,
        learning_rate=1e-2,
        bf16=bf16,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        kl_warning=None,
    )
    return PPOTrainer(model, some_reward, arguments, toy_tokenizer(), PROMPTS)


@torch.no_grad()
def plain_logps(model: nn.Module, batch: TokenBatch) -> Tensor:
    """The whole model's log-probabilities of the completions, a row at a time, no padding."""
    rows = torch.zeros(batch.mask.shape)
    for row, (start, count) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.mask.sum(1).tolist(), strict=True)
    ):
        tokens = batch.sequences[row : row + 1, : start + count]
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        logps = logits.log_softmax(-1)[0, start - 1 : -1]
        rows[row, :count] = logps.gather(-1, tokens[0, start:, None]).squeeze(-1)
    return rows


def hold_first_update(trainer: PPOTrainer, bf16: bool) -> TokenBatch:
    """Sampled and scored tokens agree with the plain model, KL is 0 and the ratio 1.

    Returns:
        the completions.
    """
    model, tokenizer = trainer.actor_critic, toy_tokenizer()
    made = sample(
        model.policy, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=len(PROMPTS), seed=0
    )
    batch = TokenBatch.collate(made, 0, torch.device("cpu"))
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with torch.no_grad(), mixed:
        trunk = model.trunk(batch.sequences)
        model.eval()
        recorded = model.token_record(batch, trunk)
        model.train()
        trained = model(batch, trunk)
        model.eval()
        plain = plain_logps(model.policy, batch)
    assert torch.allclose(trained.logps, recorded.logps, rtol=0, atol=FLOAT32)
    assert torch.equal(recorded.logps, recorded.ref_logps)
    assert not recorded.exact_kl.any()
    difference = (recorded.logps - plain).abs().max().item()
    assert difference <= (0.05 if bf16 else FLOAT32), difference
    return batch


def hold_resume(trainer: PPOTrainer, kind: str, mode: str, bf16: bool, folder: Path) -> None:
    """What a checkpoint gives back to a fresh policy is equal to the bit."""
    model = trainer.actor_critic
    controllers: Any = (trainer.kl_control, trainer.score_deviation)
    state.save(folder, model, toy_tokenizer(), *controllers)
    fresh = ActorCritic(prepared(kind, mode, bf16), trainer.args)
    state.load(folder, fresh, *controllers)
    ours, theirs = dict(model.named_parameters()), dict(fresh.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name


@torch.no_grad()
def hold_save(model: nn.Module, bf16: bool, folder: Path) -> None:
    """The finished policy, adapters merged in, is the trained one when it is read back."""
    tokens = torch.arange(3, 15)[None]
    model.eval()
    with autocast(model):
        before = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
    adapters = isinstance(model, PeftModel)
    dtype = torch.bfloat16 if bf16 and not adapters else torch.float32
    save_policy(model, toy_tokenizer(), folder / "model", dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto").eval()
    assert loaded.dtype == dtype
    after = loaded(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
    difference = (before - after).abs().max().item()
    assert difference <= (0.05 if bf16 else FLOAT32), difference


def hold_all(kind: str, mode: str, folder: Path) -> None:
    """Everything in float32, and the first update in bfloat16."""
    mixed = trainer_of(prepared(kind, mode, True), folder / "bf16", True)
    hold_first_update(mixed, True)
    trainer = trainer_of(prepared(kind, mode, False), folder / "float32", False)
    hold_first_update(trainer, False)
    before = {n: p.detach().clone() for n, p in trainer.actor_critic.policy.named_parameters()}
    trainer.train()
    policy = trainer.actor_critic.policy
    moved = [n for n, p in policy.named_parameters() if not torch.equal(p, before[n])]
    assert moved
    assert all(dict(policy.named_parameters())[name].requires_grad for name in moved)
    hold_resume(trainer, kind, mode, False, folder / "checkpoint")
    hold_save(policy, False, folder / "saved")


def hold_outcome(kind: str, mode: str, folder: Path) -> None:
    """The family keeps every promise, or is refused in one line, as outcomes.json says."""
    expected = json.loads(OUTCOMES.read_text(encoding="utf-8"))[kind][mode]
    if expected == "yes":
        return hold_all(kind, mode, folder)
    with pytest.raises(UserError) as caught:
        for bf16 in (False, True):
            trainer_of(prepared(kind, mode, bf16), folder, bf16)
    assert "\n" not in str(caught.value)
    return None


def listed() -> list[str]:
    """The families of outcomes.json."""
    return list(json.loads(OUTCOMES.read_text(encoding="utf-8")))
