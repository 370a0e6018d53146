"""Optimality and KL efficiency are bounds, or nothing, where the optimum is not trusted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pipeline.compare import frontier
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.intervals import ratio
from pipeline.compare.yardstick import Yardstick, helpers
from tests.pipeline.compare.enumerated import enumerate_language_model

MODEL = enumerate_language_model(prompts=40)
REWARDS = MODEL.sample(64, seed=0)
TRUSTED, UNTRUSTED = (Yardstick.of(REWARDS, beta, [2.0, 5.0]) for beta in (3.0, 0.05))
GAIN = 0.4 * (TRUSTED.best.by_prompt - REWARDS.mean(1)) if TRUSTED.best else np.zeros(40)


def test_a_share_of_the_room_is_an_estimate_where_the_optimum_is_trusted() -> None:
    row = TRUSTED.optimality(GAIN, 100, 0)
    assert row["optimality"] == pytest.approx(0.4) and row["optimality_bound"] is None
    assert row["optimality_ci"] == pytest.approx((0.4, 0.4))
    assert TRUSTED.optimality(-GAIN, 100, 0)["optimality_bound"] is None
    assert TRUSTED.optimality(GAIN, 100, 0, lower_bound=True)["optimality_bound"] == "at least"


def test_and_a_bound_where_it_is_not() -> None:
    """The room is too small, so a gain's share is too large, and a loss's too far below 0."""
    exact = MODEL.objective(MODEL.optimal(0.05), 0.05) - float(REWARDS.mean())
    for gain, word in ((GAIN, "at most"), (-GAIN, "at least")):
        row = UNTRUSTED.optimality(gain, 100, 0)
        assert row["optimality_bound"] == word
        truth = gain.mean() / exact
        assert row["optimality"] > truth if word == "at most" else row["optimality"] < truth
        assert row["optimality"] == ratio(gain, UNTRUSTED.room)  # type: ignore[arg-type]
    assert UNTRUSTED.optimality(GAIN, 100, 0, lower_bound=True)["optimality_bound"] == "unclear"


def test_there_is_no_optimum_where_kl_is_free_or_no_gain_is_known() -> None:
    free = Yardstick.of(REWARDS, 0.0, [2.0, 5.0])
    nothing = {"optimality": None, "optimality_ci": None, "optimality_bound": None}
    assert free.room is None and free.optimality(GAIN, 100, 0) == nothing
    assert TRUSTED.optimality(None, 100, 0) == nothing
    assert [row["beta"] for row in free.frontier()] == [2.0, 5.0]
    details = free.details()
    assert (details["j_star"], details["trusted"], details["optimum"]) == (None, None, [])


def test_kl_efficiency_is_none_beyond_the_last_trusted_point() -> None:
    top = TRUSTED.points[0].point()
    assert [row["beta"] for row in TRUSTED.frontier()] == [2.0, 3.0, 5.0]
    inside = TRUSTED.efficiency(top.reward - 0.1, 2.0)
    assert inside["kl_efficiency"] == frontier.kl_efficiency(TRUSTED.points, top.reward - 0.1, 2.0)
    assert inside["kl_efficiency"] is not None and inside["kl_efficiency_at_least"] is None
    beyond = TRUSTED.efficiency(top.reward + 0.1, 2.0)
    assert beyond == {"kl_efficiency": None, "kl_efficiency_at_least": top.kl / 2.0}
    unknown = {"kl_efficiency": None, "kl_efficiency_at_least": None}
    assert TRUSTED.efficiency(top.reward, None) == unknown


def test_the_details_tell_how_far_the_optimum_is_trusted() -> None:
    for yardstick, trusted in ((TRUSTED, True), (UNTRUSTED, False)):
        details = yardstick.details()
        assert details["trusted"] is trusted is (details["untrusted_because"] is None)
        assert details["j_star"] == pytest.approx(float(yardstick.best.by_prompt.mean()))  # type: ignore[union-attr]
        assert details["j_star_ci"][0] < details["j_star"] < details["j_star_ci"][1]
        assert details["objective_ref"] == pytest.approx(REWARDS.mean())
        assert details["optimum"][-1]["n"] == 64
        # The last row of the doubling has all samples too.
        assert details["j_star"] == pytest.approx(
            details["optimum"][-1]["corrected" if trusted else "j_star"]
        )


def evaluation(m: int, **fields: object) -> Evaluation:
    """Two prompts, ``m`` samples each, rewards 0, 1, 2, …"""
    count = 2 * m
    scores, ones = [float(i) for i in range(count)], [1] * count
    made = Evaluation(
        ["p", "q"], m, [""] * count, ones, [True] * count, scores, scores, [0.0] * count, 1.0, 1
    )
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def test_policies_that_read_all_of_the_references_samples_help() -> None:
    """In the order of the prompts; not one of another tokenizer, or that read a few of them."""
    own, theirs = [0.1 * i for i in range(8)], [-0.1 * i for i in range(12)]
    read = evaluation(4, logratio=own, ref_samples=6, ref_logratio=theirs)
    (found,) = helpers(
        {
            "sft": evaluation(6, logratio=theirs, ref_samples=6, ref_logratio=theirs),
            "ppo": read,
            "few": dataclasses.replace(read, ref_samples=3, ref_logratio=theirs[:6]),
            "other": evaluation(4),
            "never": dataclasses.replace(read, logratio=[math.inf, *own[1:]]),
        },
        "sft",
    )
    assert found.name == "ppo"
    np.testing.assert_allclose(found.rewards, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_allclose(found.logratio, [own[:4], own[4:]])
    np.testing.assert_allclose(found.reference_logratio, [theirs[:6], theirs[6:]])
