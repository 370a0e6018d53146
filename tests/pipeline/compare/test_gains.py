"""Win rates, gains and rewards at equal length against values made by hand, or by brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.compare.answers import Answers, pair_weights
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.gains import Bootstrap, Slopes, against, at_equal_length, characters, gain

BOOTSTRAP = Bootstrap(500, 0)


def evaluation(proxy: Any, **fields: Any) -> Evaluation:
    """From scores ``(P, m)``."""
    grid = np.asarray(proxy, dtype=np.float64)
    count = grid.size
    made = Evaluation(
        prompts=[str(i) for i in range(len(grid))],
        samples_per_prompt=grid.shape[1],
        texts=["x"] * count,
        lengths=[1] * count,
        ended=[True] * count,
        proxy=grid.ravel().tolist(),
        gold=grid.ravel().tolist(),
        kl=[0.0] * count,
        nll=1.0,
        nll_tokens=1,
    )
    return replace(made, **fields)


SFT = evaluation([[0.0, 1.0], [2.0, 2.0], [5.0, 7.0]])
POLICY = evaluation([[1.0, 2.0, 0.5], [2.0, 1.0, 1.0], [6.0, 8.0, 9.0]])


def test_win_rates_by_hand() -> None:
    # Prompt 0: 1 beats 0 and ties with 1, 2 beats both, 0.5 beats 0: 4.5 of 6.
    found = Answers(POLICY).win_rate(POLICY.proxy, Answers(SFT).grid(SFT.proxy))
    assert found == pytest.approx([4.5 / 6, 1.0 / 6, 5.0 / 6])
    assert Answers(SFT).win_rate(SFT.proxy, Answers(SFT).grid(SFT.proxy)) == pytest.approx(
        [0.5] * 3
    )


def test_the_win_rate_is_mann_whitneys_u() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 9, (4, 30)) / 1.0, rng.integers(0, 7, (4, 20)) / 1.0
    found = Answers(evaluation(ours)).win_rate(ours.ravel().tolist(), theirs)
    wanted = [stats.mannwhitneyu(a, b).statistic / 600 for a, b in zip(ours, theirs, strict=True)]
    assert found == pytest.approx(wanted)


def test_pairs_without_a_score_are_left_out() -> None:
    found = Answers(POLICY).win_rate(
        [1.0, None, None, None, None, None, 6.0, 8.0, None],
        np.array([[0.0, np.nan], [2.0, 2.0], [5.0, 7.0]]),
    )
    assert found[[0, 2]] == pytest.approx([1.0, 3 / 4])
    assert np.isnan(found[1])


def drawn(proxy: list[float], gold: list[float], n: int) -> float:
    """Best-of-n's win rate by all draws of n, against each sample that was not drawn."""
    count, won = 0, 0.0
    everyone = range(len(proxy))
    for chosen in combinations(everyone, n):
        best = max(chosen, key=lambda i: proxy[i])
        for other in set(everyone) - set(chosen):
            count += 1
            won += (gold[best] > gold[other]) + 0.5 * (gold[best] == gold[other])
    return won / count


@pytest.mark.parametrize("n", [2, 3, 5])
def test_best_of_n_against_those_it_did_not_draw(n: int) -> None:
    rng = np.random.default_rng(n)
    proxy = rng.normal(size=(3, 6))
    gold = np.round(proxy + rng.normal(size=(3, 6)))
    base = evaluation(proxy, gold=gold.ravel().tolist())
    found = Answers(base, n).win_rate(base.gold, Answers(base).grid(base.gold))
    wanted = [drawn(p.tolist(), g.tolist(), n) for p, g in zip(proxy, gold, strict=True)]
    assert found == pytest.approx(wanted)
    assert pair_weights(6, n).sum() == pytest.approx(1.0)


def test_best_of_n_by_its_own_reward_wins_n_of_n_plus_1() -> None:
    base = evaluation(np.random.default_rng(1).normal(size=(2, 40)))
    found = Answers(base, 4).win_rate(base.proxy, Answers(base).grid(base.proxy))
    assert found == pytest.approx([4 / 5] * 2)
    everyone = Answers(base, 40).win_rate(base.proxy, Answers(base).grid(base.proxy))
    assert np.isnan(everyone).all()


def test_gains_are_paired_by_prompt() -> None:
    # Prompts differ by far more than policies do: an unpaired interval would be ±100 wide.
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 100, (40, 1))
    sft = Answers(evaluation(hard + rng.normal(0, 1, (40, 8))))
    policy = Answers(evaluation(hard + 1 + rng.normal(0, 1, (40, 4))))
    row = against(policy, sft, BOOTSTRAP)
    low, high = row["reward_gain_ci"]
    assert low < row["reward_gain"] < high and 0.3 < high - low < 0.6
    assert row["reward_gain"] == pytest.approx(
        np.mean(policy.evaluation.proxy) - np.mean(sft.evaluation.proxy)
    )
    assert row["parts"] == {}
    low, high = row["win_rate_reward_ci"]
    assert 0.6 < low < row["win_rate_reward"] < high < 0.9


def test_sft_gains_nothing_on_itself() -> None:
    row = against(Answers(SFT), Answers(SFT), BOOTSTRAP)
    assert (row["gold_gain"], row["gold_gain_ci"]) == (0.0, (0.0, 0.0))
    assert (row["win_rate_gold"], row["win_rate_gold_ci"]) == (0.5, (0.5, 0.5))


def test_one_prompt_has_no_interval_and_no_kl_no_gain() -> None:
    one = Answers(evaluation([[1.0, 2.0]]))
    assert against(one, one, BOOTSTRAP)["reward_gain_ci"] is None
    assert gain("objective", None, BOOTSTRAP) == {
        "objective_gain": None,
        "objective_gain_ci": None,
    }


def test_parts_that_do_not_always_apply() -> None:
    ours = replace(POLICY, parts={"length": [1.0, 3.0, None, None, None, None, 4.0, 4.0, 4.0]})
    theirs = replace(SFT, parts={"length": [2.0, 0.0, 1.0, 1.0, 4.0, 5.0]})
    part = against(Answers(ours), Answers(theirs), BOOTSTRAP)["parts"]["length"]
    assert part["mean"] == pytest.approx((2.0 + 4.0) / 2)
    assert part["mean_se"] == pytest.approx(1.0)
    assert part["share"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    # Prompt 0: 1 loses to 2 and beats 0, 3 beats both; prompt 2: three ties, three losses.
    assert part["win_rate"] == pytest.approx((3 / 4 + 1.5 / 6) / 2)
    none = replace(POLICY, parts={"length": [None] * 9})
    empty = against(Answers(none), Answers(theirs), BOOTSTRAP)["parts"]["length"]
    assert (empty["mean"], empty["win_rate"], empty["share"]) == (None, None, 0.0)


def lengthy(lengths: Any, score: Any) -> Evaluation:
    lengths = np.asarray(lengths)
    return evaluation(score, texts=["x" * n for n in lengths.ravel().tolist()])


def test_what_length_alone_earns_is_taken_off() -> None:
    """The reward is 0.1 a character and something of each prompt; the policy is just longer."""
    rng = np.random.default_rng(3)
    prompt = rng.normal(0, 5, (12, 1))
    short, long = rng.integers(5, 15, (12, 6)), rng.integers(25, 45, (12, 4))
    sft, policy = lengthy(short, prompt + 0.1 * short), lengthy(long, prompt + 0.1 * long)
    slopes = Slopes.of([(sft, sft.proxy), (policy, policy.proxy)])
    assert slopes.products.sum() / slopes.squares.sum() == pytest.approx(0.1)
    row = at_equal_length("reward", Answers(policy), Answers(sft), policy.proxy, slopes, BOOTSTRAP)
    assert np.mean(policy.proxy) > np.mean(sft.proxy) + 2
    assert row["length_controlled_reward"] == pytest.approx(np.mean(sft.proxy))
    low, high = row["length_controlled_reward_ci"]
    assert low < row["length_controlled_reward"] < high


def test_what_policies_differ_in_is_not_put_down_to_length() -> None:
    """The policy is longer and better, but within a prompt length earns nothing."""
    rng = np.random.default_rng(4)
    short, long = rng.integers(5, 15, (300, 4)), rng.integers(25, 45, (300, 4))
    sft = lengthy(short, rng.normal(0, 1, short.shape))
    policy = lengthy(long, rng.normal(3, 1, long.shape))
    slopes = Slopes.of([(sft, sft.proxy), (policy, policy.proxy)])
    row = at_equal_length("gold", Answers(policy), Answers(sft), policy.gold, slopes, BOOTSTRAP)
    assert row["length_controlled_gold"] == pytest.approx(3.0, abs=0.3)


def test_the_slope_is_that_of_least_squares_with_a_level_for_each_prompt() -> None:
    rng = np.random.default_rng(5)
    lengths, score = rng.integers(1, 30, (5, 3)), rng.normal(size=(5, 3))
    made = lengthy(lengths, score)
    slopes = Slopes.of([(made, made.proxy)])
    x = np.column_stack([lengths.ravel(), np.repeat(np.eye(5), 3, axis=0)])
    slope = np.linalg.lstsq(x, score.ravel(), rcond=None)[0][0]
    assert slopes.products.sum() / slopes.squares.sum() == pytest.approx(slope)
    assert characters(made) == [float(n) for n in lengths.ravel()]


def test_equal_lengths_have_no_slope() -> None:
    slopes = Slopes.of([(SFT, SFT.proxy)])
    row = at_equal_length("reward", Answers(SFT), Answers(SFT), SFT.proxy, slopes, BOOTSTRAP)
    assert row == {"length_controlled_reward": None, "length_controlled_reward_ci": None}
