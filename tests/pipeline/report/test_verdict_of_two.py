"""The verdict on PPO and DPO, from results.json as releases before named policies wrote it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from pipeline.report import verdict
from tests.pipeline.report.test_page import RESULTS


def changed(**methods: dict[str, Any]) -> dict[str, Any]:
    """`RESULTS` with some numbers of some methods replaced."""
    results = copy.deepcopy(RESULTS)
    for name, numbers in methods.items():
        results["methods"][name] |= numbers
    return results


def judged(*args: Any, **kwargs: Any) -> verdict.Verdict:
    """The verdict with ordinary spaces, as the tests below write it."""
    found = verdict.judge(*args, **kwargs)
    lists = [[line.replace("\u00a0", " ") for line in x] for x in (found.reasons, found.cautions)]
    return replace(
        found,
        headline=found.headline.replace("\u00a0", " "),
        reasons=lists[0],
        cautions=lists[1],
    )


def test_verdict_when_one_is_clearly_better() -> None:
    found = judged(RESULTS)
    assert (found.ship, found.level, found.cautions) == ("ppo", False, [])
    assert found.headline == (
        "Ship PPO at β = 1: it reaches 76 % of the possible gain, DPO 51 %, and their intervals do"
        " not overlap."
    )
    other = judged(changed(dpo={"optimality": 0.95, "optimality_ci": [0.9, 0.99]}))
    assert other.ship == "dpo" and other.headline.startswith("Ship DPO")


def test_verdict_when_the_intervals_overlap() -> None:
    results = changed(dpo={"optimality": 0.7, "optimality_ci": [0.62, 0.78]})
    quick = judged(results, seconds={"ppo": 400.0, "dpo": 200.0})
    assert (quick.ship, quick.level) == ("dpo", True)
    assert "are level at β = 1" in quick.headline and "intervals overlap" in quick.headline
    assert "Ship DPO: PPO took 2.0 times as long to train." in quick.headline
    results["methods"]["dpo"]["distinct_2"] = 0.6
    marred = judged(results, seconds={"ppo": 400.0, "dpo": 200.0})
    assert marred.ship == "ppo" and "Ship PPO: DPO comes with a caution." in marred.headline
    results["methods"]["dpo"]["distinct_2"] = 0.83
    near = judged(results)
    assert "it stays nearer to the reference (0.74 against 1.05 nats)" in near.headline


def test_verdict_goes_by_the_paired_difference_where_there_is_one() -> None:
    close = changed(dpo={"optimality": 0.7, "optimality_ci": [0.62, 0.78]})
    sharp = judged(close, {"ppo_minus_dpo": {"optimality_ci": [0.02, 0.1]}})
    assert (sharp.ship, sharp.level) == ("ppo", False)
    assert sharp.headline.endswith("DPO 70 %, and the difference is 2 to 10 points.")
    far = judged(RESULTS, {"ppo_minus_dpo": {"optimality_ci": [-0.04, 0.5]}})
    assert far.level and "the difference (−4 to 50 points) may be nothing" in far.headline
    turned = changed(dpo={"optimality": 0.8, "optimality_ci": [0.7, 0.9]})
    other = judged(turned, {"ppo_minus_dpo": {"optimality_ci": [-0.07, -0.01]}})
    assert (other.ship, other.level) == ("dpo", False)
    assert "PPO 76 %, and the difference is 1 to 7 points." in other.headline


def test_verdict_names_reward_hacking() -> None:
    one = judged(changed(ppo={"gold": 0.7}))
    assert one.ship == "dpo"
    assert "PPO raises the reward but not the judge, which is reward hacking" in one.headline
    assert one.cautions == [
        "PPO hacks the reward: the reward rose by 3.04, the judge moved by −0.21."
    ]
    both = judged(changed(ppo={"gold": 0.7}, dpo={"gold": 0.91}))
    assert both.ship is None
    assert both.headline.startswith("Ship neither, keep SFT: PPO and DPO raise the reward but")
    part = judged(changed(ppo={"gold": 1.9}))
    assert part.cautions == [
        "PPO: the judge confirms only 33 % of the reward's gain (+0.99 of +3.04)."
    ]
    assert part.headline.endswith("Read the caution first.")


def test_verdict_when_nothing_is_gained() -> None:
    flat = {"optimality": 0.02, "optimality_ci": [-0.05, 0.09]}
    found = judged(changed(ppo=flat, dpo=flat))
    assert found.ship is None
    assert "no policy is above it by more than the noise" in found.headline
    one = judged(changed(dpo=flat))
    assert one.ship == "ppo" and "DPO is not above SFT by more than the noise" in one.headline


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"distinct_2": 0.5}, "PPO repeats itself: distinct-2 is 0.50, after 0.86"),
        (
            {"perplexity": 150.0},
            "PPO forgets: perplexity of held-out human text is 150.0",
        ),
        ({"length": 9.0}, "PPO changed its length: 9.0 tokens, after 18.6"),
        ({"ended": 0.02}, "PPO stops less often by itself: 2 % of completions, after 21 %"),
        ({"kl": 14.0}, "PPO is far from the reference: 14.0 nats"),
    ],
)
def test_verdict_names_spoilt_text(numbers: dict[str, float], words: str) -> None:
    found = judged(changed(ppo=numbers))
    assert len(found.cautions) == 1 and found.cautions[0].startswith(words)
    assert found.headline.endswith("Read the caution first.")


def test_verdict_says_when_there_is_no_independent_judge() -> None:
    found = judged(RESULTS, {"judge_is_proxy": True})
    assert any("The judge is the reward itself" in line for line in found.cautions)
