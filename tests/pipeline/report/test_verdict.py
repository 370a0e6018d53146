"""The verdict's words on results that were made up for each rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.report import verdict

SFT: dict[str, Any] = {
    "reward": 1.0, "gold": 1.0, "gold_positive": 0.5, "kl": 0.0, "objective": 1.0,
    "objective_se": 0.1, "optimality": 0.0, "optimality_ci": [0.0, 0.0], "perplexity": 70.0,
    "distinct_2": 0.9, "self_bleu": 0.2, "length": 20.0, "ended": 0.5,
}  # fmt: skip
KINDS = {"sft": "reference", "best_of_n": "choice", "theirs": "checkpoint"}


def row(optimality: float, half: float = 0.05, **numbers: Any) -> dict[str, Any]:
    """A healthy policy's metrics, ``optimality`` ± ``half``."""
    ends = [optimality - half, optimality + half]
    return {
        "reward": 1 + 4 * optimality, "gold": 1 + 3 * optimality, "gold_positive": 0.8, "kl": 1.0,
        "objective": 1 + 3 * optimality, "optimality": optimality, "optimality_ci": ends,
        "perplexity": 75.0, "distinct_2": 0.85, "self_bleu": 0.25, "length": 19.0, "ended": 0.5,
    } | numbers  # fmt: skip


def made(prompts: Any = 64, beta: Any = 0.5, **rows: Any) -> dict[str, Any]:
    """A results.json with π_ref and ``rows``, in the order given."""
    policies = [
        {
            "name": name, "title": name.upper(), "kind": KINDS.get(name, "trained"),
            "method": "ppo", "marker": "o", "colour": f"#00000{i}", "dark": f"#ffff0{i}",
            "beta": beta, "seed": 0, "stage": None,
        }
        for i, name in enumerate(["sft", *rows])
    ]  # fmt: skip
    methods = {"sft": copy.deepcopy(SFT), **rows}
    return {"beta": beta, "prompts": prompts, "methods": methods, "policies": policies}


def judged(*args: Any, **kwargs: Any) -> verdict.Verdict:
    """The verdict, its headline with ordinary spaces."""
    found = verdict.judge(*args, **kwargs)
    fields = {**vars(found), "headline": found.headline.replace("\u00a0", " ")}
    fields["cautions"] = [line.replace("\u00a0", " ") for line in found.cautions]
    return verdict.Verdict(**fields)


def pair(first: str, second: str, middle: float, half: float) -> dict[str, Any]:
    ends = [middle - half, middle + half]
    return {"first": first, "second": second, "optimality": middle, "optimality_ci": ends}


def test_a_clear_win_over_many() -> None:
    found = judged(made(ppo=row(0.5), ipo=row(0.9), kto=row(0.3), theirs=row(0.7)))
    assert (found.outcome, found.ship, found.level) == ("clear", "ipo", False)
    assert found.order == ("ipo", "theirs", "ppo", "kto")
    assert found.headline == (
        "Ship IPO at β = 0.5: it reaches 90 % of the possible gain, THEIRS 70 %, and their"
        " intervals do not overlap. Behind them: PPO 50 %, KTO 30 %."
    )
    paired = {"differences": [pair("ppo", "ipo", -0.4, 0.1), pair("theirs", "ipo", -0.2, 0.08)]}
    assert "the difference is 12 to 28 points" in judged(made(theirs=row(0.7), ipo=row(0.9)),
                                                         paired).headline  # fmt: skip


def test_a_tie_goes_to_the_fewest_rewards_then_the_shortest_time_then_the_nearest() -> None:
    rows = {
        "ppo": row(0.62, train_reward_queries=8000, train_seconds=300.0, kl=2.0),
        "dpo": row(0.60, train_reward_queries=2000, train_seconds=200.0, kl=1.5),
        "kto": row(0.61, train_reward_queries=2000, train_seconds=100.0, kl=1.8),
    }
    found = judged(made(**rows))
    assert (found.outcome, found.ship, found.level) == ("tie", "kto", True)
    assert found.headline == (
        "PPO, KTO and DPO are level at β = 0.5: 62 %, 61 % and 60 % of the possible gain, and their"
        " intervals overlap. Ship KTO: PPO asked for 4.0 times as many rewards and DPO took 2.0"
        " times as long to train."
    )
    rows["dpo"]["train_seconds"] = 95.0
    assert judged(made(**rows)).headline.endswith(
        "and it stays nearer to the reference (1.50 against 1.80 nats)."
    )
    for name in rows:
        del rows[name]["train_reward_queries"], rows[name]["train_seconds"]
    near = judged(made(**rows)).headline
    assert near.endswith("Ship DPO: it stays nearest to the reference (1.50 nats, up to 2.00).")
    own = judged(made(a=row(0.6, train_reward_queries=0), b=row(0.6, train_reward_queries=10)))
    assert "Ship A: its training asked for 0 rewards, the others' for 10." in own.headline


def test_a_tie_goes_to_the_policy_without_a_caution() -> None:
    found = judged(made(ppo=row(0.62, distinct_2=0.6), dpo=row(0.6, kl=5.0)))
    assert found.ship == "dpo" and "Ship DPO: PPO comes with a caution." in found.headline


def test_a_win_by_hacking_is_not_shipped() -> None:
    found = judged(made(ppo=row(0.95, gold=0.4), dpo=row(0.5), theirs=row(0.9, gold=1.0)))
    assert (found.outcome, found.ship) == ("only one", "dpo")
    assert "PPO and THEIRS raise the reward but not the judge, which is reward hacking" in (
        found.headline
    )
    assert (
        found.cautions[0]
        == "PPO hacks the reward: the reward rose by 3.80, the judge moved by −0.60."
    )
    alone = judged(made(ppo=row(0.95, gold=0.4), kto=row(0.9, gold=0.9), grpo=row(0.9, gold=0.1)))
    assert (alone.outcome, alone.ship) == ("hacking", None)
    assert alone.headline == (
        "Ship none, keep SFT: PPO, KTO and GRPO raise the reward but not the judge (β = 0.5)."
    )
    mixed = judged(made(ppo=row(0.95, gold=0.4), kto=row(0.01)))
    assert mixed.headline == (
        "Ship neither, keep SFT: PPO raises the reward but not the judge, which is reward hacking,"
        " and KTO is not above SFT by more than the noise (β = 0.5)."
    )


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"distinct_2": 0.2}, "it says the same all the time (distinct-2 0.20, after 0.90)"),
        ({"self_bleu": 0.9}, "its answers to one prompt are alike (self-BLEU 0.90, after 0.20)"),
        ({"length": 2.0}, "it hardly answers (2.0 tokens, after 20.0)"),
    ],
)
def test_a_collapse_is_not_shipped(numbers: dict[str, float], words: str) -> None:
    alone = judged(made(ppo=row(0.9, **numbers)))
    assert (alone.outcome, alone.ship) == ("collapse", None)
    assert alone.headline == f"Do not ship it, keep SFT: PPO collapsed (β = 0.5): {words}."
    beside = judged(made(ppo=row(0.9, **numbers), dpo=row(0.5)))
    assert beside.ship == "dpo" and "; PPO collapsed." in beside.headline
    assert f"PPO collapsed: {words}." in beside.cautions


def test_too_few_samples_to_tell_two_apart() -> None:
    results = made(ppo=row(0.6, 0.3), dpo=row(0.5, 0.3, kl=0.5))
    found = judged(results, {"differences": [pair("dpo", "ppo", -0.1, 0.2)]})
    assert (found.outcome, found.ship, found.level) == ("too few", "dpo", True)
    # 64 prompts gave ±20 points; ±10 takes four times as many.
    assert found.headline == (
        "Too few samples to tell PPO and DPO apart at β = 0.5: 60 % and 50 % of the possible gain,"
        " and the difference (−10 to 30 points) may be nothing. About 260 prompts would tell, where"
        " there were 64. Until then ship DPO: it stays nearer to the reference (0.50 against 1.00"
        " nats)."
    )
    narrow = judged(results, {"differences": [pair("dpo", "ppo", -0.01, 0.03)]})
    assert narrow.outcome == "tie"


def test_too_few_samples_to_tell_anybody_from_the_reference() -> None:
    found = judged(made(prompts=10, ppo=row(0.4, 0.6), dpo=row(0.1, 0.5)))
    assert (found.outcome, found.ship) == ("too few", None)
    assert found.headline == (
        "Too few samples to tell at β = 0.5: PPO reaches 40 % of the possible gain, but its"
        " interval (−20 to 100 %) reaches from nothing to much. About 23 prompts would tell, where"
        " there were 10. Until then keep SFT."
    )


def test_seeds_that_disagree() -> None:
    results = made(ppo=row(0.62), dpo=row(0.60, kl=0.5), kto=row(0.1))
    seeds = {"ppo": {0: 0.7, 1: 0.5, 2: 0.66}, "dpo": {0: 0.6, 1: 0.6, 2: 0.6}}
    found = judged(results, seeds=seeds)
    assert (found.outcome, found.ship) == ("seeds disagree", "dpo")
    assert found.headline.startswith(
        "Seeds disagree at β = 0.5: PPO is above DPO in 2 of 3 seeds, and in 1 the ranking flips;"
        " over all seeds they reach 62 % and 60 % of the possible gain."
    )
    pooled = {**pair("dpo", "ppo", -0.02, 0.03), "agree": 2, "seeds": 3}
    counted = judged(results, {"differences": [pooled]})
    assert counted.headline == found.headline
    alone = {"differences": [{**pooled, "agree": 1, "seeds": 1}]}
    assert judged(results, alone).outcome == "tie"
    # A difference that looks clear within one seed is not, where seeds flip it.
    clear = judged(results, {"differences": [pair("ppo", "dpo", 0.02, 0.01)]}, seeds=seeds)
    assert clear.outcome == "seeds disagree"
    most = {**pair("ppo", "dpo", 0.02, 0.01), "agree": 4, "seeds": 5}
    nearly = judged(results, {"differences": [most]})
    assert nearly.outcome == "clear" and "PPO is above DPO in 4 of 5 seeds." in nearly.reasons
    agree = judged(
        made(ppo=row(0.9), dpo=row(0.5)), seeds={"ppo": {0: 1, 1: 1}, "dpo": {0: 0, 1: 0}}
    )
    assert agree.outcome == "clear" and "PPO is above DPO in all 2 seeds." in agree.reasons


def test_an_optimum_that_cannot_be_trusted() -> None:
    results = made(ppo=row(0.9), dpo=row(0.5))
    results["frontier"] = [
        {"beta": 0.5, "kl": 3.0, "reward": 4.0, "ess": 1.5, "trusted": False},
        {"beta": 2.0, "kl": 1.0, "reward": 3.0, "ess": 20.0, "trusted": True},
    ]
    found = judged(results)
    assert found.ship == "ppo"
    assert any("every optimality here is an upper bound" in line for line in found.cautions)
    results["frontier"][0]["trusted"] = True
    assert judged(results).cautions == []


def test_the_judge_is_the_reward() -> None:
    found = judged(made(ppo=row(0.9)), {"judge_is_proxy": True})
    assert any("The judge is the reward itself" in line for line in found.cautions)


def test_nobody_gains() -> None:
    found = judged(made(ppo=row(0.02), dpo=row(-0.3), kto=row(0.01)))
    assert (found.outcome, found.ship) == ("nobody", None)
    assert found.headline == (
        "Ship none, keep SFT: at β = 0.5 no policy is above it by more than the noise."
    )
    assert judged(made()).outcome == "nothing"


def test_a_policy_without_kl_is_described_and_not_ranked() -> None:
    none = dict.fromkeys(("kl", "objective", "optimality", "optimality_ci"))
    theirs = row(0.9) | none | {"note": "no KL: its tokenizer is another"}
    found = judged(made(theirs=theirs, dpo=row(0.5)))
    assert (
        found.ship == "dpo" and "THEIRS cannot be placed, as the KL is not known" in found.headline
    )
    assert any(
        line.startswith("THEIRS has no KL: its tokenizer is another. Its reward")
        for line in found.cautions
    )
    noted = judged(made(theirs=row(0.9, note="bfloat16 in the file")))
    assert "THEIRS: bfloat16 in the file." in noted.cautions
    alone = judged(made(theirs=theirs))
    assert alone.ship is None and "THEIRS cannot be placed" in alone.headline


def test_without_a_price_of_kl_the_objective_decides() -> None:
    none = {"optimality": None, "optimality_ci": None}
    rows = {"ppo": row(0.9, objective_se=0.1) | none, "dpo": row(0.3, objective_se=0.1) | none}
    found = judged(made(beta=0.0, **rows))
    assert (found.outcome, found.ship) == ("clear", "ppo")
    assert "it has an objective of 3.70, DPO 1.90" in found.headline
    assert any(line.startswith("β is 0:") for line in found.cautions)
    ends = {"first": "ppo", "second": "dpo", "optimality": None, "optimality_ci": None,
            "objective": 1.8, "objective_ci": [-0.1, 3.7]}  # fmt: skip
    level = judged(made(beta=0.0, **rows), {"differences": [ends]})
    assert level.outcome == "too few" and "−0.10 to 3.70 in the objective" in level.headline


def test_a_reward_that_rose_by_noise_is_not_hacked() -> None:
    noise = {"reward": 1.2, "gold": 0.9, "reward_gain_ci": [-0.1, 0.5]}
    found = judged(made(ppo=row(0.05, 0.1, **noise), dpo=row(0.5, reward_gain_ci=[1.8, 2.2])))
    assert found.ship == "dpo" and found.cautions == []
    assert "PPO is not above SFT by more than the noise" in found.headline
    certain = judged(made(ppo=row(0.05, 0.1, **noise | {"reward_gain_ci": [0.1, 0.3]})))
    assert certain.outcome == "hacking"


def test_what_is_a_bound_is_said_to_be_one() -> None:
    rows = {
        "ppo": row(0.9, optimality_bound="at most"),
        "dpo": row(-0.4, optimality_bound="at least"),
    }
    found = judged(made(**rows), {"trusted": False, "untrusted_because": "fewer than 30 prompts"})
    assert "it reaches at most 90 % of the possible gain" in found.headline
    assert "reaches −40" in found.reasons[1]
    assert any("cannot be trusted: fewer than 30 prompts." in line for line in found.cautions)


def test_length_and_likelihood_are_cautions() -> None:
    found = judged(
        made(ppo=row(0.9, length_controlled_reward=1.4), dpo=row(0.5, chosen_logp_change=-20.0))
    )
    assert "PPO: at equal length only 11 % of the reward's gain is left." in found.cautions
    assert any(
        line.startswith("DPO made the chosen answers less likely") for line in found.cautions
    )
    assert found.headline.endswith("Read the caution first.")


@pytest.mark.parametrize("beta", [0.5, 0])
def test_without_an_interval_nothing_is_shipped(beta: float) -> None:
    """From one prompt a gain is the luck of that prompt."""
    lone = row(0.7, optimality_ci=None, objective_gain=2.1, objective_gain_ci=None)
    if not beta:
        lone["optimality"] = None
    found = judged(made(prompts=1, beta=beta, ppo=lone, dpo=row(-0.2, optimality_ci=None)))
    assert (found.outcome, found.ship) == ("too few", None)
    reached = "reaches 70 % of the possible gain" if beta else "has an objective of 3.10"
    assert found.headline == (
        f"Too few samples to tell at β = {beta:g}: PPO {reached}, but one prompt tells too"
        " little; 6 are the least, and 30 the least to trust J*. Until then keep SFT."
    )
    found = judged(made(beta=beta, ppo=lone))
    assert "but there is no interval to tell it from SFT. Until then" in found.headline


@pytest.mark.parametrize(("prompts", "ship"), [(2, None), (5, None), (6, "ppo"), (None, "ppo")])
def test_a_few_prompts_on_one_side_ship_nothing(prompts: int | None, ship: str | None) -> None:
    """A bootstrap over them has an interval, and one that is far too narrow."""
    results = made(prompts=prompts, ppo=row(0.7))
    if prompts is None:  # of an earlier release
        del results["prompts"]
    found = judged(results)
    assert found.ship == ship
    if ship is None:
        assert f"but {prompts} prompts tell too little; 6 are the least" in found.headline
    over_seeds = judged({**results, "seeds": {"ppo": [0, 1, 2]}})
    assert over_seeds.ship == "ppo", "their interval is Student's t"


def test_a_comparison_of_an_earlier_release_says_that_its_optimum_was_not_checked() -> None:
    results = made(ppo=row(0.7))
    results["frontier"] = [{"beta": 0.5, "kl": 1.0, "reward": 4.0, "ess": 3.0}]
    assert any("an earlier release" in line for line in judged(results).cautions)
    results["frontier"][0]["trusted"] = True
    assert judged(results).cautions == []
