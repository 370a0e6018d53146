"""Pairs whose labels follow Bradley–Terry, so that DPO's optimum is PPO's."""

from __future__ import annotations

import math

import pytest

from pipeline.lm.generation import Completion
from pipeline.stages.preferences import first_wins_probability, label_pairs


def completion(*tokens: int) -> Completion:
    return Completion("p", (1,), tokens, " ".join(map(str, tokens)), tokens[-1] == 0)


def test_bradley_terry_probability() -> None:
    assert first_wins_probability(2.0, 0.5) == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert first_wins_probability(0.5, 2.0) == pytest.approx(1 / (1 + math.exp(1.5)))
    assert first_wins_probability(-800.0, 800.0) == 0.0
    assert first_wins_probability(1.0, 0.0, hard=True) == 1.0
    assert first_wins_probability(0.0, 0.0, hard=True) == 0.5


def test_labels_follow_the_probability_and_hard_labels_the_reward() -> None:
    count = 4000
    completions = [completion(5, 0), completion(6, 0)] * count
    rewards = [1.0, 0.0] * count
    soft = label_pairs(completions, rewards, hard=False, seed=0)
    share = sum(pair["chosen_reward"] == 1.0 for pair in soft) / count
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * 0.5 / count**0.5)
    hard = label_pairs(completions, rewards, hard=True, seed=0)
    assert all(pair["chosen_reward"] == 1.0 for pair in hard)
    assert soft == label_pairs(completions, rewards, hard=False, seed=0)


def test_equal_completions_make_no_pair_and_tokens_are_kept() -> None:
    rows = [completion(5, 0), completion(5, 0), completion(7, 8), completion(9, 0)]
    pairs = label_pairs(rows, [0.0, 0.0, 9.0, -9.0], hard=True, seed=0)
    assert len(pairs) == 1
    assert pairs[0]["chosen_ids"] == [7, 8]  # ran into the limit: no EOS is added
    assert pairs[0]["rejected_ids"] == [9, 0]
    assert pairs[0]["prompt_ids"] == [1]
