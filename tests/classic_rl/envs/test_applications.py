"""Recommender and Bidding: what they pay, and optima that are checked by another road."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest

from classic_rl.envs import Bidding, Recommender, linear_bids
from classic_rl.envs.bidding import CHANCES, HIGHEST, PRICES, WORTHS
from classic_rl.errors import ProblemError
from classic_rl.tabular.evaluation import policy_evaluation
from classic_rl.tabular.planning import policy_iteration


def test_the_recommender_pays_what_is_written() -> None:
    env = Recommender()
    [leave, down, up, still] = env.outcomes(5, 1)
    minutes = 0.5 * (1 + 6 * np.sqrt(0.25))
    assert leave == pytest.approx((0.1, 11, minutes))
    assert down == pytest.approx((0.9 * 0.125, 4, minutes))
    assert up == pytest.approx((0.9 * 0.375, 6, minutes))
    assert still == pytest.approx((0.9 * 0.5, 5, minutes))


def test_two_levels_by_hand() -> None:
    """Satisfied or not, content or clickbait: four policies, and each value as a linear system."""
    env = Recommender(levels=2, items=2)
    values = {}
    for bad, good in itertools.product((0, 1), repeat=2):
        # From 0: leaves with 0.15, pays nothing. From 1: leaves with 0.05.
        up = 0.85 * 0.5 * (bad == 0)
        down = 0.95 * 0.5 * (good == 1)
        pay = np.array([0.0, 7.0 if good else 1.0])
        chain = np.array([[0.85 - up, up], [down, 0.95 - down]])
        values[bad, good] = np.linalg.solve(np.eye(2) - chain, pay)
    best = policy_iteration(env.mdp(1.0))
    np.testing.assert_allclose(best.values[:2], np.max(list(values.values()), axis=0))
    assert values[0, 1][0] == pytest.approx(best.values[0]) and list(best.policy[:2]) == [0, 1]


def test_the_next_minutes_are_not_the_most_minutes() -> None:
    env = Recommender()
    mdp = env.mdp(1.0)
    best = policy_iteration(mdp)
    always = [policy_evaluation(mdp, np.full(mdp.n_states, item))[5] for item in range(5)]
    assert always[4] < 0.4 * max(always) and max(always) < 0.9 * best.values[5]
    assert list(best.policy[:11]) == sorted(best.policy[:11])  # trust first


def test_sessions_last_as_long_as_the_model_says() -> None:
    """1,000 sessions of mild clickbait, seeds 0 to 999; within four standard errors."""
    env, minutes = Recommender(), []
    for seed in range(1000):
        env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            _, reward, ended, _, _ = env.step(1)
            total += reward
        minutes.append(total)
    mdp = env.mdp(1.0)
    exact = policy_evaluation(mdp, np.full(mdp.n_states, 1))[5]
    assert abs(np.mean(minutes) - exact) < 4 * np.std(minutes) / np.sqrt(len(minutes))


def expected(env: Bidding, left: int, purse: int, best: bool, bids: np.ndarray) -> float:
    """Clicks to come, by trying everything: exponential, and nothing of `Bidding.plan`."""
    if left == 0:
        return 0.0
    total = 0.0
    for kind, chance in enumerate(CHANCES):
        values = []
        for bid in range(HIGHEST + 1) if best else [bids[kind]]:
            value = 0.0
            for price, odds in enumerate(PRICES, 1):
                won = price <= min(bid, purse)
                rest = expected(env, left - 1, purse - price * won, best, bids)
                value += odds * (WORTHS[kind] * won + rest)
            values.append(value)
        total += chance * max(values)
    return total


@pytest.mark.parametrize(("auctions", "budget"), [(1, 4), (2, 1), (2, 7)])
def test_the_plan_is_what_trying_everything_gives(auctions: int, budget: int) -> None:
    env = Bidding(auctions=auctions, budget=budget)
    bids = linear_bids(1.5)
    assert env.plan()[0] == pytest.approx(expected(env, auctions, budget, True, bids))
    assert env.plan(bids)[0] == pytest.approx(expected(env, auctions, budget, False, bids))


def test_without_a_limit_to_the_money_any_price_is_right() -> None:
    env = Bidding(auctions=20, budget=20 * HIGHEST)
    assert env.plan()[0] == pytest.approx(20 * WORTHS @ CHANCES)


def test_campaigns_played_are_worth_what_the_plan_says() -> None:
    """400 campaigns, seeds 0 to 399; the mean is within four standard errors."""
    env = Bidding()
    exact, bids = env.plan()
    clicks = []
    for seed in range(400):
        env.reset(seed=seed)
        total, paid, ended = 0.0, 0, False
        while not ended:
            bid = int(bids[env.left - 1, env.purse, env.kind])
            observation, reward, ended, _, info = env.step(bid)
            total, paid = total + reward, paid + info["paid"]
            assert info["paid"] <= bid and (reward > 0) == (info["paid"] > 0)
            assert observation in env.observation_space
        assert env.purse == 60 - paid and min(env.left, env.purse) == 0
        clicks.append(total)
    assert abs(np.mean(clicks) - exact) < 4 * np.std(clicks) / np.sqrt(len(clicks))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recommender(levels=1), "levels: 1 is too few"),
        (lambda: Recommender(items=1), "items: 1 is too few"),
        (lambda: Bidding(auctions=0), "auctions: 0 is not a whole number of at least 1"),
        (lambda: Bidding(budget=1.5), "budget: 1.5 is not a whole number"),  # type: ignore[arg-type]
    ],
)
def test_numbers_that_cannot_be_used(make, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        make()


def test_what_is_over_is_over() -> None:
    for env in (Recommender(), Bidding()):
        with pytest.raises(gym.error.ResetNeeded):
            env.step(0)
        env.reset(seed=0)
        with pytest.raises(ProblemError, match="not among 0 to"):
            env.step(-1)
