"""The reward of prefixes as critic: its fit, its texts, what it costs, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.toy import toy_tokenizer
from pipeline.errors import FailedReward
from pipeline.lm.generation import Completion, sample
from pipeline.ppo import PPOConfig
from pipeline.ppo.advice import advice
from pipeline.ppo.prefix import GROUPS, KEPT, PrefixCritic, prefixes
from tests.pipeline.ppo.test_trainer import PROMPTS, letters, make_trainer


def alone(values: torch.Tensor) -> torch.Tensor:
    return values


def numbers(rows: int, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, returns that depend on them, and a mask of completions of many lengths."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, steps, generator=generator) + 3
    slope = torch.linspace(0.5, 1.5, steps)
    returns = slope * scores - 2 + 0.3 * torch.randn(rows, steps, generator=generator)
    lengths = torch.randint(steps // 2, steps + 1, (rows, 1), generator=generator)
    return scores, returns, torch.arange(steps) < lengths


@pytest.mark.parametrize("steps", [6, 80])
def test_the_lines_are_numpys_least_squares_discounted_over_rollouts(steps: int) -> None:
    critic = PrefixCritic(steps)
    rollouts = [numbers(200, steps, seed) for seed in (0, 1, 2)]
    values = [critic.values(*rollout, alone) for rollout in rollouts]
    groups = min(steps, GROUPS)
    assert critic.lines().shape == (groups, 2)
    place = np.arange(steps) * groups // steps
    assert place[-1] == groups - 1
    for seen in (1, 3):  # after the first rollout; after all of them
        for group in range(groups):
            columns: list[list[np.ndarray]] = [[], [], []]
            for age, (scores, returns, mask) in enumerate(rollouts[seen - 1 :: -1]):
                here = mask.numpy() & (place == group)
                columns[0].append(np.full(here.sum(), KEPT ** (age / 2)))  # a square's is KEPT^age
                columns[1].append(scores.numpy()[here])
                columns[2].append(returns.numpy()[here])
            root, x, y = (np.concatenate(column) for column in columns)
            design = np.stack([x, np.ones_like(x)], 1) * root[:, None]
            wanted = np.linalg.lstsq(design, y * root, rcond=None)[0]
            if seen == 3:
                assert critic.lines()[group].tolist() == pytest.approx(wanted, abs=1e-6)
                continue
            for scores, _, mask in rollouts[:2]:  # the first is fitted on itself, the second not
                index = 0 if scores is rollouts[0][0] else 1
                here = mask & torch.tensor(place == group)
                line = wanted[0] * scores[here] + wanted[1]
                assert torch.allclose(values[index][here], line.float(), atol=1e-4)
    assert all(not v[~mask].any() for v, (_, _, mask) in zip(values, rollouts, strict=True))


def test_the_fit_is_of_all_processes_rows() -> None:
    scores, returns, mask = numbers(40, 12, 0)
    whole, half = PrefixCritic(12), PrefixCritic(12)
    other = PrefixCritic(12)._sums_of(scores[20:], returns[20:], mask[20:], alone)
    expected = whole.values(scores, returns, mask, alone)
    found = half.values(scores[:20], returns[:20], mask[:20], lambda sums: sums + other)
    assert torch.allclose(found, expected[:20])
    assert torch.allclose(half.sums, whole.sums)


def test_scores_that_do_not_differ_and_positions_that_nobody_reached() -> None:
    """The mean is what is known then; a group almost without tokens has the line of all."""
    critic = PrefixCritic(4)
    mask = torch.tensor([[True, True, True, False]] * 19 + [[True] * 4])
    scores = torch.full((20, 4), 1e6)
    scores[:, 2] = torch.linspace(-1, 1, 20)
    returns = torch.arange(80.0).view(20, 4)
    critic.values(scores, returns, mask, alone)
    lines = critic.lines()
    assert lines[0].tolist() == [0.0, pytest.approx(38.0)]
    everything = np.polyfit(scores[mask].numpy(), returns[mask].numpy(), 1)
    assert lines[3, 0] == pytest.approx(everything[0])
    assert torch.isfinite(lines).all()
    assert not PrefixCritic(4).lines().any()


def test_prefixes_are_the_completions_text_before_each_token() -> None:
    tokenizer: Any = toy_tokenizer()
    ids: tuple[int, ...] = tuple(tokenizer(PROMPTS[0] + " " + PROMPTS[1])["input_ids"][:5])
    said = tokenizer.decode(ids)
    first = Completion("the", (4,), (*ids, tokenizer.eos_token_id), said, True)
    second = Completion("the", (4,), ids[:2], tokenizer.decode(ids[:2]), False)
    texts, index = prefixes([first, second], tokenizer, 1)
    assert index.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 0, 0]]
    assert [len(p.completion_ids) for p in texts] == [0, 1, 2, 3, 4, 5]
    assert texts[0].text == "" and first.text.strip() == texts[5].text.strip()
    assert all(not p.ended and p.prompt == "the" for p in texts)
    for shorter, longer in zip(texts, texts[1:], strict=False):
        assert longer.text.startswith(shorter.text) and longer.text != shorter.text
    third, index = prefixes([first, second], tokenizer, 4)
    assert [len(p.completion_ids) for p in third] == [0, 4]
    assert index.tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6]


@pytest.mark.parametrize("every", [1, 3])
def test_one_call_for_all_prefixes_and_none_behind_the_end(tmp_path: Path, every: int) -> None:
    calls: list[int] = []

    def counted(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return letters(prompts, completions)

    trainer, recorder = make_trainer(
        tmp_path, counted, critic="prefix", prefix_every=every, response_length=7
    )
    trainer.train()
    rows = [row for row in recorder.logs if "objective/scores" in row]
    assert len(calls) == 2 * len(rows) == 6
    for row, whole, parts in zip(rows, calls[::2], calls[1::2], strict=True):
        assert row["val/reward_queries"] == whole + parts
        tokens = row["val/length"] * 16
        assert whole == 16 and parts <= (tokens if every == 1 else 16 * 3)
        assert parts > 16


def test_it_explains_a_reward_that_adds_up_where_the_head_knows_nothing(tmp_path: Path) -> None:
    explained = {}
    for critic in ("head", "prefix"):
        trainer, recorder = make_trainer(tmp_path, critic=critic, per_device_train_batch_size=24)
        trainer.train()
        explained[critic] = recorder.logs[0]["val/explained_variance"]
    assert explained["head"] == pytest.approx(0.0, abs=0.01)
    assert explained["prefix"] > 0.3


def test_prefixes_are_clipped_and_scaled_as_scores_and_pay_no_missing_eos(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"reward_clip": 0.3, "normalize_rewards": True, "lam": 1.0}
    trainer, _ = make_trainer(tmp_path, critic="prefix", missing_eos_penalty=9.0, **settings)
    seen: list[torch.Tensor] = []
    plain = trainer.prefix_critic.values

    def values(scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(scores)
        return plain(scores, *rest)

    trainer.prefix_critic.values = values  # type: ignore[method-assign]
    trainer._collect(PROMPTS[:16])
    limit = 0.3 / trainer.score_deviation.value
    assert trainer.score_deviation.count == 16  # prefixes have no part in it
    assert seen[0].min() == 0.0 and seen[0].max() == pytest.approx(limit)
    assert len(seen[0].unique()) > 1


def test_the_head_learns_what_the_lines_leave(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, critic="prefix", lam=0.9)
    microbatches = trainer._collect(PROMPTS[:16])
    # The head begins at 0, so what it is taught is the advantage.
    trainer, _ = make_trainer(tmp_path, critic="prefix", lam=0.9, whiten_advantages=False)
    for data in (microbatches[0], trainer._collect(PROMPTS[:16])[0]):
        assert not data.old_values.any()
    assert torch.allclose(data.returns, data.advantages, atol=1e-6)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda scores: [None, *scores[1:]], "None"),
        (lambda scores: [*scores[:-1], float("nan")], "nan"),
        (lambda scores: scores[1:], "scores"),
    ],
)
def test_a_reward_that_fails_on_prefixes_alone(tmp_path: Path, broken: Any, message: str) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[Any]:
        scores = letters(prompts, completions)
        return broken(scores) if "" in completions and len(completions) > 16 else scores

    trainer, _ = make_trainer(tmp_path, reward, critic="prefix")
    with pytest.raises(FailedReward, match=message) as caught:
        trainer.train()
    assert "failed-rollout-0.json" in str(caught.value)


def test_sampling_and_scoring_prefixes_agree_on_text(tmp_path: Path) -> None:
    """A prefix of all tokens would have the completion's own text."""
    trainer, _ = make_trainer(tmp_path)
    made = sample(
        trainer.actor_critic.policy, trainer.tokenizer, PROMPTS[:8],
        max_new_tokens=6, batch_size=8, seed=0,
    )  # fmt: skip
    for completion in made:
        extended = Completion(
            completion.prompt, completion.prompt_ids, (*completion.completion_ids, 5), "", False
        )
        texts, index = prefixes([extended], trainer.tokenizer, 1)
        assert texts[index[0, -1]].text == completion.text


def test_prefix_every_without_the_critic_is_told() -> None:
    arguments: dict[str, Any] = {"output_dir": "x", "use_cpu": True, "prefix_every": 2}
    assert any("prefix_every" in line for line in advice(PPOConfig(**arguments)))
    assert not list(advice(PPOConfig(critic="prefix", **arguments)))
