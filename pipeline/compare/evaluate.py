"""Samples a checkpoint once; every metric is computed from those samples.

:func:`evaluate_policy` calls the models and keeps what they said about each sample. The functions
below it are arithmetic on that, so that a metric can be added or checked without a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.compare.alike import beyond_reference
from pipeline.compare.fluency import SAMPLES as FLUENCY_SAMPLES
from pipeline.compare.fluency import Judge
from pipeline.compare.intervals import Array
from pipeline.compare.texts import distinct, self_bleu
from pipeline.data.records import Prompt
from pipeline.lm.generation import Completion, sample
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.paths import PathStatistics, path_statistics
from pipeline.lm.positions import check_prompts
from pipeline.lm.scored import check_columns, score_completions
from pipeline.lm.scoring import text_nll
from pipeline.output.terminal import progress
from reward_models import RewardFunction, Scores

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What one policy made of P prompts, m samples each; sample s of prompt i is at i·m + s.

    Attributes:
        prompts: the P prompts as text.
        samples_per_prompt: m.
        texts: completions, without EOS.
        lengths: their tokens, EOS included.
        ended: whether each ended by EOS rather than by the length limit.
        proxy: their reward, the one that was optimised.
        gold: the judge's score, which was not.
        kl: KL(π‖π_ref) along each path, nats per completion; empty where it was not measured.
        nll: total nats of the held-out texts under the policy. nll_tokens: their tokens; none
            where they are others than the reference's.
        parts: the scores of the proxy's parts by their names, where it is a sum of several; None
            for a sample that one does not apply to.

    The fields below are None where they were not measured, as before there were such:

    Attributes:
        logratio: log π(y)/π_ref(y) of each sample.
        ref_samples: k: of π_ref's samples to each prompt the first k were given to π.
        ref_logratio: log π(y)/π_ref(y) of these, P·k: sample s of prompt i is at i·k + s.
        ref_kl: KL(π_ref‖π) along these, nats per completion.
        fluency_samples: f: of each prompt's samples the first f were given to the fluency model.
        fluency_nll: its −log p(text | prompt) of these, P·f, in nats. fluency_tokens: their tokens
            by its own tokenizer.
        note: what is to be told beside the numbers, as why there is no KL.
    """

    prompts: list[str]
    samples_per_prompt: int
    texts: list[str]
    lengths: list[int]
    ended: list[bool]
    proxy: list[float]
    gold: list[float]
    kl: list[float]
    nll: float
    nll_tokens: int
    parts: dict[str, list[float | None]] = field(default_factory=dict)
    logratio: list[float] | None = None
    ref_samples: int | None = None
    ref_logratio: list[float] | None = None
    ref_kl: list[float] | None = None
    fluency_samples: int | None = None
    fluency_nll: list[float] | None = None
    fluency_tokens: list[int] | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON can hold them; floats keep every bit."""
        return asdict(self)

    def grid(self, values: Sequence[float]) -> Array:
        """One value a sample, laid out as ``(P, m)``."""
        return np.asarray(values, dtype=np.float64).reshape(-1, self.samples_per_prompt)


def evaluate_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel | None,
    prompts: Sequence[Prompt],
    heldout: Sequence[str],
    *,
    proxy: RewardFunction,
    gold: RewardFunction,
    samples_per_prompt: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    label: str,
    kept: Path,
    written: Sequence[Completion] = (),
    fluency: Judge | None = None,
    why_no_kl: str | None = None,
    why_no_perplexity: str | None = None,
) -> Evaluation:
    """Sample ``policy`` at temperature 1 and score the samples.

    Args:
        reference: π_ref. The policy itself there means KL 0, which needs no forward pass; None
            that there is no KL, as between two tokenizers.
        heldout: texts for perplexity; none leave it out.
        proxy, gold: score completions; the same object scores once.
        batch_size: completions generated, and scored, at once.
        label: opens the lines of progress.
        kept: file that holds the samples until everything is measured; read where it is there.
        written: π_ref's samples to the same prompts, equally many each, for KL(π_ref‖π).
        fluency: the model that finds the texts likely or not.
        why_no_kl: where the reference is None, the reason. why_no_perplexity: of no heldout texts.

    Raises:
        UserError: a prompt leaves the model no room for a completion, or has not the columns that
            a reward asks for.
    """
    check_prompts(policy, tokenizer, prompts, max_new_tokens, "evaluation")
    for reward in (proxy, gold):
        check_columns(reward, prompts)
    rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    completions = kept_samples(kept, rows)
    if completions is None:
        completions = sample(
            policy,
            tokenizer,
            prompts,
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            label=f"{label}: sampling",
        )
        keep_samples(kept, completions)
    scores = score(proxy, completions, batch_size, f"{label}: reward")
    judged = scores if gold is proxy else score(gold, completions, batch_size, f"{label}: gold")
    told = None
    if reference is not None and policy is not reference:
        why_no_kl, told = beyond_reference(policy, reference, completions)
    if why_no_kl is not None:
        reference, told = None, f"no KL: {why_no_kl}"
    kl, unbounded = _kl(policy, reference, completions, written, len(prompts), label)
    nll, nll_tokens = text_nll(policy, tokenizer, heldout) if heldout else (0.0, 0)
    if not math.isfinite(nll):
        nll, nll_tokens, why_no_perplexity = 0.0, 0, "it is infinite"
    notes = (unbounded, told, why_no_perplexity and f"no perplexity: {why_no_perplexity}")
    return Evaluation(
        prompts=[c.prompt for c in completions[::samples_per_prompt]],
        samples_per_prompt=samples_per_prompt,
        texts=[c.text for c in completions],
        lengths=[len(c.completion_ids) for c in completions],
        ended=[c.ended for c in completions],
        proxy=scores.total,
        gold=judged.total,
        nll=nll,
        nll_tokens=nll_tokens,
        parts=scores.parts,
        note="; ".join(filter(None, notes)) or None,
        **kl,
        **_fluency(fluency, completions, samples_per_prompt, label),
    )


def _kl(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    completions: Sequence[Completion],
    written: Sequence[Completion],
    prompts: int,
    label: str,
) -> tuple[dict[str, Any], str | None]:
    """The fields that tell how far π is from π_ref, along the samples of both; and which of them
    are left out as they are infinite, where there are such: files hold finite numbers."""
    if reference is None:
        return {"kl": []}, None
    if policy is reference:
        nothing = [0.0] * len(completions)
        same = {"ref_samples": len(completions) // prompts, "ref_kl": nothing}
        return {"kl": nothing, "logratio": nothing, "ref_logratio": nothing, **same}, None
    own = path_statistics(policy, reference, completions, label=f"{label}: KL")
    if count := _infinite(own):
        return {"kl": []}, (
            f"no KL: it is infinite, or no number, along {count:,} of {len(completions):,}"
            " completions"
        )
    found: dict[str, Any] = {"kl": own.kl, "logratio": own.logratio}
    size = policy.config.get_text_config().vocab_size
    if written and max(max(c.prompt_ids + c.completion_ids) for c in written) < size:
        theirs = path_statistics(reference, policy, written, label=f"{label}: reverse KL")
        if _infinite(theirs):
            return found, "no reverse KL: it is infinite"
        found |= {"ref_samples": len(written) // prompts, "ref_kl": theirs.kl}
        found["ref_logratio"] = [-ratio for ratio in theirs.logratio]
    return found, None


def _infinite(found: PathStatistics) -> int:
    """How many completions have a number that is not finite."""
    both = zip(found.kl, found.logratio, strict=True)
    return sum(not (math.isfinite(kl) and math.isfinite(ratio)) for kl, ratio in both)


def _fluency(
    fluency: Judge | None, completions: Sequence[Completion], m: int, label: str
) -> dict[str, Any]:
    if fluency is None:
        return {}
    first = [c for i, c in enumerate(completions) if i % m < FLUENCY_SAMPLES]
    nll, tokens = fluency.nll(first, label=f"{label}: fluency")
    judged = {"fluency_samples": min(m, FLUENCY_SAMPLES)}
    return {**judged, "fluency_nll": nll, "fluency_tokens": tokens}


def score(
    reward: RewardFunction, completions: Sequence[Completion], batch_size: int, label: str
) -> Scores:
    """Their rewards, ``batch_size`` a call, with progress: it may be a slow service."""
    starts = range(0, len(completions), batch_size)
    total: list[float] = []
    parts: dict[str, list[float | None]] = {}
    for start in progress(starts, label):
        found = score_completions(reward, completions[start : start + batch_size])
        total += found.total
        for name, scores in found.parts.items():
            parts.setdefault(name, []).extend(scores)
    return Scores(total, parts=parts)


def perplexity(nll: float, tokens: int) -> float | None:
    """exp(nats a token); None without tokens or beyond what a float holds."""
    if tokens == 0 or nll / tokens > 700:
        return None
    return math.exp(nll / tokens)


def standard_error(grid: Array) -> float | None:
    """Standard error of the mean of ``grid`` ``(P, m)`` over prompts; None from one prompt.

    Samples of one prompt are alike, so the prompts are the independent draws: P of them, not P·m.
    """
    means = grid.mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None


def objective_by_prompt(evaluation: Evaluation, beta: float) -> Array | None:
    """Each prompt's part of J_β(π) = E[r] − β·KL(π‖π_ref): ``(P,)``; None without KL."""
    if not evaluation.kl:
        return None
    rewards, kl = evaluation.grid(evaluation.proxy), evaluation.grid(evaluation.kl)
    return (rewards - beta * kl).mean(axis=1)


def summarise(evaluation: Evaluation, beta: float, text_samples: int) -> Metrics:
    """The metrics of one policy, by their names in results.json.

    Args:
        text_samples: distinct-n and self-BLEU are taken over the first this many samples of each
            prompt, so that policies of which more samples were drawn are not at a disadvantage.
    """
    m, grid = evaluation.samples_per_prompt, evaluation.grid
    rewards, gold = grid(evaluation.proxy), grid(evaluation.gold)
    texts = [text for i, text in enumerate(evaluation.texts) if i % m < text_samples]
    return {
        **mean("reward", rewards),
        "proxy_positive": float((rewards > 0).mean()),
        **mean("gold", gold),
        **mean("gold_positive", (gold > 0).astype(np.float64)),
        **_distance(evaluation, beta),
        "perplexity": perplexity(evaluation.nll, evaluation.nll_tokens),
        **variety(texts, min(m, text_samples)),
        **mean("length", grid(evaluation.lengths)),
        **mean("ended", grid(evaluation.ended)),
        "samples": len(evaluation.texts),
        "prompts": len(evaluation.prompts),
    }


def mean(name: str, grid: Array | None) -> Metrics:
    """The mean of ``(P, m)`` and its standard error, under their names; None each of None."""
    if grid is None:
        return {name: None, f"{name}_se": None}
    return {name: float(grid.mean()), f"{name}_se": standard_error(grid)}


def variety(texts: Sequence[str], each: int) -> Metrics:
    """How varied ``texts`` are, ``each`` to a prompt: over all of them, and within a prompt."""
    of_prompt = [self_bleu(texts[i : i + each]) for i in range(0, len(texts), each)]
    scores = [score for score in of_prompt if score is not None]
    return {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        **mean("self_bleu", np.array(scores)[:, None] if scores else None),
    }


def _distance(evaluation: Evaluation, beta: float) -> Metrics:
    """KL both ways and the objective; None each where it was not measured."""
    objective = objective_by_prompt(evaluation, beta)
    forward = evaluation.grid(evaluation.kl) if evaluation.kl else None
    ratio = None if evaluation.logratio is None else evaluation.grid(evaluation.logratio)
    k, reverse = evaluation.ref_samples, evaluation.ref_kl
    along = None if reverse is None else np.reshape(reverse, (-1, k or 1))
    return {
        **mean("kl", forward),
        **mean("kl_sampled", ratio),
        **mean("reverse_kl", along),
        "reverse_kl_samples": k,
        **mean("objective", None if objective is None else objective[:, None]),
    }
