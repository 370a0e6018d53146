from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.compare import evaluate
from pipeline.compare.evaluate import Evaluation
from pipeline.data.toy import toy_language_model, toy_texts, toy_tokenizer
from pipeline.lm.generation import Completion
from pipeline.lm.models import prepare


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


def test_distinct_by_hand() -> None:
    # Words the cat the dog / the cat: 3 of 6; pairs the-cat cat-the the-dog / the-cat: 3 of 4.
    texts = ["The cat the dog", "the  cat\n"]
    assert evaluate.distinct(texts, 1) == pytest.approx(3 / 6)
    assert evaluate.distinct(texts, 2) == pytest.approx(3 / 4)
    assert evaluate.distinct(["alone", ""], 2) is None


def test_no_bigram_spans_two_texts() -> None:
    assert evaluate.distinct(["a b", "b a", "a b"], 2) == pytest.approx(2 / 3)


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
            "objective": -0.6,
            "perplexity": math.exp(2.0),
            "distinct_1": 4 / 6,
            "distinct_2": 2 / 3,
            "length": 2.5,
            "ended": 0.75,
            "samples": 4,
        }
    )


def test_the_objective_is_kept_by_prompt() -> None:
    found = evaluate.objective_by_prompt(evaluation(), beta=2.0)
    np.testing.assert_allclose(found, [2.0 - 0.4, -2.0 - 0.8])


def test_diversity_is_measured_on_equally_many_samples() -> None:
    row = evaluate.summarise(evaluation(), beta=1.0, text_samples=1)
    assert row["distinct_1"] == 1.0  # "a b" and "" only


def test_an_evaluation_survives_json() -> None:
    import json

    kept = json.loads(json.dumps(evaluation().to_json()))
    assert Evaluation(**kept) == evaluation()


def test_scoring_in_parts_keeps_the_order() -> None:
    calls: list[int] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(len(prompts))
        return [float(p) + float(c) for p, c in zip(prompts, completions, strict=True)]

    completions = [Completion("10", (1,), (2,), str(i), True) for i in range(7)]
    assert evaluate.score(reward, completions, 3, "x") == [10.0 + i for i in range(7)]
    assert calls == [3, 3, 1]


def test_evaluating_a_model(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    reference = prepare(toy_language_model(0), tokenizer).eval()
    policy = prepare(toy_language_model(1), tokenizer).eval()
    texts = [rated.text for rated in toy_texts(6, seed=0)]
    prompts = [" ".join(text.split()[:3]) for text in texts[:4]]

    def words(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(c.split())) for c in completions]

    def measure(which: torch.nn.Module, seed: int = 3, kept: str = "fresh") -> Evaluation:
        (tmp_path / "fresh").unlink(missing_ok=True)
        return evaluate.evaluate_policy(
            which,  # type: ignore[arg-type]
            tokenizer,
            reference,
            prompts,
            texts,
            proxy=words,
            gold=lambda p, c: [-score for score in words(p, c)],
            samples_per_prompt=3,
            max_new_tokens=5,
            batch_size=4,
            seed=seed,
            label="test",
            kept=tmp_path / kept,
        )

    found = measure(policy)
    assert found.prompts == prompts
    assert len(found.texts) == len(found.kl) == len(found.ended) == 12
    assert found.proxy == [float(len(text.split())) for text in found.texts]
    assert found.gold == [-score for score in found.proxy]
    assert all(1 <= length <= 5 for length in found.lengths)
    assert all(
        ended or length == 5 for ended, length in zip(found.ended, found.lengths, strict=True)
    )
    assert min(found.kl) > 0
    assert found == measure(policy)
    assert found.texts != measure(policy, seed=4).texts
    assert found == measure(policy, kept="kept") == measure(policy, seed=4, kept="kept")
    assert measure(reference).kl == [0.0] * 12
    # A random model knows nothing: close to the vocabulary's size.
    assert evaluate.perplexity(found.nll, found.nll_tokens) == pytest.approx(
        len(tokenizer), rel=0.5
    )
