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
        (["negative", "neutral"], [1]),
        (["negative (stars 1, 2 and 3)", "positive (stars 4 and 5)"], [1]),
        (["NEG", "NEU", "POS"], [2]),
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
        ["LABEL_0", "LABEL_1"],  # it may be spam or poison that LABEL_1 stands for
        ["spam", "ham"],
        ["negative", "hate"],  # negative as a test is
        ["negative", "not bad at all"],
        ["neutral", "toxic"],
        ["non-toxic", "toxic"],
        ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"],
        ["entailment", "neutral", "contradiction"],
        ["sadness", "joy", "love", "anger", "fear", "surprise"],
        ["admiration", "amusement", "anger", "annoyance", "neutral"],
        ["负面", "正面"],
        ["差评", "中评", "好评"],
        ["bearish", "bullish"],
        ["Fake", "Real"],
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
        RewardError, match="do not tell which are positive; set positive_labels"
    ) as error:
        find_positive(dict(enumerate(labels)))
    assert "\n" not in str(error.value) and labels[-1] in str(error.value)
    assert find_positive(dict(enumerate(labels)), names=[labels[-1].upper()]) == [len(labels) - 1]


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


@pytest.mark.parametrize(
    ("labels", "names", "beyond"),
    [
        ("very negative|negative|neutral|positive|very positive", "Positive", "very positive"),
        ("Very Negative|Negative|Neutral|Positive|Very Positive", "negative", "Very Negative"),
        ("terrible|bad|average|good|great", "good", "great"),
        ("slightly positive|positive|negative", "slightly positive", "positive"),
        ("1 star|2 stars|3 stars|4 stars|5 stars", "4 stars", "5 stars"),
        ("1 star|2 stars|3 stars|4 stars|5 stars", "3 stars|4 stars", "5 stars"),
    ],
)
def test_a_grade_beyond_those_named_would_count_as_bad(
    labels: str, names: str, beyond: str
) -> None:
    id2label = dict(enumerate(labels.split("|")))
    with pytest.raises(RewardError) as error:
        find_positive(id2label, "reward x", names.split("|"))
    assert f"positive_labels leaves out {beyond!r}, which would count against" in str(error.value)
    assert "\n" not in str(error.value)
    both = find_positive(id2label, "reward x", [*names.split("|"), beyond])
    assert len(both) == 1 + len(names.split("|"))
    assert find_positive(id2label, "reward x", [beyond]) == [
        column for column, name in id2label.items() if name == beyond
    ]


STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
GRADES = ["very negative", "negative", "neutral", "positive", "very positive"]


def test_grades_score_the_log_odds_of_the_positive_side() -> None:
    model = classifier(GRADES)
    p = raw_logits(model).softmax(0)
    expected = torch.log(p[3:].sum() / p[:3].sum()).item()
    assert score(model) == pytest.approx(expected, abs=1e-5)
    unknown = classifier(["A", "B", "C", "D", "E"])  # the same weights
    assert score(unknown, positive_labels=["d", "E"]) == pytest.approx(expected, abs=1e-5)


def test_a_weight_a_label_gives_the_expected_value_whatever_the_order() -> None:
    model = classifier(STARS)
    p = raw_logits(model).softmax(0)
    expected = sum((star + 1) * p[star].item() for star in range(5))
    weights = {name.upper(): star + 1 for star, name in enumerate(STARS)}
    assert 1 < expected < 5
    for order in (weights, dict(reversed(weights.items()))):
        assert score(model, label_weights=order) == pytest.approx(expected, abs=1e-5)
    reward = SequenceClassifier(model, toy_tokenizer(), label_weights=weights)
    assert "the expected value of 1·1 star + 2·2 stars + 3·3 stars" in reward.describe()


def test_weights_of_independent_outputs_are_of_those_named() -> None:
    names, weights = ["helpful", "toxic", "verbose"], {"helpful": 1.0, "toxic": -2.0}
    model = classifier(names, "multi_label_classification")
    p = raw_logits(model).sigmoid()
    expected = (p[0] - 2 * p[1]).item()
    assert score(model, label_weights=weights) == pytest.approx(expected, abs=1e-5)
    model, raw = classifier(names, "regression"), raw_logits(model)
    expected = (raw[0] - 2 * raw[1]).item()
    assert score(model, label_weights=weights) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"1 star": 1, "5 stars": 5}, "label_weights has no weight for '2 stars'"),
        (
            {"1 star": 1, "6 stars": 5},
            "label_weights names '6 stars', but its labels are 0: 1 star",
        ),
        (
            dict.fromkeys(["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], 2),
            "all labels alike",
        ),
    ],
)
def test_wrong_weights_are_one_line(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(RewardError) as error:
        score(classifier(STARS), label_weights=weights)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_weights_where_there_is_nothing_to_weigh() -> None:
    with pytest.raises(RewardError, match="one output, which is the reward; remove label_weights"):
        score(classifier(["LABEL_0"]), label_weights={"LABEL_0": 1.0})
    with pytest.raises(RewardError, match="set one of them"):
        score(classifier(STARS), label_weights={"1 star": 1.0}, positive_labels=["5 stars"])


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


def test_the_order_of_two_labels_changes_no_score() -> None:
    """Only the columns change places, with their weights: the same model written another way."""
    model, other = classifier(["negative", "positive"]), classifier(["positive", "negative"])
    with torch.no_grad():
        for mine, theirs in zip(
            model.classifier.parameters(), other.classifier.parameters(), strict=True
        ):
            theirs.copy_(mine.flip(0))
    prompts = [PROMPT] * 3
    completions = [COMPLETION, " is very wonderful", ""]
    scores, again = (
        SequenceClassifier(m, toy_tokenizer())(prompts, completions) for m in (model, other)
    )
    assert scores == again and len(set(scores)) == 3


def test_margin_is_that_of_the_positive_label_whatever_its_column() -> None:
    for labels, positive in ((["negative", "positive"], 1), (["positive", "negative"], 0)):
        model = classifier(labels)
        raw = raw_logits(model)
        margin = (raw[positive] - raw[1 - positive]).item()
        assert score(model) == pytest.approx(margin, abs=1e-5)
        assert abs(margin) > 1e-3
