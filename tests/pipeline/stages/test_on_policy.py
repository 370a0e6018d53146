"""RLOO and GRPO: TRL's steps on our problem, its reference, its reward and its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, RLOOConfig

from pipeline.certify.problem import PROMPT, Problem
from pipeline.config import ModelSection, methods
from pipeline.data import toy
from pipeline.data.records import with_columns
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.models import frozen_copy, make_trainable, prepare
from pipeline.lm.paths import completion_nll
from pipeline.output.checkpoints import CompleteMarker
from pipeline.stages.cost import spent_by
from pipeline.stages.on_policy import GRPO, RLOO, updates_per_rollout
from pipeline.stages.training import resume

PROMPTS = ["the film was", "a movie that", "i think it", "the plot is really"] * 4
KINDS = [pytest.param(RLOO, RLOOConfig, id="rloo"), pytest.param(GRPO, GRPOConfig, id="grpo")]
Kind = Any


def different_words(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]


def arguments(config: Kind, folder: Path, **settings: Any) -> Any:
    plain: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "per_device_train_batch_size": 32, "num_generations": 8, "num_iterations": 2,
        "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 2, "learning_rate": 2e-3, "beta": 0.3, "max_completion_length": 8,
        "max_steps": 8,
    }  # fmt: skip
    if config is GRPOConfig:
        plain |= {"scale_rewards": "none", "loss_type": "dr_grpo"}
    return config(**plain | settings)


def policy(section: ModelSection | None = None) -> Any:
    model = prepare(toy.toy_language_model(0), toy.toy_tokenizer())
    model.config._name_or_path = "/nowhere"  # TRL loads its reference from there
    section = section or ModelSection(model_name_or_path="toy")
    return make_trainable(model, section, 0, section.policy_modules)


def make(kind: Kind, args: Any, **more: Any) -> Any:
    given: dict[str, Any] = {
        "model": policy(), "reward": different_words, "args": args, "prompts": PROMPTS,
        "processing_class": toy.toy_tokenizer(), "sampled_at_once": 64,
    }  # fmt: skip
    return kind(**given | more)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_the_reward_goes_up_and_what_it_cost_is_counted(
    kind: Kind, config: Kind, tmp_path: Path
) -> None:
    trainer = make(kind, arguments(config, tmp_path, max_steps=60))
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.4  # 0.8 and 0.9 more at seed 0
    spent = spent_by(trainer)
    assert spent["reward_queries"] == spent["completions"] == 30 * 32
    assert 30 * 32 * 4 < spent["tokens"] <= 30 * 32 * 8


@pytest.mark.parametrize(("kind", "config"), KINDS)
@pytest.mark.parametrize(
    "section",
    [
        ModelSection(model_name_or_path="toy"),
        ModelSection(model_name_or_path="toy", trainable_layers=1, policy_modules=["v_proj"]),
        ModelSection(model_name_or_path="toy", use_peft=True, lora_r=4),
    ],
    ids=["all", "modules", "lora"],
)
def test_kl_is_charged_against_the_weights_that_training_began_with(
    kind: Kind, config: Kind, section: ModelSection, tmp_path: Path
) -> None:
    """After training, with the steps off: the kl of a rollout is that of both models' own."""
    trainer = make(kind, arguments(config, tmp_path), model=policy(section))
    trainer.train()
    first = next(row["kl"] for row in trainer.state.log_history if "kl" in row)
    assert 0 <= abs(first) < 0.1
    trainer.model.train()
    trainer._metrics["train"].clear()
    rows = [trainer.train_dataset[i] for i in range(4) for _ in range(8)]
    trainer._generate_and_score_completions(rows)
    if kind is GRPO:
        inputs = trainer._generate_and_score_completions(rows)
        masks = inputs["completion_mask"].bool()
        charged = -inputs["ref_per_token_logps"][masks].sum()
    drawn = trainer._drawn
    start = [-nll for nll in completion_nll(policy(section), drawn)]
    end = [-nll for nll in completion_nll(trainer.model, drawn)]
    tokens = sum(len(c.completion_ids) for c in drawn)
    if kind is RLOO:
        expected = (sum(end) - sum(start)) / tokens
        assert trainer._metrics["train"]["kl"][-1] == pytest.approx(expected, abs=1e-5)
        assert abs(expected) > 1e-3
    else:
        assert float(charged) == pytest.approx(-sum(start), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_tokens_have_the_positions_that_they_were_sampled_at(lora: bool, tmp_path: Path) -> None:
    """GPT-2, whose positions are learned, with prompts of several lengths in a batch."""
    problem = Problem(0, 0.6)
    section = ModelSection(model_name_or_path="toy", use_peft=lora, lora_r=2)
    prompts = [PROMPT, f"{PROMPT} b c", f"{PROMPT} d"] * 4
    args = arguments(RLOOConfig, tmp_path, max_completion_length=3)
    trainer = make(
        RLOO,
        args,
        model=make_trainable(problem.model(), section),
        reward=lambda prompts, completions: [0.0] * len(prompts),
        prompts=prompts,
        processing_class=problem.tokenizer,
    )
    trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(4) for _ in range(8)]
    output = trainer._generate_and_score_completions(rows)
    expected = [-nll for nll in completion_nll(problem.model(), trainer._drawn)]
    assert len({len(c.prompt_ids) for c in trainer._drawn}) == 3
    assert output["old_logps"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_a_run_that_was_killed_ends_as_if_it_were_not(
    kind: Kind, config: Kind, tmp_path: Path
) -> None:
    """To the bit, with a checkpoint asked for in the middle of a rollout, in the second epoch."""

    def run(folder: Path, kill: bool) -> Any:
        args = arguments(config, folder, save_strategy="steps", save_steps=3, max_steps=16)
        trainer = make(kind, args)
        assert args.save_steps == 4 and updates_per_rollout(args) == 2
        trainer.add_callback(CompleteMarker())
        if kill:
            plain = trainer._generate_and_score_completions

            def dies(inputs: Any) -> Any:
                if trainer.state.global_step >= 14:
                    raise KeyboardInterrupt
                return plain(inputs)

            trainer._generate_and_score_completions = dies
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            return None
        resume(trainer)
        return trainer

    run(tmp_path / "killed", kill=True)
    resumed, whole = run(tmp_path / "killed", kill=False), run(tmp_path / "whole", kill=False)
    assert resumed.state.global_step == whole.state.global_step == 16
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name
    assert spent_by(resumed) == spent_by(whole)
    again = run(tmp_path / "killed", kill=False)  # has ended: it is only loaded
    assert spent_by(again) == spent_by(whole)


def test_the_reward_is_asked_as_everywhere(tmp_path: Path) -> None:
    """Columns of the prompts' rows, the tokens, whether it ended; conversations as such."""
    seen: list[dict[str, Any]] = []

    def reward(prompts: Any, completions: Any, topic: Any, ended: Any, **_: Any) -> list[float]:
        for row in zip(prompts, completions, topic, ended, strict=True):
            seen.append(dict(zip(("prompt", "completion", "topic", "ended"), row, strict=True)))
        return [0.0] * len(prompts)

    prompts = [with_columns(text, {"topic": len(text)}) for text in PROMPTS]
    trainer = make(
        RLOO, arguments(RLOOConfig, tmp_path, max_steps=1), reward=reward, prompts=prompts
    )
    trainer.train()
    assert len(seen) == 32
    for row, completion in zip(seen, trainer._drawn, strict=True):
        assert row["topic"] == len(row["prompt"]) and row["completion"] == completion.text
        assert row["ended"] == completion.ended
    assert {row["ended"] for row in seen} == {True, False} or not all(r["ended"] for r in seen)
    with pytest.raises(UserError, match="topic"):
        make(RLOO, arguments(RLOOConfig, tmp_path), reward=reward)


def test_conversations_are_written_by_the_template(tmp_path: Path) -> None:
    talks: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS]
    asked: list[Any] = []

    def reward(prompts: Any, completions: Any) -> list[float]:
        asked.extend(prompts)
        return [0.0] * len(prompts)

    args = arguments(GRPOConfig, tmp_path, max_steps=1)
    trainer = make(GRPO, args, reward=reward, prompts=talks)
    trainer.train()
    drawn: list[Completion] = trainer._drawn
    tokenizer: Any = toy.toy_tokenizer()
    assert len(asked) == len(drawn) == 32
    for prompt, completion in zip(asked, drawn, strict=True):
        assert prompt.messages in talks
        written = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True)
        assert list(completion.prompt_ids) == list(written["input_ids"])


def test_evaluations_sample_the_held_prompts_the_same_way_each_time(tmp_path: Path) -> None:
    args = arguments(
        RLOOConfig, tmp_path, eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=16,
        eval_on_start=True, learning_rate=0.0,
    )  # fmt: skip
    trainer = make(RLOO, args, held=["a good film", "the actor was"])
    trainer.train()
    evaluations = [row["eval_reward"] for row in trainer.state.log_history if "eval_reward" in row]
    assert len(evaluations) == 3 and len(set(evaluations)) == 1
    assert spent_by(trainer)["completions"] == 4 * 32 + 3 * 16


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_iterations": 3, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        {"generation_batch_size": 128, "num_iterations": 2},
    ],
)
def test_the_length_of_a_rollout_is_known_before_the_trainer(
    settings: dict[str, int], tmp_path: Path
) -> None:
    given = {"per_device_train_batch_size": 32, "num_generations": 8, "num_iterations": 1}
    made = updates_per_rollout(arguments(RLOOConfig, tmp_path, **given | settings))
    assert methods.updates_per_rollout("rloo", given | settings) == made


def test_a_copy_is_not_the_policy() -> None:
    """What the tests of the reference rest on."""
    model = policy()
    copy = frozen_copy(model)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert not torch.equal(next(model.parameters()), next(copy.parameters()))
