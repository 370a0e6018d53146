"""What is wrong with a policy, or with a whole comparison: one small function a rule.

`POLICY_RULES` are asked about each policy, `RESULT_RULES` about the comparison; each returns a
sentence, or None where all is well or the numbers for it are missing. Thresholds are generous, so
that what is named matters. `hacks` and `collapsed` are why a policy is not shipped at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.compare.wording import beta_text, number, percent, signed

Numbers = Mapping[str, Any]

CONFIRMED = 0.5  # share of the reward's gain that the judge should see too
DIVERSITY = 0.8  # distinct-2, and different words between the answers to one prompt
PERPLEXITY = 1.5
LENGTH = 1.5
ENDED_DROP = 0.15  # share of completions
FAR = 10.0  # nats a completion
LIKELIHOOD = -5.0  # nats that the chosen answers may lose
# What is left of SFT's variety, or of its length, when a policy counts as collapsed.
COLLAPSED = 0.5
COLLAPSED_LENGTH = 1 / 3


def gain(row: Numbers, base: Numbers, key: str) -> float | None:
    """Return how far ``row`` is above ``base`` in ``key``, None where either has no number."""
    after, before = row.get(key), base.get(key)
    return None if after is None or before is None else after - before


def ratio(row: Numbers, base: Numbers, key: str) -> float | None:
    """Return ``row`` over ``base`` in ``key``, None where either is missing or ``base`` is 0."""
    after, before = row.get(key), base.get(key)
    return after / before if after is not None and before else None


def variety(row: Numbers, base: Numbers) -> float | None:
    """Return what is left of 1 − self-BLEU, the variety of the answers to one prompt."""
    after, before = row.get("self_bleu"), base.get("self_bleu")
    if after is None or before is None or before >= 1:
        return None
    return (1 - after) / (1 - before)


def rewarded(row: Numbers, base: Numbers) -> float | None:
    """Return the reward's gain where it is one by more than the noise, else None."""
    change, ends = gain(row, base, "reward"), row.get("reward_gain_ci")
    certain = change is not None and change > 0 and (not ends or ends[0] > 0)
    return change if certain else None


def hacks(row: Numbers, base: Numbers) -> bool:
    """True when the reward rose and the judge, which was never trained against, did not."""
    gold = gain(row, base, "gold")
    return rewarded(row, base) is not None and gold is not None and gold <= 0


def collapsed(row: Numbers, base: Numbers) -> str | None:
    """Return in what way the texts collapsed, or None where they did not."""
    pairs, left, length = ratio(row, base, "distinct_2"), variety(row, base), None
    length = ratio(row, base, "length")
    if left is not None and left < COLLAPSED:
        return (
            f"its answers to one prompt are alike (self-BLEU {number(row['self_bleu'])}, after"
            f" {number(base['self_bleu'])})"
        )
    if pairs is not None and pairs < COLLAPSED:
        return (
            f"it says the same all the time (distinct-2 {number(row['distinct_2'])}, after"
            f" {number(base['distinct_2'])})"
        )
    if length is not None and length < COLLAPSED_LENGTH:
        return (
            f"it hardly answers ({number(row['length'], 1)} tokens, after"
            f" {number(base['length'], 1)})"
        )
    return None


# --- A policy's -----------------------------------------------------------------------------------
# (title, its metrics, SFT's metrics, SFT's title) → a sentence


def _judge_disagrees(title: str, row: Numbers, base: Numbers, _: str) -> str | None:
    proxy, gold = rewarded(row, base), gain(row, base, "gold")
    if proxy is None or gold is None:
        return None
    if gold <= 0:
        return (
            f"{title} hacks the reward: the reward rose by {number(proxy)}, the judge moved by"
            f" {signed(gold)}."
        )
    if gold < CONFIRMED * proxy:
        return (
            f"{title}: the judge confirms only {percent(gold / proxy)} of the reward's gain"
            f" ({signed(gold)} of {signed(proxy)})."
        )
    return None


def _collapses(title: str, row: Numbers, base: Numbers, _: str) -> str | None:
    how = collapsed(row, base)
    return f"{title} collapsed: {how}." if how else None


def _repeats(title: str, row: Numbers, base: Numbers, reference: str) -> str | None:
    if collapsed(row, base):
        return None
    share = ratio(row, base, "distinct_2")
    if share is not None and share < DIVERSITY:
        return (
            f"{title} repeats itself: distinct-2 is {number(row['distinct_2'])}, after"
            f" {number(base['distinct_2'])} for {reference}."
        )
    left = variety(row, base)
    if left is not None and left < DIVERSITY:
        return (
            f"{title} answers one prompt with less variety: self-BLEU is"
            f" {number(row['self_bleu'])}, after {number(base['self_bleu'])} for {reference}."
        )
    return None


def _forgets(title: str, row: Numbers, base: Numbers, reference: str) -> str | None:
    share = ratio(row, base, "perplexity")
    if share is None or share <= PERPLEXITY:
        return None
    return (
        f"{title} forgets: perplexity of held-out human text is"
        f" {number(row['perplexity'], 1)}, after {number(base['perplexity'], 1)} for {reference}."
    )


def _length(title: str, row: Numbers, base: Numbers, reference: str) -> str | None:
    share = ratio(row, base, "length")
    if share is None or 1 / LENGTH < share < LENGTH or share < COLLAPSED_LENGTH:
        return None
    return (
        f"{title} changed its length: {number(row['length'], 1)} tokens, after"
        f" {number(base['length'], 1)} for {reference}."
    )


def _long_for_reward(title: str, row: Numbers, base: Numbers, _: str) -> str | None:
    """Most of the reward's gain is the length's."""
    change, held = rewarded(row, base), row.get("length_controlled_reward")
    if held is None or change is None:
        return None
    kept = (held - base["reward"]) / change
    if kept >= CONFIRMED:
        return None
    return f"{title}: at equal length only {percent(max(kept, 0.0))} of the reward's gain is left."


def _ended(title: str, row: Numbers, base: Numbers, reference: str) -> str | None:
    change = gain(row, base, "ended")
    if change is None or change >= -ENDED_DROP:
        return None
    return (
        f"{title} stops less often by itself: {percent(row['ended'])} of completions, after"
        f" {percent(base['ended'])} for {reference}."
    )


def _far(title: str, row: Numbers, base: Numbers, _: str) -> str | None:
    if row.get("kl") is None or row["kl"] <= FAR:
        return None
    return f"{title} is far from the reference: {number(row['kl'], 1)} nats."


def _likelihood_falls(title: str, row: Numbers, base: Numbers, _: str) -> str | None:
    change = row.get("chosen_logp_change")
    if change is None or change >= LIKELIHOOD:
        return None
    return (
        f"{title} made the chosen answers less likely: their log-probability moved by"
        f" {signed(change, 1)} nats."
    )


POLICY_RULES: Sequence[Callable[[str, Numbers, Numbers, str], str | None]] = (
    _judge_disagrees,
    _collapses,
    _repeats,
    _forgets,
    _length,
    _long_for_reward,
    _ended,
    _far,
    _likelihood_falls,
)


def cautions(title: str, row: Numbers, base: Numbers, reference: str) -> list[str]:
    """Return what is wrong with a policy's texts, a sentence each."""
    found = (rule(title, row, base, reference) for rule in POLICY_RULES)
    return [line for line in found if line]


# --- The comparison's -----------------------------------------------------------------------------


def _judge_is_proxy(results: Numbers, details: Numbers) -> str | None:
    if not details.get("judge_is_proxy"):
        return None
    return (
        "The judge is the reward itself, so this report cannot tell progress from reward"
        " hacking. Name an independent judge to find out."
    )


def _no_price(results: Numbers, details: Numbers) -> str | None:
    if results["beta"] != 0:
        return None
    return (
        "β is 0: nothing was paid for KL, so the objective is the reward alone and there is no"
        " optimum to measure against."
    )


def trusted(results: Numbers, details: Numbers) -> bool:
    """True unless the optimum at this β is known to be one that the samples cannot tell."""
    if details.get("trusted") is not None:
        return bool(details["trusted"])
    beta = results["beta"]
    rows = [r for r in results.get("frontier") or [] if abs(r["beta"] - beta) <= 1e-9 * beta]
    return all(row.get("trusted") is not False for row in rows)


def _untrusted(results: Numbers, details: Numbers) -> str | None:
    if results["beta"] == 0 or trusted(results, details):
        return None
    why = details.get("untrusted_because") or "too few samples carry its weight"
    return (
        f"The optimum at β = {beta_text(results['beta'])} cannot be trusted: {why}. Its estimate"
        " is low, so every optimality here is an upper bound."
    )


def _unchecked(results: Numbers, details: Numbers) -> str | None:
    """A comparison of an earlier release."""
    rows = results.get("frontier") or []
    if not rows or details.get("trusted") is not None or any("trusted" in row for row in rows):
        return None
    return (
        "Compared by an earlier release, which did not check whether the optimum can be trusted:"
        " its frontier may be low, and optimality high. `rlhf compare` of today tells."
    )


RESULT_RULES: Sequence[Callable[[Numbers, Numbers], str | None]] = (
    _judge_is_proxy,
    _no_price,
    _untrusted,
    _unchecked,
)


def general(results: Numbers, details: Numbers) -> list[str]:
    """Return what is wrong with the comparison as a whole, a sentence each."""
    found = (rule(results, details) for rule in RESULT_RULES)
    return [line for line in found if line]
