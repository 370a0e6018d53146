"""Which labels are the good ones, and what is scored of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from pipeline.data.toy import toy_encoder, toy_tokenizer
from reward_models import RewardError
from reward_models.labels import find_positive
from reward_models.sentiment import SequenceClassifier

PROMPT, COMPLETION = "a movie about war", " is dull"


def classifier(labels: list[str], problem_type: str | None = None) -> BertForSequenceClassification:
    config: Any = toy_encoder(0).config
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: column for column, name in config.id2label.items()}
    config.problem_type = problem_type
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(40)  # scores that differ
    return model


def raw_logits(model: BertForSequenceClassification) -> torch.Tensor:
    with torch.no_grad():
        return model(**toy_tokenizer()(PROMPT + COMPLETION, return_tensors="pt")).logits[0]


def score(model: BertForSequenceClassification, **options: Any) -> float:
    return SequenceClassifier(model, toy_tokenizer(), **options)([PROMPT], [COMPLETION])[0]


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (["NEGATIVE", "POSITIVE"], [1]),
        (["Positive", "Negative"], [0]),
        (["pos", "neg"], [0]),
        (["good", "negative"], [0]),
        (["negative", "not bad at all"], [1]),
        (["LABEL_0", "LABEL_1"], [1]),
        (["negative", "neutral", "positive"], [2]),
        (["neutral", "positive", "negative", "mixed"], [1]),
        (["Very Negative", "Negative", "Neutral", "Positive", "Very Positive"], [3, 4]),
        (["Very Positive", "Positive", "Neutral", "Negative", "Very Negative"], [0, 1]),
        (["extremely_negative", "negative", "neutral", "positive", "extremely_positive"], [3, 4]),
        (["VeryNegative", "SlightlyNegative", "SlightlyPositive", "VeryPositive"], [2, 3]),
        (["terrible", "bad", "average", "good", "great"], [3, 4]),
        (["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], [3, 4]),
        (["5 Stars", "4 Stars", "3 Stars", "2 Stars", "1 Star"], [0, 1]),
        (["★", "★★", "★★★", "★★★★"], [2, 3]),
        (["1 star", "5 stars"], [1]),
    ],
)
def test_the_positive_side_is_found_by_name(labels: list[str], columns: list[int]) -> None:
    assert find_positive(dict(enumerate(labels))) == columns
    assert find_positive({str(i): name for i, name in enumerate(labels)}) == columns


@pytest.mark.parametrize(
    "labels",
    [
        ["spam", "ham"],
        ["nothate", "hate"],
        ["LABEL_0", "LABEL_1", "LABEL_2"],
        ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4"],
        ["positive", "pos"],
        ["negative", "neg"],
        ["sehr negativ", "negativ", "neutral", "positiv", "sehr positiv"],
        ["Positive", "excellent value", "Negative"],
        ["positive", "not positive"],
        ["less positive", "positive", "negative"],
        ["0", "1", "2", "3", "4"],
        ["1", "2", "3", "4", "5"],
        ["1 star", "2 stars", "3 stars", "spam"],
        ["joy", "anger", "positive"],
    ],
)
def test_names_that_leave_a_doubt_are_one_line_with_the_setting(labels: list[str]) -> None:
    with pytest.raises(
        RewardError, match="do not tell which are positive; set reward.pos"
    ) as error:
        find_positive(dict(enumerate(labels)))
    assert "\n" not in str(error.value) and labels[-1] in str(error.value)
    assert find_positive(dict(enumerate(labels)), names=[labels[0].upper()]) == [0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["joy", "Anger"], "names 'Anger', but its labels are 0: joy, 1: love, 2: fear"),
        (["joy", "love", "fear"], "names all of its labels"),
        ([], "names none of its labels"),
    ],
)
def test_a_wrong_setting_is_one_line(names: list[str], expected: str) -> None:
    with pytest.raises(RewardError) as error:
        find_positive({0: "joy", 1: "love", 2: "fear"}, names=names)
    assert expected in str(error.value)


GRADES = ["very negative", "negative", "neutral", "positive", "very positive"]


def test_grades_score_the_log_odds_of_the_positive_side() -> None:
    model = classifier(GRADES)
    p = raw_logits(model).softmax(0)
    expected = torch.log(p[3:].sum() / p[:3].sum()).item()
    assert score(model) == pytest.approx(expected, abs=1e-5)
    unknown = classifier(["A", "B", "C", "D", "E"])  # the same weights
    assert score(unknown, positive_labels=["d", "E"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_of_independent_outputs_one_is_the_reward_as_it_is(kind: str) -> None:
    names = ["helpful", "toxic", "verbose"]
    model = classifier(names, kind)
    reward = SequenceClassifier(model, toy_tokenizer(), positive_labels=["helpful"])
    assert reward([PROMPT], [COMPLETION]) == pytest.approx([raw_logits(model)[0].item()], abs=1e-6)
    assert reward.describe().endswith("gives the output helpful")
    with pytest.raises(RewardError, match="independent of each other; name one"):
        SequenceClassifier(model, toy_tokenizer(), positive_labels=["helpful", "verbose"])
    with pytest.raises(RewardError, match="do not tell"):
        SequenceClassifier(model, toy_tokenizer())
    for labels in (["LABEL_0", "LABEL_1"], GRADES):
        with pytest.raises(RewardError, match="do not tell"):
            SequenceClassifier(classifier(labels, kind), toy_tokenizer())


def test_one_output_is_the_reward_and_has_no_labels() -> None:
    model = classifier(["LABEL_0"])
    expected = raw_logits(model)[0].item()
    assert score(model, format="text") == pytest.approx(expected, abs=1e-6)
    with pytest.raises(RewardError, match="has one output, which is the reward"):
        score(model, positive_labels=["LABEL_0"])


def test_margin_is_that_of_the_positive_label_whatever_its_column() -> None:
    for labels, positive in ((["negative", "positive"], 1), (["positive", "negative"], 0)):
        model = classifier(labels)
        raw = raw_logits(model)
        margin = (raw[positive] - raw[1 - positive]).item()
        assert score(model) == pytest.approx(margin, abs=1e-5)
        assert abs(margin) > 1e-3
