"""Which model judges fluency, and what it says of texts at the edges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare import fluency
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.fluency import Judge
from pipeline.compare.gains import Bootstrap
from pipeline.compare.rows import fluency as fluency_metric
from pipeline.config import CompareSection, Experiment, ModelSection
from pipeline.config.sections import SFTSection
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.models import prepare


def experiment(fluency_model: str | None, **sft: Any) -> Experiment:
    return Experiment(
        output_dir=Path("out"),
        model=ModelSection(model_name_or_path="toy", dtype="float32"),
        compare=CompareSection(fluency_model=fluency_model),
        sft=SFTSection(**sft),
    )


def test_which_model_judges() -> None:
    assert fluency.named(experiment("base")) == "toy"
    assert fluency.named(experiment("other/model")) == "other/model"
    assert fluency.named(experiment(None)) is None
    # Where SFT was left out its start is the reference itself, no independent judge.
    assert fluency.named(experiment("base", skip=True)) is None
    assert fluency.judge(experiment(None)) is None
    assert fluency.judge(experiment("base")) is not None


def test_a_model_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    fluency.check(experiment("base"))
    fluency.check(experiment(None))
    with pytest.raises(UserError, match=r"^compare\.fluency_model: .*nowhere' is no model"):
        fluency.check(experiment(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"^compare\.fluency_model: .*nowhere"):
        fluency.judge(experiment(str(tmp_path / "nowhere")))


def test_edges() -> None:
    tokenizer = toy_tokenizer()
    judge = Judge(prepare(toy_language_model(0), tokenizer).eval(), tokenizer)
    whole = Completion("a movie", (), (), " about love", True)
    alone = Completion("", (), (), "a movie", True)  # nothing comes before its first token
    empty = Completion("a movie", (), (), "", True)
    nll, tokens = judge.nll([whole, alone, empty])
    ids = [len(tokenizer(t)["input_ids"]) for t in (" about love", "a movie")]  # type: ignore
    assert tokens == [ids[0], ids[1] - 1, 0]
    assert nll[0] > 0 and nll[1] > 0 and nll[2] == 0.0
    assert judge.nll([whole])[0] == pytest.approx(nll[:1], abs=1e-4)


def evaluation(nll: list[float] | None, tokens: list[int] | None) -> Evaluation:
    return Evaluation(
        ["p", "q"], 2, [""] * 4, [1] * 4, [True] * 4, [0.0] * 4, [0.0] * 4, [], 1.0, 1,
        fluency_samples=2, fluency_nll=nll, fluency_tokens=tokens,
    )  # fmt: skip


def test_the_perplexity_is_over_all_tokens() -> None:
    drawn = Bootstrap(200, 0)
    row = fluency_metric(evaluation([2.0, 4.0, 6.0, 0.0], [1, 2, 3, 0]), drawn)
    assert row["fluency"] == pytest.approx(math.exp(2.0))
    assert row["fluency_ci"] == pytest.approx((math.exp(2.0), math.exp(2.0)))
    uneven = fluency_metric(evaluation([2.0, 4.0, 9.0, 0.0], [1, 2, 3, 0]), drawn)
    assert uneven["fluency"] == pytest.approx(math.exp(15 / 6))
    assert uneven["fluency_ci"][0] < uneven["fluency"] < uneven["fluency_ci"][1]
    none = {"fluency": None, "fluency_ci": None}
    assert fluency_metric(evaluation(None, None), drawn) == none
    assert fluency_metric(evaluation([0.0] * 4, [0] * 4), drawn) == none  # nobody said a word
