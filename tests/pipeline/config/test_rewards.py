"""A reward of one source or of a list: its forms, its mistakes, and what a run is known by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Experiment, load_experiment
from pipeline.errors import UserError
from pipeline.provenance import differences, fingerprint, stage_inputs

Load = Callable[..., Experiment]
LIST = """reward.source=[sentiment, {source: "rules:length", arguments: {longest: 9}, clip: 3},
  {source: "mine.py:score", name: own, weight: 0.5, normalize: reference}]"""


@pytest.fixture
def load(tiny: Path) -> Load:
    return lambda *overrides: load_experiment(tiny, overrides)


def complaint(load: Load, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_list_is_parts_with_names_of_their_own(load: Load) -> None:
    parts = load(LIST).reward.parts("source")
    assert [part.called() for part in parts] == ["sentiment", "length", "own"]
    assert [part.kind() for part in parts] == ["trained", "rules", "function"]
    assert [part.bounds() for part in parts] == [None, (-3.0, 3.0), None]
    assert load(LIST).reward.shown("source") == "sentiment + length + 0.5·own"
    assert load(LIST).reward.trains_here() and load(LIST).reward.normalizes()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("owner/model", "model"),
        ("./runs/reward/proxy/", "proxy"),
        ("mine.py:score", "score"),
        ("package.module:score", "score"),
        ("rules:ended", "ended"),
        ("https://host:8000/score", "score"),
        (r"C:\models\reward", "reward"),
    ],
)
def test_a_part_is_called_by_the_end_of_its_source(load: Load, source: str, name: str) -> None:
    [part] = load(f"reward.source={json.dumps({'source': source})}").reward.parts("source")
    assert part.called() == name


def test_one_name_has_the_sections_settings(load: Load) -> None:
    reward = load("reward.source=a/b", "reward.positive_labels=joy", "reward.gold=c/d").reward
    [source], [gold] = reward.parts("source"), reward.parts("gold")
    assert source.positive_labels == ["joy"] and gold.positive_labels is None
    assert load("reward.gold=null").reward.parts("gold") == []


def test_overrides_reach_into_a_list(load: Load) -> None:
    reward = load(LIST, "reward.source[2].weight=2", "reward.source[1].arguments.longest=5").reward
    parts = reward.parts("source")
    assert (parts[2].weight, parts[1].arguments) == (2.0, {"longest": 5})
    replaced = load(LIST, "reward.source[0]=rules:ended").reward.parts("source")
    assert [part.source for part in replaced][:2] == ["rules:ended", "rules:length"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward.source=[]"], "must not be empty"),
        (["reward.source=5"], "expected text or a list (a mapping each), found 5"),
        (["reward.source=[5]"], "reward.source[0]: expected a section"),
        (["reward.source=[{weight: 2}]"], "reward.source[0].source: is missing"),
        (["reward.source=[{source: a/b, waight: 2}]"], "did you mean reward.source[0].weight?"),
        (["reward.source=[{source: a/b, weight: .inf}]"], "weight: expected a finite number"),
        (["reward.source=[a/b, c/b]"], "reward.source[1].name: reward.source[0] is called 'b' too"),
        (["reward.source={source: a/b, name: a/b}"], "'a/b' must not hold a slash"),
        (["reward.source=[sentiment, {source: sentiment, name: again}]"], "is 'sentiment' already"),
        (["reward.source={source: a/b, clip: -1}"], "clip: expected a number above 0"),
        (["reward.source={source: a/b, clip: [3, 1]}"], "clip: expected [lowest, highest]"),
        (["reward.source={source: a/b, clip: [1, 2, 3]}"], "clip: expected [lowest, highest]"),
        (["reward.source={source: a/b, normalize: running}"], "expected reference or null"),
        (
            ["reward.source={source: a/b, positive_labels: x, label_weights: {x: 1}}"],
            "reward.source[0].label_weights: does not go with positive_labels",
        ),
        (
            ["reward.source={source: rules:ended, format: chat}"],
            "format: is for a checkpoint or a function, and reward.source[0].source is 'rules:en",
        ),
        (
            ["reward.source={source: sentiment, max_length: 9}"],
            "max_length: is for a checkpoint, and reward.source[0].source is 'sentiment'",
        ),
        (["reward.source={source: a.py:f, label_weights: {x: 1}}"], "is for a checkpoint, and"),
        (["reward.source={source: a/b, arguments: {x: 1}}"], "is for a rule or a service, and"),
        (["reward.source=rules:lenght"], "did you mean rules:length?"),
        (["reward.source=rules:banned"], "needs words or patterns"),
        (["reward.gold=[{source: rules:length}]"], "reward.gold[0]: rules:length: every length"),
        (["reward.source=[sentiment, a/b]", "reward.format=chat"], "set format in a part of it"),
        (["reward.source=rules:ended", "reward.positive_labels=x"], "is for a checkpoint, and"),
        (["reward.combine=min"], "min is of several parts, and reward.source is one"),
        (["reward.source=[a/b]", "reward.combine=mean"], "mean is of several parts"),
        (["reward.uncertainty_penalty=1"], "is for reward.combine=pessimistic, and it is sum"),
        (
            ["reward.source=[a/b, {source: c/d, weight: 2}]", "reward.combine=min"],
            "reward.source[1].weight: only a sum has weights, and reward.combine is min",
        ),
        (["reward.source[0].weight=2"], "reward.source is no list"),
        ([LIST, "reward.source[3].weight=2"], "reward.source has 3 items; count from 0"),
        ([LIST, "reward.source[2].weight=x"], "override reward.source[2].weight=x: expected a num"),
        ([LIST, "reward.source[0].weight=2"], "reward.source[0] is no section"),
    ],
)
def test_mistakes_are_one_line(load: Load, overrides: list[str], expected: str) -> None:
    message = complaint(load, *overrides)
    assert expected in message and message.startswith("override ")


def test_a_mistake_in_the_file_names_the_part(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("reward:\n  source:\n    - sentiment\n    - {source: a/b, weight: two}\n")
    assert complaint(lambda: load_experiment(path)) == (
        f"{path}: reward.source[1].weight: expected a number, found 'two'"
    )


def test_one_name_is_recorded_as_before_there_were_lists(load: Load) -> None:
    """Finished runs of before them keep their fingerprints."""
    later = {"combine", "uncertainty_penalty", "normalize_samples"}
    recorded = load().model_dump(mode="json")["reward"]
    assert not later & set(recorded) and recorded["source"] == "sentiment"
    settings = stage_inputs(load())["reward"]["config"]
    assert settings["reward.source"] == "sentiment" and settings["reward.max_length"] == 64


def test_a_part_says_only_what_is_set(load: Load) -> None:
    settings = stage_inputs(load(LIST))["reward"]["config"]
    assert {k: v for k, v in settings.items() if k.startswith("reward.source")} == {
        "reward.source[0].source": "sentiment",
        "reward.source[1].source": "rules:length",
        "reward.source[1].clip": 3,
        "reward.source[1].arguments.longest": 9,
        "reward.source[2].source": "mine.py:score",
        "reward.source[2].weight": 0.5,
        "reward.source[2].name": "own",
        "reward.source[2].normalize": "reference",
    }


def made(experiment: Experiment, stage: str = "reward") -> dict[str, Any]:
    inputs = stage_inputs(experiment)[stage]
    config = experiment.model_dump(mode="json")
    return {"inputs": inputs, "config": config, "fingerprint": fingerprint(inputs)}


def changed(load: Load, before: list[str], after: list[str]) -> set[str]:
    record, experiment = made(load(*before)), load(*after)
    return {d.key for d in differences(experiment, "reward", record, made(experiment)["inputs"])}


def test_what_changed_in_a_list_is_told_by_part(load: Load, tmp_path: Path) -> None:
    assert changed(load, [LIST], [LIST]) == set()
    weight = [LIST, "reward.source[2].weight=2"]
    assert changed(load, [LIST], weight) == {"reward.source[2].weight"}
    one = {"reward.source", "reward.source[0].source"}
    assert changed(load, [], ["reward.source=[sentiment]"]) >= one
    assert changed(load, ["reward.source=[sentiment]"], []) >= one


def test_a_file_in_a_list_counts_by_its_content(load: Load, tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    for path in (first, second):
        path.write_text("def f(completions): return [1.0 for _ in completions]")
    one, two = ([f"reward.source=[rules:ended, {path}:f]"] for path in (first, second))
    record = made(load(*one))
    assert changed(load, one, two) == set()  # only moved
    first.write_text("def f(completions): return [2.0 for _ in completions]")
    now = made(load(*one))["inputs"]
    [difference] = differences(load(*one), "reward", record, now)
    assert str(difference) == "another content of the file that reward.source[1].source names"


def test_a_normalised_reward_is_made_of_the_reference_and_its_lengths(load: Load) -> None:
    scaled = "reward.source={source: rules:repetition, normalize: reference}"
    plain = "reward.source={source: rules:repetition}"
    for override in ("sft.learning_rate=1e-9", "generation.max_new_tokens=9", "seed=3"):
        prints = [made(load(scaled))["fingerprint"], made(load(scaled, override))["fingerprint"]]
        assert prints[0] != prints[1], override
    before, after = (made(load(plain, *o))["fingerprint"] for o in ([], ["sft.learning_rate=1e-9"]))
    assert before == after
