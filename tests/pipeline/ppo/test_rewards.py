"""What PPO makes of what a reward says: columns, a score a token, parts, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from classic_rl.advantages import discounted_sums
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.actor_critic import TokenRecord
from pipeline.ppo.control import RunningDeviation
from pipeline.ppo.rollout import Rollout, dense_scores, shaped_scores, token_rewards
from reward_models import Scores
from tests.pipeline.ppo.test_trainer import make_trainer

TEXTS = ["the film is", "the plot is", "a story about", "this movie about"]
TALKS = [[{"role": "user", "content": text}] for text in TEXTS]


def config(**settings: Any) -> PPOConfig:
    return PPOConfig(output_dir="x", use_cpu=True, bf16=False, **settings)


def trainer_of(
    reward: Any, dataset: Any, folder: Path, evaluated: bool = True, **settings: Any
) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no",
        report_to=[], total_episodes=8, per_device_train_batch_size=4, num_mini_batches=2,
        num_ppo_epochs=1, response_length=3, **settings,
    )  # fmt: skip
    model, tokenizer = toy.toy_language_model(0), toy.toy_tokenizer()
    return PPOTrainer(model, reward, arguments, tokenizer, dataset, dataset if evaluated else None)


def even(completion_ids: Any, **kwargs: Any) -> list[list[float]]:
    """A dense reward: 1 for an even token, −½ for an odd one."""
    return [[1.0 if token % 2 == 0 else -0.5 for token in ids] for ids in completion_ids]


def summed(completion_ids: Any, **kwargs: Any) -> list[float]:
    return [sum(row) for row in even(completion_ids)]


def collected(trainer: PPOTrainer) -> list[Rollout]:
    """The rollouts of a run."""
    kept: list[Rollout] = []
    on_rollout = trainer.on_rollout

    def keep(rollout: Rollout) -> dict[str, float]:
        kept.append(rollout)
        return on_rollout(rollout)

    trainer.on_rollout = keep  # type: ignore[method-assign]
    trainer.train()
    return kept


# --- Columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [TEXTS, TALKS], ids=["texts", "conversations"])
def test_the_columns_of_a_row_stay_with_its_prompt(prompts: list[Any], tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def reward(prompts: Any, completions: Any, number: Any, completion_ids: Any, ended: Any) -> Any:
        seen.extend(zip(map(str, prompts), number, strict=True))
        eos = toy.toy_tokenizer().eos_token_id
        assert [ids[-1] == eos for ids in completion_ids] == ended
        assert all(len(ids) <= 3 for ids in completion_ids)
        return [float(n) for n in number]

    rows = {"prompt": prompts, "number": [10, 11, 12, 13], "completion": ["no"] * 4}
    trainer = trainer_of(reward, Dataset.from_dict(rows), tmp_path)
    trainer.train()
    assert {text: number for text, number in seen} == dict(zip(TEXTS, rows["number"], strict=True))
    seen.clear()
    assert trainer.evaluate()["eval_scores"] == pytest.approx(11.5)
    assert len(seen) == 4
    seen.clear()
    other = [{"prompt": prompts[2], "number": 7}]
    assert trainer.evaluate(other)["eval_scores"] == 7.0
    assert seen == [(TEXTS[2], 7)]
    with pytest.raises(UserError, match="nothing for 'number'"):
        trainer.evaluate(prompts)


def test_columns_that_are_not_there_or_called_like_ours_are_refused_at_once(tmp_path: Path) -> None:
    rows = [{"prompt": text, "ended": 1} for text in TEXTS]
    with pytest.raises(UserError, match="nothing for 'solution'; there are"):
        trainer_of(lambda completions, solution: [], rows, tmp_path)
    with pytest.raises(UserError, match="'ended' is both"):
        trainer_of(lambda completions, **kwargs: [], rows, tmp_path)
    trainer_of(lambda completions: [], rows, tmp_path)
    rows = [{"prompt": text, "number": 1} for text in TEXTS]
    trainer_of(lambda completions, number: [], rows, tmp_path, evaluated=False)


# --- A score a token ------------------------------------------------------------------------------


def test_every_token_is_paid_its_own_score_and_the_first_returns_are_those_of_the_sum(
    tmp_path: Path,
) -> None:
    [dense, *_] = collected(trainer_of(even, TEXTS, tmp_path / "dense"))
    [sparse, *_] = collected(trainer_of(summed, TEXTS, tmp_path / "sparse"))
    mask = dense.batch.mask
    paid = torch.zeros(mask.shape)
    for row, completion in enumerate(dense.completions):
        [values] = even([completion.completion_ids])
        paid[row, : len(values)] = torch.tensor(values)
    # Nothing is learned yet, so no KL is charged.
    assert torch.allclose(dense.token_rewards, paid, atol=1e-4)
    assert torch.equal(dense.scores, sparse.scores)
    assert torch.equal(dense.batch.completion_ids, sparse.batch.completion_ids)
    first = discounted_sums(dense.token_rewards, 1.0)[:, 0]
    assert torch.allclose(first, discounted_sums(sparse.token_rewards, 1.0)[:, 0], atol=1e-5)
    assert not torch.allclose(dense.token_rewards, sparse.token_rewards)


def test_ppo_learns_from_a_dense_reward(tmp_path: Path) -> None:
    """Seeds 0 to 4 begin at 1.2 to 1.9 and end at 5.7 to 5.8; an even token everywhere is 6."""
    trainer, recorder = make_trainer(
        tmp_path, even, {"trainable_layers": None}, total_episodes=240, kl_coef=0.01,
        learning_rate=1e-2, lr_scheduler_type="constant", kl_warning=None,
    )  # fmt: skip
    trainer.train()
    scores = [row["objective/scores"] for row in recorder.logs if "objective/scores" in row]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 2


def test_scaling_and_the_penalty_for_no_end() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    tokens, ended = [[1.0, 2.0, -1.0], [0.0, -2.0]], torch.tensor([True, False])
    scores = torch.tensor([2.0, -2.0])
    args = config(normalize_rewards=True, missing_eos_penalty=0.5)
    scale = RunningDeviation()
    shaped = shaped_scores(scores, ended, args, scale, lambda values: values)
    paid = dense_scores(tokens, mask, ended, args, scale)
    assert scale.value == pytest.approx(2.0)
    assert paid.tolist() == [[0.5, 1.0, -0.5], [0.0, -1.5, 0.0]]
    assert paid.sum(1).tolist() == shaped.tolist() == [1.0, -1.5]
    zero = torch.zeros(mask.shape)
    old = TokenRecord(torch.full(mask.shape, -1.0), zero, zero, zero, zero)
    rewards = token_rewards(paid, old, mask, 0.5, "k1")
    assert torch.equal(rewards, torch.where(mask, paid + 0.5, 0.0))


@pytest.mark.parametrize("settings", [{"reward_clip": 1.0}, {"critic": "prefix"}])
def test_what_means_nothing_where_every_token_is_paid_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trainer_of(even, TEXTS, tmp_path, **settings)
    with pytest.raises(UserError, match="gives every token its own score") as error:
        trainer.train()
    assert str(error.value).startswith(next(iter(settings))) and "\n" not in str(error.value)


def test_a_list_that_is_not_as_long_as_its_completion_names_it(tmp_path: Path) -> None:
    def wrong(completion_ids: Any) -> list[list[float]]:
        rows = even(completion_ids)
        return [*rows[:2], [*rows[2], 0.0], *rows[3:]]

    with pytest.raises(UserError, match="completion 2 .* return one for each of its completion_id"):
        trainer_of(wrong, TEXTS, tmp_path).train()


# --- Parts ----------------------------------------------------------------------------------------


def test_each_part_is_logged_over_the_completions_that_it_applies_to(tmp_path: Path) -> None:
    asked: list[Any] = []

    def reward(completions: list[str]) -> Scores:
        asked.append(len(completions))
        first = [float(index) for index in range(len(completions))]
        some = [3.0 if index % 2 else None for index in range(len(completions))]
        nowhere = [None] * len(completions)
        return Scores(first, None, {"first": [*first], "some": [*some], "nowhere": [*nowhere]})

    trainer, recorder = make_trainer(tmp_path, reward, total_episodes=16)
    trainer.train()
    [row] = [row for row in recorder.logs if "objective/scores" in row]
    assert asked == [16]
    assert {name: value for name, value in row.items() if name.startswith("rewards/")} == {
        "rewards/first/mean": pytest.approx(7.5),
        "rewards/first/std": pytest.approx(row["objective/scores_std"]),
        "rewards/some/mean": 3.0,
        "rewards/some/std": 0.0,
    }
    measured = trainer.evaluate()
    assert measured["eval_rewards/first/mean"] == measured["eval_scores"] == 3.5
    assert measured["eval_rewards/some/std"] == 0.0
