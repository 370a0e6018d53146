"""The report's words: which policy to ship, computed from the numbers and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.compare.methods import BEST_OF_N, DPO, PPO, SFT, present
from pipeline.compare.wording import beta_text, interval, number, percent, signed

# One of these is shipped, or none. What else was trained is described beside them.
CONTENDERS = (PPO, DPO)
_BASE = SFT.title
_TITLES = {method.name: method.title for method in CONTENDERS}

# Where a change against SFT is worth a caution. Ratios; generous, so that what is named matters.
CONFIRMED = 0.5  # share of the reward's gain that the judge should see too
DIVERSITY = 0.8  # distinct-2
PERPLEXITY = 1.5
LENGTH = 1.5
ENDED_DROP = 0.15  # share of completions
FAR = 10.0  # nats a completion

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What to ship and why.

    Attributes:
        ship: ``ppo``, ``dpo``, or None where neither should be.
        level: Both gain, and their intervals overlap.
        headline: One sentence.
        reasons: What the headline rests on, a sentence each.
        cautions: What a reader must know before shipping, a sentence each; may be empty.
    """

    ship: str | None
    level: bool
    headline: str
    reasons: list[str]
    cautions: list[str]


def gain(method: Numbers, sft: Numbers, key: str) -> float | None:
    """Return how far ``method`` is above SFT in ``key``, None where either has no number."""
    after, before = method.get(key), sft.get(key)
    return None if after is None or before is None else after - before


def hacks(method: Numbers, sft: Numbers) -> bool:
    """True when the reward rose and the judge, which was never trained against, did not."""
    proxy, gold = gain(method, sft, "reward"), gain(method, sft, "gold")
    return proxy is not None and gold is not None and proxy > 0 and gold <= 0


def gains(method: Numbers, sft: Numbers) -> bool:
    """True when the policy is better than SFT at this β by more than the noise."""
    ci = method.get("optimality_ci")
    if ci:
        return ci[0] > 0
    change = gain(method, sft, "objective")
    return change is not None and change > 0


def level(first: Numbers, second: Numbers, difference: Numbers | None) -> tuple[bool, str]:
    """Return whether two policies cannot be told apart, and the words for why.

    ``difference`` is the interval of the first's optimality less the second's, paired by prompt;
    where there is none, the two intervals are compared, which tells fewer apart.
    """
    if difference and difference.get("optimality_ci"):
        low, high = difference["optimality_ci"]
        points = f"{number(100 * low, 0)} to {number(100 * high, 0)} points"
        if low <= 0 <= high:
            return True, f"the difference ({points}) may be nothing"
        return False, f"the difference is {points}"
    a, b = first.get("optimality_ci"), second.get("optimality_ci")
    if not a or not b:
        return True, "there are no intervals to tell them apart"
    if a[0] <= b[1] and b[0] <= a[1]:
        return True, "their intervals overlap"
    return False, "their intervals do not overlap"


def judge(
    results: Numbers,
    details: Numbers | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Verdict:
    """Return the verdict on the content of compare/results.json and, if any, details.json.

    ``seconds`` are the training times of ``ppo`` and ``dpo``, used only between equals.
    """
    details = details or {}
    methods: Mapping[str, Numbers] = results["methods"]
    sft = methods.get(SFT.name, {})
    trained = [method.name for method in CONTENDERS if method.name in methods]
    policies = [m for m in present(methods) if m.stage is not None and not m.reference]
    fit = [n for n in trained if gains(methods[n], sft) and not hacks(methods[n], sft)]
    cautions = [line for m in policies for line in _cautions(m.title, methods[m.name], sft)]
    if details.get("judge_is_proxy"):
        cautions.append(
            "The judge is the reward itself, so this report cannot tell progress from reward"
            " hacking. Name an independent judge to find out."
        )
    if results["beta"] == 0:
        cautions.append(
            "β is 0: nothing was paid for KL, so the objective is the reward alone and there is no"
            " optimum to measure against."
        )
    beta = beta_text(results["beta"])
    reasons = [_progress(method.title, methods[method.name], sft) for method in policies]
    reasons += _best_of_n(results)
    same = False
    if not fit:
        ship, headline = None, _neither(trained, methods, sft, beta)
    elif len(fit) == 1:
        ship = fit[0]
        headline = f"Ship {_TITLES[ship]} at β = {beta}: it {_share(methods[ship])}"
        headline += "".join(_why_not(n, methods[n], sft) for n in trained if n != ship) + "."
    else:
        first, second = sorted(fit, key=lambda n: _score(methods[n]), reverse=True)
        paired = _ordered(_difference(details), first)
        same, words = level(methods[first], methods[second], paired)
        if same:
            ship, why = _cheaper(first, second, methods, seconds or {})
            headline = (
                f"{_TITLES[first]} and {_TITLES[second]} are level at β = {beta}:"
                f" {_amount(methods[first])} and {_amount(methods[second])}"
                f" {_unit(methods[first])}, and {words}. Ship {_TITLES[ship]}: {why}."
            )
        else:
            ship = first
            headline = (
                f"Ship {_TITLES[first]} at β = {beta}: it {_share(methods[first])},"
                f" {_TITLES[second]} {_amount(methods[second])}, and {words}."
            )
    if ship and _cautions(_TITLES[ship], methods[ship], sft):
        headline += " Read the caution first."
    return Verdict(ship, same, headline, reasons, cautions)


def _score(method: Numbers) -> float:
    value = method.get("optimality")
    value = method.get("objective") if value is None else value
    return float("-inf") if value is None else float(value)


def _difference(details: Numbers) -> Numbers | None:
    """PPO's optimality less DPO's; an earlier release kept it under another name."""
    for row in details.get("differences") or ():
        if (row["first"], row["second"]) == (PPO.name, DPO.name):
            return row
    return details.get("ppo_minus_dpo")


def _ordered(ppo_minus_dpo: Numbers | None, first: str) -> Numbers | None:
    """The paired difference with ``first`` in front."""
    if not ppo_minus_dpo or not ppo_minus_dpo.get("optimality_ci") or first == PPO.name:
        return ppo_minus_dpo
    low, high = ppo_minus_dpo["optimality_ci"]
    return {"optimality_ci": [-high, -low]}


def _amount(method: Numbers) -> str:
    if method.get("optimality") is None:
        return number(method.get("objective"))
    return percent(method["optimality"])


def _unit(method: Numbers) -> str:
    return "in the objective" if method.get("optimality") is None else "of the possible gain"


def _share(method: Numbers) -> str:
    if method.get("optimality") is None:
        return f"has an objective of {_amount(method)}"
    return f"reaches {_amount(method)} of the possible gain"


def _why_not(name: str, method: Numbers, sft: Numbers) -> str:
    if hacks(method, sft):
        return f"; {_TITLES[name]} raises the reward but not the judge, which is reward hacking"
    return f"; {_TITLES[name]} is not above {_BASE} by more than the noise"


def _neither(trained: list[str], methods: Mapping[str, Numbers], sft: Numbers, beta: str) -> str:
    keep = f"Ship neither, keep {_BASE}"
    hacking = [_TITLES[name] for name in trained if hacks(methods[name], sft)]
    if len(hacking) == len(trained) and hacking:
        both = " and ".join(hacking)
        verb = "raise" if len(hacking) > 1 else "raises"
        return f"{keep}: {both} {verb} the reward but not the judge (β = {beta})."
    if hacking:
        other = next(_TITLES[name] for name in trained if _TITLES[name] not in hacking)
        return (
            f"{keep}: {hacking[0]} raises the reward but not the judge, and {other} is not"
            f" above {_BASE} by more than the noise (β = {beta})."
        )
    return f"{keep}: at β = {beta} no policy is above it by more than the noise."


def _cheaper(
    first: str,
    second: str,
    methods: Mapping[str, Numbers],
    seconds: Mapping[str, float],
) -> tuple[str, str]:
    """Of two equals, return the one without cautions, else the one that took clearly less time,
    else the one that moved less; and the reason."""
    sft = methods.get(SFT.name, {})
    marred = [n for n in (first, second) if _cautions(_TITLES[n], methods[n], sft)]
    if len(marred) == 1:
        clean = second if marred == [first] else first
        return clean, f"{_TITLES[marred[0]]} comes with a caution"
    a, b = seconds.get(first), seconds.get(second)
    if a and b and not 0.9 < a / b < 1.1:
        quick, slow = (first, second) if a < b else (second, first)
        ratio = number(max(a, b) / min(a, b), 1)
        return quick, f"{_TITLES[slow]} took {ratio} times as long to train"
    near, far = sorted((first, second), key=lambda n: methods[n].get("kl") or 0.0)
    return near, (
        f"it stays nearer to the reference ({number(methods[near].get('kl'))} against"
        f" {number(methods[far].get('kl'))} nats)"
    )


def _progress(title: str, method: Numbers, sft: Numbers) -> str:
    """One sentence on what the policy gained and what that cost."""
    parts = []
    if method.get("gold_positive") is not None and sft.get("gold_positive") is not None:
        parts.append(
            f"the judge calls {percent(method['gold_positive'])} of its texts positive, after"
            f" {percent(sft['gold_positive'])} for {_BASE}"
        )
    if method.get("kl") is not None:
        parts.append(f"it spends {number(method['kl'])} nats of KL a completion")
    if method.get("optimality") is not None:
        ci = interval(method.get("optimality_ci"))
        share = f"it reaches {percent(method['optimality'])} of the possible gain"
        parts.append(f"{share} {ci}" if ci else share)
    return f"{title}: " + "; ".join(parts) + "."


def _best_of_n(results: Numbers) -> list[str]:
    best = results["methods"].get(BEST_OF_N.name, {})
    if best.get("optimality") is None:
        return []
    return [
        f"{BEST_OF_N.title} needs no training and reaches at least {percent(best['optimality'])},"
        " but draws N completions for each one it answers with."
    ]


def _cautions(title: str, method: Numbers, sft: Numbers) -> list[str]:
    """What is wrong with a policy's texts, a sentence each."""
    lines: list[str] = []
    proxy, gold = gain(method, sft, "reward"), gain(method, sft, "gold")
    if proxy is not None and gold is not None and proxy > 0:
        if gold <= 0:
            lines.append(
                f"{title} hacks the reward: the reward rose by {number(proxy)}, the judge moved by"
                f" {signed(gold)}."
            )
        elif gold < CONFIRMED * proxy:
            lines.append(
                f"{title}: the judge confirms only {percent(gold / proxy)} of the reward's gain"
                f" ({signed(gold)} of {signed(proxy)})."
            )

    def ratio(key: str) -> float | None:
        after, before = method.get(key), sft.get(key)
        return after / before if after is not None and before else None

    diversity, perplexity, length = ratio("distinct_2"), ratio("perplexity"), ratio("length")
    if diversity is not None and diversity < DIVERSITY:
        lines.append(
            f"{title} repeats itself: distinct-2 is {number(method['distinct_2'])}, after"
            f" {number(sft['distinct_2'])} for {_BASE}."
        )
    if perplexity is not None and perplexity > PERPLEXITY:
        lines.append(
            f"{title} forgets: perplexity of held-out human text is"
            f" {number(method['perplexity'], 1)}, after {number(sft['perplexity'], 1)} for {_BASE}."
        )
    if length is not None and not 1 / LENGTH < length < LENGTH:
        lines.append(
            f"{title} changed its length: {number(method['length'], 1)} tokens, after"
            f" {number(sft['length'], 1)} for {_BASE}."
        )
    ended = gain(method, sft, "ended")
    if ended is not None and ended < -ENDED_DROP:
        lines.append(
            f"{title} stops less often by itself: {percent(method['ended'])} of completions, after"
            f" {percent(sft['ended'])} for {_BASE}."
        )
    if method.get("kl") is not None and method["kl"] > FAR:
        lines.append(f"{title} is far from the reference: {number(method['kl'], 1)} nats.")
    return lines
