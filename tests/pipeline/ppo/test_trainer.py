"""The PPO trainer's promises, each of which has been a bug somewhere (docs: README, "PPO")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.models import make_trainable, prepare
from pipeline.ppo import PPOConfig, PPOTrainer
from reward_models import RewardError

PROMPTS = [" ".join(t.text.split()[:4]) for t in toy.toy_texts(48, seed=0)]


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward of text alone."""
    return [0.2 * text.count("o") for text in completions]


class Recorder(TrainerCallback):
    """Keeps what is logged, and the policy's weights at the end of every step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append({"step": state.global_step, **logs})


def make_trainer(
    folder: Path,
    reward=letters,
    section: dict[str, Any] | None = None,
    gold: Any = None,
    **arguments: Any,
) -> tuple[PPOTrainer, Recorder]:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "total_episodes": 48,
        "response_length": 6,
        "learning_rate": 2e-3,
        "value_learning_rate": 1e-2,
        "kl_coef": 0.1,
    }
    tokenizer = toy.toy_tokenizer()
    chosen: dict[str, Any] = {"trainable_layers": 2} | (section or {})
    choice = ModelSection(model_name_or_path="toy", **chosen)
    model = make_trainable(prepare(toy.toy_language_model(0), tokenizer), choice)
    recorder = Recorder()
    trainer = PPOTrainer(
        model=model,
        reward_function=reward,
        args=PPOConfig(**(settings | arguments)),
        processing_class=tokenizer,
        train_dataset=PROMPTS,
        eval_dataset=PROMPTS[:8],
        gold_function=gold,
        callbacks=[recorder],
    )
    return trainer, recorder


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.actor_critic.named_parameters()}


@pytest.mark.parametrize(
    "section",
    [
        {"trainable_layers": 2},
        {"trainable_layers": None},
        {"trainable_layers": None, "use_peft": True},
        {"trainable_layers": 2, "use_peft": True},
    ],
    ids=["upper layers", "all weights", "LoRA", "LoRA on upper layers"],
)
def test_first_update_has_ratio_one_and_no_kl(tmp_path: Path, section: dict[str, Any]) -> None:
    trainer, recorder = make_trainer(
        tmp_path, section=section, num_ppo_epochs=1, num_mini_batches=1, total_episodes=8
    )
    trainer.train()
    first = recorder.logs[0]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["val/ratio_var"] == pytest.approx(0.0, abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["objective/kl_exact"] == pytest.approx(0.0, abs=1e-5)
    assert first["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-9)
    assert first["policy/clipfrac_avg"] == 0.0
    # Whitened advantages have mean zero, so the surrogate's value at ratio 1 is zero as well.
    assert first["loss/policy_avg"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_optimizer_steps_per_rollout_whatever_the_accumulation(
    tmp_path: Path, accumulation: int
) -> None:
    """16 completions a rollout, 2 epochs of 2 minibatches: 4 steps, as asked."""
    trainer, recorder = make_trainer(
        tmp_path,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=2,
        num_ppo_epochs=2,
    )
    trainer.train()
    assert trainer.args.rollout_batch_size == 16
    assert trainer.state.global_step == 3 * 4  # 48 episodes are 3 rollouts
    assert [log["step"] for log in recorder.logs if "objective/kl" in log] == [4, 8, 12]
    assert recorder.logs[-2]["episode"] == 48


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """The minibatch mean is over its tokens, however it is cut into microbatches."""
    ends = []
    for accumulation in (1, 4):
        trainer, _ = make_trainer(
            tmp_path,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            total_episodes=16,
        )
        trainer.train()
        ends.append(weights(trainer))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


@pytest.mark.parametrize("use_peft", [False, True], ids=["weights", "LoRA"])
def test_cached_trunk_changes_nothing(use_peft: bool, tmp_path: Path) -> None:
    ends = []
    section = {"trainable_layers": 2, "use_peft": use_peft}
    for cached in (True, False):
        trainer, _ = make_trainer(tmp_path, section=section, cache_trunk=cached, total_episodes=16)
        sequences = torch.arange(3, 9)[None]
        assert (trainer.actor_critic.trunk(sequences) is not None) is cached
        trainer.train()
        ends.append(weights(trainer))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


def test_frozen_weights_and_reference_stay_put(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path)
    before = weights(trainer)
    reference = trainer.actor_critic._reference[0]
    reference_before = [p.detach().clone() for p in reference.parameters()]
    trainer.train()
    for name, parameter in trainer.actor_critic.named_parameters():
        moved = not torch.equal(before[name], parameter)
        assert moved is parameter.requires_grad, name
    for old, new in zip(reference_before, reference.parameters(), strict=True):
        assert torch.equal(old, new)


def test_eos_is_scored_and_trained_when_it_is_the_pad_token(tmp_path: Path) -> None:
    """Paid for ending, the policy must learn to end: the EOS position carries the gradient."""

    def short(prompts: list[str], completions: list[str]) -> list[float]:
        return [-float(len(text.split())) for text in completions]

    trainer, recorder = make_trainer(
        tmp_path,
        reward=short,
        section={"trainable_layers": None},
        per_device_train_batch_size=16,
        total_episodes=1600,
        kl_coef=0.01,
        learning_rate=3e-3,
    )
    assert trainer.tokenizer.pad_token_id == trainer.tokenizer.eos_token_id
    trainer.train()
    rollouts = [log for log in recorder.logs if "val/ended" in log]
    first = sum(log["val/ended"] for log in rollouts[:5]) / 5
    last = sum(log["val/ended"] for log in rollouts[-5:]) / 5
    assert last > first + 0.3


def test_value_warmup_moves_the_value_head_alone(tmp_path: Path) -> None:
    trainer, _ = make_trainer(
        tmp_path, value_warmup_rollouts=5, total_episodes=48, weight_decay=0.1
    )
    before = weights(trainer)
    trainer.train()
    for name, parameter in trainer.actor_critic.named_parameters():
        assert torch.equal(before[name], parameter) is ("value_head" not in name), name


def test_target_kl_ends_the_update_and_not_the_next(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(
        tmp_path, target_kl=1e-9, num_ppo_epochs=3, logging_steps=1, total_episodes=32
    )
    seen: list[tuple[int, bool]] = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append((state.global_step, trainer.stopped_early))

    trainer.add_callback(Watch())
    before = weights(trainer)
    trainer.train()
    per_rollout = trainer.args.steps_per_rollout
    stopped = {step for step, flag in seen if flag}
    assert not {0, per_rollout} & stopped  # a rollout's first step has KL 0
    assert set(range(2, per_rollout)) <= stopped  # and everything after is skipped
    assert any(not torch.equal(before[n], p) for n, p in trainer.actor_critic.named_parameters())


def test_actor_and_critic_have_their_own_learning_rates(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    head = {id(p) for p in trainer.actor_critic.value_head.parameters()}
    for group in groups:
        critic = any(id(p) in head for p in group["params"])
        assert group["lr"] == (1e-2 if critic else 2e-3)
        assert not (critic and group["weight_decay"])
    counted = sum(len(g["params"]) for g in groups)
    assert counted == sum(p.requires_grad for p in trainer.actor_critic.parameters())


def test_same_seed_same_run_and_other_seed_another(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer, recorder = make_trainer(tmp_path, seed=seed, total_episodes=32)
        trainer.train()
        runs.append((weights(trainer), [log.get("objective/scores") for log in recorder.logs]))
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert all(torch.equal(v, runs[1][0][n]) for n, v in runs[0][0].items())


def test_evaluate_and_keeping_the_best_checkpoint(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="objective",
        greater_is_better=True,
    )
    trainer.train()
    evaluated = [log["eval_objective"] for log in recorder.logs if "eval_objective" in log]
    assert len(evaluated) == 3
    assert trainer.state.best_metric == max(evaluated)
    metrics = trainer.evaluate()
    assert metrics["eval_objective"] == pytest.approx(max(evaluated), abs=1e-5)
    assert metrics["eval_objective"] == pytest.approx(
        metrics["eval_scores"] - 0.1 * metrics["eval_kl"], abs=1e-9
    )


@pytest.mark.parametrize(
    ("length", "episodes"),
    [
        ({"total_episodes": 640}, 640),
        ({"total_episodes": None, "max_steps": 160}, 640),
        ({"total_episodes": None, "num_train_epochs": 40}, 1920),
    ],
)
def test_the_kl_controller_s_horizon_is_a_part_of_the_run(
    tmp_path: Path, length: dict[str, Any], episodes: int
) -> None:
    """Whatever the run's length, a KL that stays beyond the target moves β far within it."""
    trainer, _ = make_trainer(tmp_path, kl_target=1.0, **length)
    control, rollout = trainer.kl_control, trainer.args.rollout_batch_size
    assert rollout == 16
    for _ in range(episodes // rollout):
        control.update(5.0, rollout)
    assert 0.1 * 40 < control.coefficient < 0.1 * 55
    set_by_hand, _ = make_trainer(tmp_path, kl_target=1.0, kl_horizon=10_000, **length)
    assert set_by_hand.kl_control.horizon == 10_000


def test_the_value_loss_s_weight_counts_where_the_policy_learns_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, the head takes the same steps whatever its loss is multiplied by, and that is said."""

    def change(name: str, **settings: Any) -> float:
        ends = []
        for vf_coef in (0.1, 1.0):
            trainer, _ = make_trainer(tmp_path, vf_coef=vf_coef, **settings)
            before = weights(trainer)
            trainer.train()
            after = weights(trainer)
            moved = [(after[key] - before[key]).flatten() for key in after if name in key]
            ends.append(torch.cat(moved))
        return float((ends[0] - ends[1]).norm() / ends[0].norm())

    assert change("value_head.") < 0.02
    assert "warning: vf_coef=0.1 changes next to nothing" in capsys.readouterr().err
    assert change("policy.", value_backprop=True) > 0.1
    assert "vf_coef" not in capsys.readouterr().err


def test_a_prompt_too_long_for_the_model_is_told_before_a_rollout(tmp_path: Path) -> None:
    tokenizer = toy.toy_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = prepare(GPT2LMHeadModel(GPT2Config(**sizes, n_positions=16)), tokenizer)
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, response_length=12)
    fits = ["the film", "the film about love"]
    data: dict[str, Any] = {"processing_class": tokenizer, "train_dataset": fits}
    trainer = PPOTrainer(model, letters, args, eval_dataset=fits, **data)
    with pytest.raises(UserError, match="evaluation prompt 0 .* has 5 tokens, and with 12"):
        trainer.evaluate(["the film about love is"])
    with pytest.raises(UserError, match="evaluation prompt 2 .* has 5 tokens, and with 12"):
        PPOTrainer(
            model, letters, args, eval_dataset=[*fits, "this sequel about school is"], **data
        )


def test_a_broken_policy_is_told_before_it_learns(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path)
    with torch.no_grad():
        next(iter(trainer.actor_critic.policy.parameters())).fill_(torch.nan)
    with pytest.raises(UserError, match="log-probability of a completion is not finite"):
        trainer.train()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, c: [1.0], "1"),
        (lambda p, c: [float("nan")] * len(c), "nan"),
        (lambda p, c: 1 / 0, "division"),
    ],
    ids=["wrong length", "NaN", "raises"],
)
def test_a_broken_reward_function_is_one_clear_error(tmp_path: Path, reward, message: str) -> None:
    trainer, _ = make_trainer(tmp_path, reward=reward)
    with pytest.raises(RewardError, match=message) as error:
        trainer.train()
    assert "\n" not in str(error.value)


def test_conversations_as_prompts(tmp_path: Path) -> None:
    seen: list[str] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        seen.extend(prompts)
        return [0.0] * len(completions)

    trainer, _ = make_trainer(tmp_path, reward=reward, total_episodes=16)
    trainer.train_dataset = [[{"role": "user", "content": p}] for p in PROMPTS]  # type: ignore
    trainer.train()
    assert set(seen) <= set(PROMPTS)


@pytest.mark.parametrize("use_peft", [False, True], ids=["upper layers", "LoRA"])
def test_gpt2_whose_decoder_cannot_be_split(tmp_path: Path, use_peft: bool) -> None:
    """GPT-2 adds positions to whatever it is given: no trunk is cached, and all is well."""
    tokenizer = toy.toy_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=2, n_positions=64,
        eos_token_id=0, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    layers = None if use_peft else 1
    choice = ModelSection(model_name_or_path="gpt2", trainable_layers=layers, use_peft=use_peft)
    recorder = Recorder()
    trainer = PPOTrainer(
        model=make_trainable(prepare(GPT2LMHeadModel(config), tokenizer), choice),
        reward_function=letters,
        args=PPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True,
            save_strategy="no", per_device_train_batch_size=8, num_mini_batches=1,
            num_ppo_epochs=1, total_episodes=8, response_length=5,
        ),
        processing_class=tokenizer,
        train_dataset=PROMPTS,
        callbacks=[recorder],
    )  # fmt: skip
    assert trainer.actor_critic.trunk(torch.arange(3, 9)[None]) is None
    trainer.train()
    assert recorder.logs[0]["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert recorder.logs[0]["objective/kl_exact"] == pytest.approx(0.0, abs=1e-5)


def test_a_checkpoints_own_sampling_settings_do_not_reach_the_rollout(tmp_path: Path) -> None:
    tokenizer = toy.toy_tokenizer()
    model = toy.toy_language_model(0)
    model.generation_config.repetition_penalty = 1.5  # as some instruction models are shipped
    tokenizer.pad_token = None
    trainer = PPOTrainer(
        model=model,
        reward_function=letters,
        args=PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, total_episodes=16),
        processing_class=tokenizer,
        train_dataset=PROMPTS,
    )
    assert trainer.actor_critic.policy.generation_config.repetition_penalty is None  # type: ignore
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_dropout_kept_as_a_plain_number_is_switched_off_too() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    model = prepare(OPTForCausalLM(config), toy.toy_tokenizer()).train()
    tokens = torch.arange(2, 9)[None]
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_adapters_on_upper_layers_only(tmp_path: Path) -> None:
    section = {
        "trainable_layers": None,
        "use_peft": True,
        "lora_target_modules": ["layers.3.self_attn.q_proj"],
    }
    trainer, recorder = make_trainer(tmp_path, section=section, total_episodes=16)
    assert trainer.actor_critic.trunk(torch.arange(3, 9)[None]) is not None
    trainer.train()
    assert recorder.logs[0]["objective/kl_exact"] == pytest.approx(0.0, abs=1e-5)
