from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.compare import evaluate
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.fluency import Judge
from pipeline.data.toy import toy_language_model, toy_texts, toy_tokenizer
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import prepare
from pipeline.lm.paths import PathStatistics, completion_nll, path_statistics
from reward_models import checked
from reward_models.combined import Part, combined


def evaluation() -> Evaluation:
    """Two prompts, two samples each."""
    return Evaluation(
        prompts=["p", "q"],
        samples_per_prompt=2,
        texts=["a b", "A B c", "", "d"],
        lengths=[3, 4, 1, 2],
        ended=[True, False, True, True],
        proxy=[1.0, 3.0, -1.0, -3.0],
        gold=[0.5, 0.5, 0.5, -0.5],
        kl=[0.1, 0.3, 0.2, 0.6],
        nll=20.0,
        nll_tokens=10,
    )


def test_perplexity() -> None:
    assert evaluate.perplexity(30 * math.log(7.0), 30) == pytest.approx(7.0)
    assert evaluate.perplexity(0.0, 0) is None
    assert evaluate.perplexity(1e6, 1) is None


def test_the_standard_error_counts_prompts_and_not_samples() -> None:
    grid = np.array([[1.0, 3.0], [5.0, 7.0], [3.0, 5.0]])
    assert evaluate.standard_error(grid) == pytest.approx(2.0 / math.sqrt(3))
    twice = np.concatenate([grid, grid], axis=1)
    assert evaluate.standard_error(twice) == evaluate.standard_error(grid)
    assert evaluate.standard_error(grid[:1]) is None


def test_summary_by_hand() -> None:
    row = evaluate.summarise(evaluation(), beta=2.0, text_samples=2)
    assert row == pytest.approx(
        {
            "reward": 0.0,
            "reward_se": 2.0,  # prompt means 2 and −2
            "proxy_positive": 0.5,
            "gold": 0.25,
            "gold_se": 0.25,
            "gold_positive": 0.75,
            "gold_positive_se": 0.25,
            "kl": 0.3,
            "kl_se": 0.1,
            "kl_sampled": None,
            "kl_sampled_se": None,
            "reverse_kl": None,
            "reverse_kl_se": None,
            "reverse_kl_samples": None,
            "objective": -0.6,
            "objective_se": 2.2,  # prompt means 1.6 and −2.8
            "perplexity": math.exp(2.0),
            "distinct_1": 4 / 6,
            "distinct_2": 2 / 3,
            # "a b" of "a b c" is 1 with brevity e^−½; the other way 2/3 and 1/2, then 1/2 for
            # no triple. "d" and nothing are not alike.
            "self_bleu": (math.exp(-0.5) + (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)) / 2 / 2,
            "self_bleu_se": (math.exp(-0.5) + (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)) / 2 / 2,
            "length": 2.5,
            "length_se": 1.0,
            "ended": 0.75,
            "ended_se": 0.25,
            "samples": 4,
            "prompts": 2,
        }
    )


def test_the_objective_is_kept_by_prompt() -> None:
    found = evaluate.objective_by_prompt(evaluation(), beta=2.0)
    assert found is not None
    np.testing.assert_allclose(found, [2.0 - 0.4, -2.0 - 0.8])


def test_diversity_is_measured_on_equally_many_samples() -> None:
    row = evaluate.summarise(evaluation(), beta=1.0, text_samples=1)
    assert row["distinct_1"] == 1.0  # "a b" and "" only


def test_an_evaluation_survives_json() -> None:
    import json

    kept = json.loads(json.dumps(evaluation().to_json()))
    assert Evaluation(**kept) == evaluation()


def test_an_evaluation_of_an_earlier_release_is_read() -> None:
    names = ("prompts", "samples_per_prompt", "texts", "lengths", "ended", "proxy", "gold", "kl")
    kept = evaluation().to_json()
    found = Evaluation(**{name: kept[name] for name in (*names, "nll", "nll_tokens")})
    assert found == evaluation()
    assert (found.logratio, found.ref_logratio, found.fluency_nll) == (None, None, None)


def test_both_kls_by_hand() -> None:
    measured = replace(
        evaluation(),
        logratio=[0.5, -0.1, 0.3, 0.7],
        ref_samples=3,
        ref_kl=[0.1, 0.2, 0.3, 0.5, 0.5, 0.5],
        ref_logratio=[-0.1] * 6,
    )
    row = evaluate.summarise(measured, beta=1.0, text_samples=2)
    assert (row["kl_sampled"], row["kl_sampled_se"]) == pytest.approx((0.35, 0.15))
    assert (row["reverse_kl"], row["reverse_kl_se"]) == pytest.approx((0.35, 0.15))
    assert row["reverse_kl_samples"] == 3


def test_a_policy_without_kl_has_everything_else() -> None:
    whole = evaluate.summarise(evaluation(), beta=1.0, text_samples=2)
    row = evaluate.summarise(replace(evaluation(), kl=[]), beta=1.0, text_samples=2)
    without = {"kl", "kl_se", "objective", "objective_se"}
    assert {name for name, value in row.items() if value != whole[name]} == without
    assert all(row[name] is None for name in without)
    assert evaluate.objective_by_prompt(replace(evaluation(), kl=[]), beta=1.0) is None


def test_scoring_in_parts_keeps_the_order() -> None:
    calls: list[int] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(len(prompts))
        return [float(p) + float(c) for p, c in zip(prompts, completions, strict=True)]

    completions = [Completion("10", (1,), (2,), str(i), True) for i in range(7)]
    assert evaluate.score(reward, completions, 3, "x").total == [10.0 + i for i in range(7)]
    assert calls == [3, 3, 1]


@dataclass(frozen=True)
class Toys:
    """Two toy models, texts and prompts."""

    tokenizer: Any
    reference: Any
    policy: Any
    texts: list[str]
    prompts: list[str]
    folder: Path

    def measure(self, which: Any, seed: int = 3, kept: str = "fresh", **options: Any) -> Evaluation:
        (self.folder / "fresh").unlink(missing_ok=True)
        arguments: dict[str, Any] = {
            "proxy": words,
            "gold": lambda p, c: [-score for score in words(p, c)],
            "samples_per_prompt": 3,
        }
        return evaluate.evaluate_policy(
            which,
            self.tokenizer,
            options.pop("reference", self.reference),
            self.prompts,
            self.texts,
            max_new_tokens=5,
            batch_size=4,
            seed=seed,
            label="test",
            kept=self.folder / kept,
            **(arguments | options),
        )


def words(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c.split())) for c in completions]


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    tokenizer = toy_tokenizer()
    reference = prepare(toy_language_model(0), tokenizer).eval()
    policy = prepare(toy_language_model(1), tokenizer).eval()
    texts = [rated.text for rated in toy_texts(6, seed=0)]
    prompts = [" ".join(text.split()[:3]) for text in texts[:4]]
    return Toys(tokenizer, reference, policy, texts, prompts, tmp_path)


def test_evaluating_a_model(toys: Toys) -> None:
    found = toys.measure(toys.policy)
    assert found.prompts == toys.prompts
    assert len(found.texts) == len(found.kl) == len(found.ended) == 12
    assert found.proxy == [float(len(text.split())) for text in found.texts]
    assert found.gold == [-score for score in found.proxy]
    assert all(1 <= length <= 5 for length in found.lengths)
    assert all(
        ended or length == 5 for ended, length in zip(found.ended, found.lengths, strict=True)
    )
    assert min(found.kl) > 0
    assert found == toys.measure(toys.policy)
    assert found.texts != toys.measure(toys.policy, seed=4).texts
    kept = toys.measure(toys.policy, kept="kept")
    assert found == kept == toys.measure(toys.policy, seed=4, kept="kept")
    # A random model knows nothing: close to the vocabulary's size.
    assert evaluate.perplexity(found.nll, found.nll_tokens) == pytest.approx(
        len(toys.tokenizer), rel=0.5
    )


def test_the_reference_is_no_nats_from_itself(toys: Toys) -> None:
    row = evaluate.summarise(toys.measure(toys.reference), 1.0, 3)
    assert (row["kl"], row["kl_sampled"], row["reverse_kl"]) == (0.0, 0.0, 0.0)


def test_no_reference_no_kl(toys: Toys) -> None:
    found = toys.measure(toys.policy, reference=None)
    assert found == replace(toys.measure(toys.policy), kl=[], logratio=None)


def test_the_references_samples_are_scored_by_the_policy(toys: Toys) -> None:
    written = sample(
        toys.reference, toys.tokenizer, toys.prompts, samples_per_prompt=2, max_new_tokens=5,
        batch_size=8, seed=0,
    )  # fmt: skip
    found = toys.measure(toys.policy, written=written)
    assert found.ref_samples == 2 and found.ref_kl is not None and found.ref_logratio is not None
    own = completion_nll(toys.policy, written), completion_nll(toys.reference, written)
    wanted = [theirs - ours for ours, theirs in zip(*own, strict=True)]
    assert found.ref_logratio == pytest.approx(wanted, abs=1e-4)
    assert min(found.ref_kl) > 0
    assert toys.measure(toys.policy) == replace(
        found, ref_samples=None, ref_kl=None, ref_logratio=None
    )


def test_the_parts_of_a_sum_are_kept(toys: Toys) -> None:
    def odd(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [n if n % 2 else None for n in words(prompts, completions)]

    total = combined([Part("words", checked(words)), Part("odd", checked(odd), 2.0)])
    found = toys.measure(toys.policy, proxy=checked(total))
    counts = toys.measure(toys.policy).proxy
    assert found.parts == {"words": counts, "odd": [n if n % 2 else None for n in counts]}
    assert found.proxy == [n + 2 * n if n % 2 else n for n in counts]


def test_fluency_is_the_judges_word_on_text_alone(toys: Toys) -> None:
    judge = Judge(toys.reference, toys.tokenizer)
    found = toys.measure(toys.policy, fluency=judge)
    assert found.fluency_samples == 2
    assert found.fluency_nll is not None and found.fluency_tokens is not None
    assert len(found.fluency_nll) == len(found.fluency_tokens) == 8
    text, asked = found.texts[3], toys.prompts[1]  # prompt 1's first sample is the third judged
    before = toys.tokenizer(asked)["input_ids"]
    ids = toys.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logps = toys.reference(torch.tensor([before + ids])).logits.log_softmax(-1)[0]
    wanted = -sum(float(logps[len(before) - 1 + i, token]) for i, token in enumerate(ids))
    assert found.fluency_nll[2] == pytest.approx(wanted, abs=1e-4)
    assert found.fluency_tokens[2] == len(ids)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_infinite_kl_is_told_and_the_rest_is_kept(
    toys: Toys, monkeypatch: pytest.MonkeyPatch, reverse: bool
) -> None:
    """As where one of the two has a logit of −∞; the file of what was measured can hold none."""
    written = sample(
        toys.reference, toys.tokenizer, toys.prompts, samples_per_prompt=2, max_new_tokens=5,
        batch_size=4, seed=3,
    )  # fmt: skip

    def statistics(writer: Any, *args: Any, **kwargs: Any) -> PathStatistics:
        found = path_statistics(writer, *args, **kwargs)
        if (writer is toys.reference) == reverse:
            found.kl[0] = math.inf
        return found

    monkeypatch.setattr(evaluate, "path_statistics", statistics)
    monkeypatch.setattr(evaluate, "text_nll", lambda *_: (math.inf, 7))
    found = toys.measure(toys.policy, written=written)
    json.dumps(found.to_json(), allow_nan=False)
    row = evaluate.summarise(found, beta=0.5, text_samples=2)
    assert row["reward"] is not None and row["perplexity"] is row["reverse_kl"] is None
    assert found.note is not None and found.note.endswith("; no perplexity: it is infinite")
    if reverse:
        assert row["kl"] > 0 and found.note.startswith("no reverse KL: it is infinite; ")
    else:
        assert row["kl"] is row["objective"] is None
        assert found.note.startswith("no KL: it is infinite, or no number, along 1 of ")
