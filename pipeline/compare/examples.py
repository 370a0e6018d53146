"""Answers to look at: all of them as rows, and those that stand out by their numbers.

Sample s of a policy is set beside sample s of SFT and of the others, to the same prompt. Of
best-of-n it is the best of SFT's samples s·n to s·n + n − 1, where there are so many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compare import best_of_n
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.intervals import Array
from pipeline.compare.methods import Method, reference

OF_EACH = 3
"""Examples of each kind and policy; each about another prompt."""


@dataclass(frozen=True)
class Answered:
    """One policy's answers.

    Attributes:
        at: ``(P, s)``: where sample s of prompt i is among the samples of ``evaluation``.
        chosen: among π_ref's samples, so that an answer has no KL.
    """

    name: str
    evaluation: Evaluation
    at: NDArray[np.int64]
    chosen: bool = False

    def kl(self, at: int) -> float | None:
        """Of one answer."""
        return None if self.chosen or not self.evaluation.kl else self.evaluation.kl[at]

    def grid(self, values: Sequence[float]) -> Array:
        return np.asarray(values, dtype=np.float64)[self.at]


def answered(
    methods: Sequence[Method], evaluations: Mapping[str, Evaluation], n: int
) -> list[Answered]:
    """The answers of each of ``methods`` that has some."""
    base = evaluations[reference().name]
    made = []
    for method in methods:
        if method.kind == "choice":
            made.append(Answered(method.name, base, _best(base, n), chosen=True))
        elif method.name in evaluations:
            found = evaluations[method.name]
            at = np.arange(len(found.texts)).reshape(-1, found.samples_per_prompt)
            made.append(Answered(method.name, found, at))
    return made


def _best(base: Evaluation, n: int) -> NDArray[np.int64]:
    """The best by proxy of each block of n samples."""
    rewards = base.grid(base.proxy)
    starts = range(0, rewards.shape[1] // n * n, n)
    rows = [[best_of_n.pick(row, start, n) for start in starts] for row in rewards]
    return np.array(rows) + np.arange(len(rows))[:, None] * rewards.shape[1]


def all_rows(answers: Sequence[Answered], most: int) -> Iterator[dict[str, Any]]:
    """The rows of samples_all.jsonl: to each prompt the first ``most`` answers of each policy."""
    shown = [(answer, s) for answer in answers for s in range(min(most, answer.at.shape[1]))]
    for i, prompt in enumerate(answers[0].evaluation.prompts):
        for answer, s in shown:
            found, at = answer.evaluation, int(answer.at[i, s])
            yield {
                "prompt": prompt,
                "policy": answer.name,
                "sample": s,
                "text": found.texts[at],
                "reward": found.proxy[at],
                "gold": found.gold[at],
                "kl": answer.kl(at),
                "length": found.lengths[at],
                "ended": found.ended[at],
            }


def first_rows(answers: Sequence[Answered]) -> list[dict[str, Any]]:
    """The rows of samples.jsonl: a prompt and the first answer of each policy, whatever it is."""
    prompts = answers[0].evaluation.prompts
    return [{"prompt": prompt, **_together(answers, i, 0)} for i, prompt in enumerate(prompts)]


def examples(methods: Sequence[Method], answers: Sequence[Answered]) -> list[dict[str, Any]]:
    """The content of examples.json; see `docs/metrics.md`.

    By gold against SFT's sample: where a policy's gains most and where it loses most; where the
    reward rose and gold fell, the largest sum of both, each in standard deviations over SFT's
    samples; and, over all policies, where their gold scores are furthest apart.
    """
    kinds = {method.name: method.kind for method in methods}
    by_name = {answer.name: answer for answer in answers}
    sft = by_name[reference().name]
    policies = [a for a in answers if kinds[a.name] in ("trained", "checkpoint")]
    found = []
    for policy in policies:
        gold = _gain(policy, sft, "gold")
        reward = _gain(policy, sft, "proxy")
        hacked = reward / _spread(sft, "proxy") - gold / _spread(sft, "gold")
        hacked = np.where((reward > 0) & (gold < 0), hacked, -np.inf)
        for kind, score in (
            ("improved", np.where(gold > 0, gold, -np.inf)),
            ("degraded", np.where(gold < 0, -gold, -np.inf)),
            ("suspected_hacking", hacked),
        ):
            found += [_example(kind, policy.name, answers, i, s) for i, s in _highest(score)]
    if len(policies) > 1:
        width = min(policy.at.shape[1] for policy in policies)
        scores = np.stack([p.grid(p.evaluation.gold)[:, :width] for p in policies])
        apart = np.ptp(scores, axis=0)
        apart = np.where(apart > 0, apart, -np.inf)
        found += [_example("disagreement", None, answers, i, s) for i, s in _highest(apart)]
    return found


def _gain(policy: Answered, sft: Answered, field: str) -> Array:
    """``(P, s)``: score of sample s less SFT's sample s."""
    width = min(policy.at.shape[1], sft.at.shape[1])
    ours, theirs = (a.grid(getattr(a.evaluation, field))[:, :width] for a in (policy, sft))
    return ours - theirs


def _spread(sft: Answered, field: str) -> float:
    return float(np.std(getattr(sft.evaluation, field))) or 1.0


def _highest(scores: Array) -> list[tuple[int, int]]:
    """Prompt and sample of the highest finite of ``scores`` ``(P, s)``, one of a prompt."""
    best = scores.argmax(axis=1)
    values = scores[np.arange(len(scores)), best]
    order = np.argsort(-values, kind="stable")[:OF_EACH]
    return [(int(i), int(best[i])) for i in order if np.isfinite(values[i])]


def _example(
    kind: str, policy: str | None, answers: Sequence[Answered], i: int, s: int
) -> dict[str, Any]:
    prompt = answers[0].evaluation.prompts[i]
    about = {"prompt": prompt, "kind": kind, "policy": policy, "sample": s}
    return about | _together(answers, i, s)


def _together(answers: Sequence[Answered], i: int, s: int) -> dict[str, Any]:
    """Sample ``s`` of all policies that have it to prompt ``i``, and its numbers, by policy."""
    shown = {a.name: (a, int(a.at[i, s])) for a in answers if s < a.at.shape[1]}
    return {
        "completions": {name: a.evaluation.texts[at] for name, (a, at) in shown.items()},
        "rewards": {name: a.evaluation.proxy[at] for name, (a, at) in shown.items()},
        "gold": {name: a.evaluation.gold[at] for name, (a, at) in shown.items()},
        "kl": {name: a.kl(at) for name, (a, at) in shown.items()},
    }
