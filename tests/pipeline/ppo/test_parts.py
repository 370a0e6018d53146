"""The pieces of the PPO trainer that need no trainer: shaping, controllers, order, settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from classic_rl.advantages import completion_gae
from pipeline.lm.generation import Completion
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.actor_critic import TokenRecord
from pipeline.ppo.advice import advice
from pipeline.ppo.control import KLController, RunningDeviation
from pipeline.ppo.rollout import Rollout, microbatches, schedule, shaped_scores, token_rewards
from pipeline.ppo.upkeep.memory import Memory
from pipeline.ppo.upkeep.sharing import RolloutSampler


def test_score_lands_on_the_last_token_and_kl_on_every_token() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]])
    ref = torch.tensor([[-2.0, -2.0, -1.0], [-1.5, 0.0, 0.0]])
    zero = torch.zeros_like(ref)
    old = TokenRecord(logps, zero, zero, ref, zero)
    rewards = token_rewards(torch.tensor([5.0, 7.0]), old, mask, 0.5, "k1")
    assert rewards.tolist() == [[-0.5, 0.0, 5.0 + 1.0], [7.0 - 0.25, 0.0, 0.0]]


def test_missing_eos_penalty_and_clipping() -> None:
    settings: dict[str, Any] = {"output_dir": "x", "use_cpu": True, "bf16": False}
    args = PPOConfig(**settings, reward_clip=2.0, missing_eos_penalty=1.0)
    scores, ended = torch.tensor([5.0, 5.0, -9.0]), torch.tensor([True, False, True])
    shaped = shaped_scores(scores, ended, args, RunningDeviation(), lambda values: values)
    assert shaped.tolist() == [2.0, 1.0, -2.0]


def test_an_outlier_beyond_the_clip_does_not_set_the_scale() -> None:
    settings: dict[str, Any] = {"output_dir": "x", "use_cpu": True, "bf16": False}
    args = PPOConfig(**settings, reward_clip=2.0, normalize_rewards=True)
    scores, ended = torch.tensor([2.0, -2.0, 1e6, -2.0]), torch.ones(4, dtype=torch.bool)
    shaped = shaped_scores(scores, ended, args, RunningDeviation(), lambda values: values)
    assert shaped.tolist() == pytest.approx([1.0, -1.0, 1.0, -1.0])


def test_bad_settings_name_the_field() -> None:
    for field, value in {"lam": 1.5, "gamma": 0.0, "cliprange": -1, "temperature": 0.0}.items():
        with pytest.raises(ValueError, match=field):
            PPOConfig(output_dir="x", use_cpu=True, bf16=False, **{field: value})


def test_kl_controller_follows_ziegler() -> None:
    control = KLController(0.1, target=6.0, horizon=1000)
    control.update(60.0, episodes=100)  # far above: the error is clipped to 0.2
    assert control.coefficient == pytest.approx(0.1 * (1 + 0.2 * 100 / 1000))
    control.update(5.4, episodes=100)
    assert control.coefficient == pytest.approx(0.102 * (1 - 0.1 * 0.1))
    fixed = KLController(0.1, None, 1000)
    fixed.update(60.0, 100)
    assert fixed.coefficient == 0.1


def settings(**arguments: Any) -> PPOConfig:
    return PPOConfig(output_dir="x", use_cpu=True, bf16=False, **arguments)


@pytest.mark.parametrize("tokens", [1, 20, 256, 2048])
def test_by_default_the_first_token_is_credited_with_the_whole_score(tokens: int) -> None:
    """Also before the critic, which begins at 0, has learned anything, however long it is."""
    rewards = torch.zeros(1, tokens)
    rewards[0, -1] = 3.0
    args, mask = settings(), torch.ones(1, tokens, dtype=torch.bool)
    credit, _ = completion_gae(rewards, torch.zeros(1, tokens), mask, args.gamma, args.lam)
    assert credit[0].tolist() == [3.0] * tokens


def test_a_lambda_that_hides_the_score_from_the_first_token_is_warned_of() -> None:
    rewards = torch.zeros(1, 256)
    rewards[0, -1] = 1.0
    mask = torch.ones(1, 256, dtype=torch.bool)
    credit, _ = completion_gae(rewards, torch.zeros(1, 256), mask, 1.0, 0.95)
    (line,) = advice(settings(lam=0.95, response_length=256))
    assert f"of 256 tokens the first is credited with {float(credit[0, 0]):.1g}" in line
    assert not list(advice(settings(lam=0.95, response_length=64)))
    assert not list(advice(settings(response_length=2048)))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_an_estimator_with_another_optimum_is_warned_of_with_the_certificate_s_figure(
    estimator: str,
) -> None:
    table = (Path(__file__).parents[3] / "docs" / "certificate.md").read_text(encoding="utf-8")
    figures = {
        row.split("|")[1].strip(): float(row.split("|")[2].split()[0])
        for row in table.partition("## PPO's switches")[2].splitlines()
        if row.startswith(("| PPO  ", "| k2 in the reward", "| k3 in the reward"))
    }
    (line,) = advice(settings(kl_estimator=estimator))
    assert f"measured {figures[f'{estimator} in the reward']:.2f} of the way" in line
    assert f" {figures['PPO']:.2f} with k1" in line
    assert not list(advice(settings(kl_estimator=estimator, kl_in="loss")))
    assert not list(advice(settings()))


def test_running_deviation_equals_the_deviation_of_everything() -> None:
    scores = torch.randn(300, generator=torch.Generator().manual_seed(0)).double() * 3 + 5
    running = RunningDeviation()
    assert running.value == 1.0
    for part in scores.split(77):
        running.update(len(part), float(part.sum()), float(part.square().sum()))
    assert running.value == pytest.approx(float(scores.std(unbiased=False)))


def test_rollout_sampler_repeats_each_rollout_and_reshuffles_each_epoch() -> None:
    sampler = RolloutSampler(prompts=10, rollout=4, repeats=3, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 2 * 4 * 3
    assert first[0:4] == first[4:8] == first[8:12] != first[12:16]
    assert len(set(first[:4] + first[12:16])) == 8
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    few = RolloutSampler(prompts=3, rollout=8, repeats=1, seed=0)
    assert len(list(few)) == 8 and set(few) == {0, 1, 2}


def test_minibatches_are_reshuffled_every_epoch_and_cover_the_rollout() -> None:
    args = PPOConfig(
        output_dir="x", use_cpu=True, bf16=False, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, num_mini_batches=2, num_ppo_epochs=2,
    )  # fmt: skip
    rows = [Completion("", (3,), tuple(range(4, 5 + i % 5)), "", True) for i in range(16)]
    lengths = torch.tensor([1 + len(row.completion_ids) for row in rows])
    plan = schedule(lengths, args, seed=1)
    assert len(plan) == args.steps_per_rollout == 4
    epochs = [torch.cat(plan[0] + plan[1]), torch.cat(plan[2] + plan[3])]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(16))
    assert set(torch.cat(plan[0]).tolist()) != set(torch.cat(plan[2]).tolist())


def test_the_activations_of_a_rollout_are_there_once_and_cut_for_the_pass_that_needs_them() -> None:
    args = PPOConfig(
        output_dir="x", use_cpu=True, bf16=False, per_device_train_batch_size=4,
        num_mini_batches=2, num_ppo_epochs=3,
    )  # fmt: skip
    rows = [Completion("", (3,) * (1 + i % 3), tuple(range(4, 5 + i)), "", True) for i in range(8)]
    batch = TokenBatch.collate(rows, 0, torch.device("cpu"))
    numbers = torch.randn(6, *batch.mask.shape)
    trunk = torch.randn(*batch.sequences.shape, 5)
    old = TokenRecord(*numbers[:5])
    rewards, advantages, returns = numbers[3:6]
    rollout = Rollout(rows, batch, trunk, numbers[0, :, 0], old, rewards, advantages, returns)
    lengths = batch.prompt_lengths + batch.mask.sum(1)
    plan = schedule(lengths, args, seed=1)
    parts = microbatches(rollout, plan, lambda values: values)
    indices = [index for minibatch in plan for index in minibatch]
    assert len(parts) == len(indices) == 6
    assert all(part.kept_trunk is trunk for part in parts)
    halves = []
    for part, index in zip(parts, indices, strict=True):
        width = int(lengths[index].max())
        assert part.trunk is not None and torch.equal(part.trunk, trunk[index, :width])
        assert torch.equal(part.batch.sequences, batch.sequences[index, :width])
        Memory(1, lambda: None)._parts(
            part, 2, lambda half, _: halves.append(half) or torch.ones(())
        )
        for half, its in zip(halves[-2:], index.split(2), strict=True):
            assert half.kept_trunk is trunk
            assert torch.equal(half.trunk, trunk[its, : int(lengths[its].max())])
            assert torch.equal(half.old_logps, old.logps[its, : half.batch.mask.shape[1]])


def test_resumed_in_mid_epoch_under_two_processes_the_sampler_knows_its_epoch() -> None:
    """Wrapped for resume and for shards, set_epoch no longer reaches the sampler by itself."""
    sampler = RolloutSampler(prompts=16, rollout=8, repeats=2, seed=0)
    loader = prepare_data_loader(
        DataLoader(list(range(16)), batch_size=4, sampler=sampler),  # type: ignore[arg-type]
        num_processes=2,
        process_index=1,
        put_on_device=False,
    )
    resumed: Any = skip_first_batches(loader, 2)
    trainer: Any = SimpleNamespace(_sampler=sampler, rollout_index=3 * sampler.rollouts + 1)
    PPOTrainer.choose_epoch(trainer)
    resumed.set_epoch(3)
    batches = [tuple(batch.tolist()) for batch in resumed]
    sampler.set_epoch(3)
    whole = list(sampler)
    second = whole[16:]  # the second rollout, twice; this process has the later half of each
    assert batches == [tuple(second[4:8])] * 2
