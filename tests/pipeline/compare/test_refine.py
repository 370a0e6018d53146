"""Samples of two policies, weighted as samples of their mixture."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.compare import refine
from pipeline.compare.estimates import plain
from pipeline.compare.refine import PolicySamples
from tests.pipeline.compare.enumerated import Enumerated, enumerate_language_model

MODEL = enumerate_language_model(prompts=40)
BETA = 0.5


def samples(policy: np.ndarray, few: int, many: int, seed: int) -> tuple[np.ndarray, PolicySamples]:
    """π_ref's rewards ``(P, many)``, and the policy's samples ``(P, few)``."""
    ratio = np.log(policy) - np.log(MODEL.probabilities)
    ours, theirs = MODEL.draw(policy, few, seed), MODEL.draw(MODEL.probabilities, many, seed + 99)

    def of(table: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, index, 1)

    made = PolicySamples("ppo", of(MODEL.rewards, ours), of(ratio, ours), of(ratio, theirs))
    return of(MODEL.rewards, theirs), made


def test_the_balance_heuristic_by_hand() -> None:
    policy = PolicySamples(
        "ppo", np.array([[1.0, 2.0]]), np.log([[4.0, 0.5]]), np.log([[1.0, 2.0, 3.0, 0.0 + 1e-9]])
    )
    made = refine.mixture(np.zeros((1, 4)), policy)
    assert made.parts == (4, 2)
    np.testing.assert_allclose(made.rewards, [[0, 0, 0, 0, 1, 2]])
    expected = [4 / 6 + 2 / 6 * r for r in (1.0, 2.0, 3.0, 1e-9, 4.0, 0.5)]
    np.testing.assert_allclose(np.exp(made.log_density), [expected])
    # Defensive: no weight is above exp(r/β)·(N + m)/N.
    assert (made.log_weights(BETA) <= made.rewards / BETA + np.log(6 / 4) + 1e-12).all()


@pytest.mark.parametrize("kind", ["near", "far", "wrong"])
def test_z_is_unbiased_whatever_the_policy(kind: str) -> None:
    """Mean Ẑ over 400 draws against the enumerated Z; a wrong policy avoids good completions."""
    policy = {"near": MODEL.optimal(0.7), "far": MODEL.optimal(5.0), "wrong": wrong(MODEL)}[kind]
    found = []
    for seed in range(400):
        rewards, trained = samples(policy, 4, 8, seed)
        found.append(np.exp(refine.mixture(rewards, trained).log_weights(2.0)).mean(axis=1))
    exact = (MODEL.probabilities * np.exp(MODEL.rewards / 2.0)).sum(1)
    assert (np.mean(found, axis=0) / exact).mean() == pytest.approx(1.0, abs=0.03)


def wrong(model: Enumerated) -> np.ndarray:
    policy = model.probabilities * np.exp(-model.rewards)
    return policy / policy.sum(1, keepdims=True)


def test_a_near_policy_takes_most_of_the_error_and_a_wrong_one_adds_little() -> None:
    exact = MODEL.objective(MODEL.optimal(BETA), BETA)
    errors = {}
    for name, policy in (("near", MODEL.optimal(0.6)), ("wrong", wrong(MODEL))):
        rewards, trained = samples(policy, 8, 16, 0)
        together = plain(refine.mixture(rewards, trained), BETA)
        errors[name] = exact - float(together.objective.mean())
    alone = refine.Samples.of_reference(samples(MODEL.optimal(0.6), 8, 16, 0)[0])
    error = exact - float(plain(alone, BETA).objective.mean())
    assert abs(errors["near"]) < 0.2 * error and errors["wrong"] < 1.3 * error


def test_an_odd_one_out_is_left_out_so_that_halves_have_the_same_shares() -> None:
    rewards, trained = samples(MODEL.optimal(0.6), 7, 17, 0)
    made = refine.mixture(rewards, trained)
    assert made.parts == (16, 6)
    assert [half.parts for half in made.halves()] == [(8, 3), (8, 3)]
    first, second = made.halves()
    np.testing.assert_array_equal(first.rewards[:, :8], rewards[:, :8])
    np.testing.assert_array_equal(second.rewards[:, 8:], trained.rewards[:, 3:6])


def test_the_best_policy_is_the_one_of_the_highest_objective_at_that_beta() -> None:
    reward, ratio = np.array([[1.0] * 4]), np.array([[1.0] * 4])
    mild = PolicySamples("mild", reward, ratio, ratio)
    bold = PolicySamples("bold", 2 * reward, 3 * ratio, ratio)
    short = PolicySamples("short", 9 * reward[:, :3], ratio[:, :3], ratio)
    found = [refine.best([mild, bold, short], beta) for beta in (0.4, 0.6)]
    assert [policy and policy.name for policy in found] == ["bold", "mild"]
    assert refine.best([], 1.0) is None and refine.best([short], 1.0) is None
