"""Seeds pooled: means, the scale of optimality, differences, on numbers that are worked out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pipeline.compare import best_of_n
from pipeline.compare.intervals import ratio
from pipeline.compare.yardstick import Yardstick
from pipeline.report.verdict import judge
from pipeline.sweep import figures, results
from pipeline.sweep.pooling import Pooling, deviation, mean
from tests.pipeline.sweep.made import RECORDS, SAMPLES, measured, trial


def pooled(gains: Mapping[str, list[float]], shared: bool = True, **more: Any) -> dict[str, Any]:
    found = {}
    for policy, each in gains.items():
        for seed, gain in enumerate(each):
            one = trial(policy, seed, **more)
            found[one] = measured(one, gain)
    (comparison,) = Pooling(500, 0, [0.2, 1.0], shared, RECORDS).comparisons(found)
    return comparison


def test_means_and_spread_over_seeds() -> None:
    found = pooled({"ppo": [0.2, 0.4, 0.6]})
    row = found["methods"]["ppo"]
    each = [measured(trial("ppo", s), g).reward.mean() for s, g in enumerate([0.2, 0.4, 0.6])]
    assert row["reward"] == pytest.approx(np.mean(each))
    assert found["spread"]["ppo"]["reward"] == pytest.approx(np.std(each, ddof=1))
    assert row["objective"] == pytest.approx(row["reward"] - 0.5 * 0.2)
    assert "reward_se" not in row  # that of a single seed
    assert row["reward_ci"][0] < row["reward"] < row["reward_ci"][1]
    assert row["train_reward_queries"] == pytest.approx(101)
    assert found["seeds"] == {"ppo": [0, 1, 2]}


def room_of(rewards: np.ndarray) -> np.ndarray:
    """What can be gained at β = 0.5 over a reference with these rewards, by prompt."""
    room = Yardstick.of(rewards, 0.5, [1.0]).room
    assert room is not None
    return room


@pytest.mark.parametrize("shared", [True, False])
def test_optimality_is_of_all_reference_samples(shared: bool) -> None:
    """With one SFT model all seeds' samples of it count; else each seed has its own scale."""
    found = pooled({"ppo": [0.2, 0.4]}, shared)
    both = [measured(trial("ppo", s), g) for s, g in enumerate([0.2, 0.4])]
    together = np.concatenate([m.reference for m in both], axis=1)
    gain, room = [], []
    for m in both:
        rewards = together if shared else m.reference
        gain.append((m.reward - 0.5 * m.kl - rewards.mean(axis=1)).mean())
        room.append(room_of(rewards).mean())
    expected = sum(gain) / sum(room)
    row = found["methods"]["ppo"]
    assert row["optimality"] == pytest.approx(expected)
    assert row["optimality_ci"][0] < expected < row["optimality_ci"][1]
    by_seed = found["optimality_by_seed"]["ppo"]
    assert by_seed["0"] == pytest.approx(gain[0] / room[0])
    assert {p["beta"] for p in found["frontier"]} == {0.2, 0.5, 1.0}
    assert found["reference_samples"] == 2 * SAMPLES


def test_one_seed_is_what_the_trial_says() -> None:
    found = pooled({"ppo": [0.3]})
    m = measured(trial("ppo", 0), 0.3)
    base = m.reference.mean(axis=1)
    share = ratio(m.reward - 0.5 * m.kl - base, room_of(m.reference))
    assert found["methods"]["ppo"]["optimality"] == pytest.approx(share)
    assert found["spread"]["ppo"] == {}


def test_differences_are_paired_and_say_whether_the_seeds_agree() -> None:
    agreed = pooled({"ppo": [0.5, 0.5, 0.5], "dpo": [0.2, 0.2, 0.2]})["differences"]
    (pair,) = agreed
    assert (pair["first"], pair["second"]) == ("ppo", "dpo")
    assert pair["objective"] > 0 and pair["objective_ci"][0] > 0
    assert (pair["agree"], pair["seeds"]) == (3, 3)
    (pair,) = pooled({"ppo": [0.9, 0.2, 0.6], "dpo": [0.3, 0.5, 0.3]})["differences"]
    assert (pair["agree"], pair["seeds"]) == (2, 3)
    (pair,) = pooled({"ppo": [0.5, 0.5, 0.5], "dpo": [0.2]})["differences"]
    assert pair["seeds"] == 1  # only those that both have


def test_reference_and_best_of_n_stand_beside_them() -> None:
    found = pooled({"ppo": [0.2, 0.4]})
    assert [p["name"] for p in found["policies"]] == ["sft", "ppo", "best_of_n"]
    both = [measured(trial("ppo", s), 0.0).reference.mean() for s in (0, 1)]
    assert found["methods"]["sft"]["objective"] == pytest.approx(np.mean(both))
    assert 0 < found["methods"]["best_of_n"]["optimality"] < 1


def test_at_beta_zero_there_is_no_optimum() -> None:
    found = pooled({"ppo": [0.2, 0.4], "dpo": [0.3, 0.3]}, beta=0.0)
    assert found["methods"]["ppo"]["optimality"] is None
    assert found["differences"][0]["optimality_ci"] is None
    assert found["differences"][0]["objective_ci"] is not None
    assert {p["beta"] for p in found["frontier"]} == {0.2, 1.0}


def test_a_policy_without_beta_counts_at_each() -> None:
    one = trial("dpo", 0, beta=0.5, betas=(0.5, 1.0))
    other = trial("ppo", 0, beta=1.0)
    found = {one: measured(one, 0.3), other: measured(other, 0.3)}
    half, whole = Pooling(50, 0, [1.0], True, RECORDS).comparisons(found)
    assert (half["beta"], whole["beta"]) == (0.5, 1.0)
    assert list(half["seeds"]) == ["dpo"] and set(whole["seeds"]) == {"dpo", "ppo"}
    reward = found[one].reward.mean()
    assert half["methods"]["dpo"]["objective"] == pytest.approx(reward - 0.1)
    assert whole["methods"]["dpo"]["objective"] == pytest.approx(reward - 0.2)
    row = next(r for r in results.rows(found) if r["policy"] == "dpo")
    assert row["beta"] is None and "objective" not in row["metrics"]


def test_further_axes_are_entries_of_their_own() -> None:
    found = {}
    for size in (64, 128):
        one = trial("ppo", 0, name=f"ppo-{size}", over={"ppo.total_episodes": size})
        found[one] = measured(one, size / 1000)
    (comparison,) = Pooling(50, 0, [1.0], True, RECORDS).comparisons(found)
    names = ["ppo, ppo.total_episodes = 64", "ppo, ppo.total_episodes = 128"]
    assert list(comparison["seeds"]) == names
    assert comparison["policies"][1]["title"] == "PPO, ppo.total_episodes = 64"


def test_intervals_are_not_made_again() -> None:
    found = {t: measured(t, 0.3) for t in (trial("ppo", 0), trial("ppo", 1))}
    pooling = Pooling(50, 0, [1.0], True, RECORDS)
    first = pooling.comparisons(found)
    before = dict(pooling._made)
    assert pooling.comparisons(found) == first and pooling._made == before
    third = trial("ppo", 2)
    pooling.comparisons(found | {third: measured(third, 0.1)})
    assert len(pooling._made) > len(before)


def test_mean_and_deviation_leave_out_what_is_no_number_of_all() -> None:
    each = [{"a": 1.0, "b": None, "a_ci": [0, 1], "t": "x"}, {"a": 3.0, "b": 2.0, "c": 1.0}]
    assert mean(each) == {"a": 2.0, "b": None, "c": None}
    assert deviation(each) == {"a": pytest.approx(2**0.5)}


def test_rows_and_csv() -> None:
    found = {t: measured(t, 0.3) for t in (trial("ppo", 0), trial("ppo", 1), trial("dpo", 0))}
    rows = results.rows(found)
    kinds = [(row["policy"], row["seed"]) for row in rows]
    assert kinds.count(("sft", 0)) == 1 and kinds.count(("best_of_n", 1)) == 1
    assert {("ppo", 0), ("ppo", 1), ("dpo", 0)} <= set(kinds)
    head, *lines = results.table(rows).splitlines()
    columns = head.split(",")
    assert {"trial", "policy", "beta", "seed", "reward", "kl", "optimality"} <= set(columns)
    assert "measure_seconds" in columns and len(lines) == len(rows)


def test_what_depends_on_beta_is_of_the_comparisons_own() -> None:
    """A trial whose training reads no β is measured at one β and counts for all."""
    one = trial("dpo", 0, betas=(0.5, 2.0))
    found = {one: measured(one, 0.3)}
    low, high = Pooling(500, 0, [1.0], True, RECORDS).comparisons(found)
    for comparison in (low, high):
        chosen, row = comparison["methods"]["best_of_n"], comparison["methods"]["dpo"]
        cost = comparison["beta"] * best_of_n.kl_bound(4)
        assert chosen["objective"] == pytest.approx(chosen["reward"] - cost)
        assert chosen["objective_gain"] == pytest.approx(chosen["reward_gain"] - cost)
        assert row["objective_gain"] == pytest.approx(row["reward_gain"] - 0.2 * comparison["beta"])
        assert row["objective_gain_ci"][0] < row["objective_gain"] < row["objective_gain_ci"][1]


def test_reference_and_best_of_n_are_of_all_seeds() -> None:
    found, rewards = {}, []
    for seed in range(3):
        one = trial("ppo", seed)
        found[one] = measured(one, 0.3)
        for name in ("sft", "best_of_n"):
            found[one].results["methods"][name]["gold"] = float(seed)
        rewards.append(found[one].reference)
    (comparison,) = Pooling(500, 0, [1.0], True, RECORDS).comparisons(found)
    rows = comparison["methods"]
    assert rows["sft"]["gold"] == rows["best_of_n"]["gold"] == 1.0
    best = [(best_of_n.weights(each, 4) * each).sum(axis=1).mean() for each in rewards]
    assert rows["best_of_n"]["reward"] == pytest.approx(np.mean(best))
    assert rows["sft"]["reward"] == pytest.approx(np.mean([each.mean() for each in rewards]))


def test_without_a_price_of_kl_a_gain_has_an_interval_too() -> None:
    """Else the verdict would take the luck of the draw for a gain."""
    found = pooled({"ppo": [0.05, -0.04, 0.02]}, beta=0.0)
    row = found["methods"]["ppo"]
    assert row["objective_gain_ci"][0] < 0 < row["objective_gain"] < row["objective_gain_ci"][1]
    assert judge(found, found).ship is None


def test_a_policy_without_kl_has_no_place() -> None:
    """As where it is infinite."""
    one, other = trial("ppo", 0), trial("dpo", 0)
    found = {one: measured(one, 0.3), other: measured(other, 0.2)}
    found[one].results["methods"]["ppo"]["kl"] = None
    (comparison,) = Pooling(500, 0, [1.0], True, RECORDS).comparisons(found)
    row = comparison["methods"]["ppo"]
    assert row["kl"] is row["objective"] is row["optimality"] is None
    assert comparison["differences"] == [] and row["reward_gain"] > 0
    assert judge(comparison, comparison).ship == "dpo"
    assert figures.reward_kl([comparison], results.rows(found)) is not None
