"""`rlhf evaluate-reward` on the toy task: what it judges, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.files import read_json
from pipeline import cli
from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.judging.judges import did_not_see
from pipeline.judging.texts import DOMAINS, held_out, other_domains

CONFIG = """
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 8, eval_prompts: 8}
reward: {encoder: toy, num_train_epochs: 1, per_device_train_batch_size: 16, learning_rate: 3e-3,
  logging_steps: 50, use_cpu: true}
tracking: {report_to: []}
"""
FUNCTIONS = """
GOOD = ("brilliant", "wonderful", "moving", "funny", "charming", "clever", "warm", "pleasant")

def words(prompts, completions):
    return [1000.0 * sum(word in text for word in GOOD) - 3.0 for text in completions]

def constant(prompts, completions):
    return [0.5] * len(completions)

def ended(prompts, completions, ended, completion_ids):
    assert all(ended)
    return [float(len(ids)) for ids in completion_ids]

def looks_up(prompts, completions, answer):
    return [1.0] * len(completions)

def broken(prompts, completions):
    return [float("nan")] * len(completions)
"""

Evaluate = Callable[..., tuple[int, Path]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment whose proxy and gold are trained."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "toy.yaml").write_text(CONFIG)
    (folder / "mine.py").write_text(FUNCTIONS)
    words = f"output_dir={folder / 'run'}"
    experiment = load_experiment(folder / "toy.yaml", [words])
    assert cli.main(["reward", "--config", str(folder / "toy.yaml"), words]) == 0
    return experiment


def evaluate(experiment: Experiment, *words: str) -> int:
    folder = experiment.output_dir.parent
    arguments = ["--config", str(folder / "toy.yaml"), f"output_dir={experiment.output_dir}"]
    return cli.main(["evaluate-reward", *arguments, *words])


def account(experiment: Experiment) -> dict[str, Any]:
    return read_json(experiment.output_dir / "evaluate-reward" / "evaluation.json")


def test_proxy_and_gold_on_texts_that_neither_saw(
    trained: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(trained) == 0
    found = account(trained)
    data = load_data(trained)
    assert [judge["name"] for judge in found["judges"]] == ["proxy", "gold"]
    assert all(judge["unseen"] for judge in found["judges"])
    assert found["scores"]["rating"] == [text.rating for text in data.classifier_test]
    learnt = {text.text for text in [*data.proxy, *data.gold]}
    assert not learnt & {text.text for text in data.classifier_test}
    # What the reward stage measured, measured here.
    stage = read_json(trained.stage_dir("reward") / "metrics.json")
    for part in ("proxy", "gold"):
        for ours, theirs in (("accuracy", "accuracy"), ("auc", "auc"), ("ece", "ece")):
            value = found["rewards"][part][ours]["value"]
            assert value == pytest.approx(stage[part][theirs], abs=1e-6)
        pearson = found["rewards"][part]["pearson"]["value"]
        assert pearson == pytest.approx(stage[part]["correlation"], abs=1e-6)
    accuracy = found["one_person"]["accuracy"]["value"]
    assert accuracy == pytest.approx(stage["one_rater"]["accuracy"])
    assert found["by_domain"] == [] and len(found["by_length"]) >= 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["proxy", "gold", "one person"]
    html = (trained.output_dir / "evaluate-reward" / "index.html").read_text(encoding="utf-8")
    assert "Worst-judged texts" in html
    drawn = {path.stem for path in (trained.output_dir / "evaluate-reward").glob("*.png")}
    assert drawn == {"pairwise", "scatter", "calibration", "lengths"}


def test_same_numbers_twice(trained: Experiment, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert evaluate(trained, "--output", str(tmp_path / name)) == 0
    for file in ("evaluation.json", "index.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_further_rewards_of_any_scale(trained: Experiment, tmp_path: Path) -> None:
    mine = trained.output_dir.parent / "mine.py"
    proxy = trained.stage_dir("reward") / "proxy"
    further = [
        f"words={mine}:words",
        f"constant={mine}:constant",
        f"again={proxy}",
        f"ended={mine}:ended",
    ]
    words = [word for each in further for word in ("--reward", each)]
    assert evaluate(trained, *words, "--output", str(tmp_path)) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    rows = found["rewards"]
    assert list(rows) == ["proxy", "gold", "words", "constant", "again", "ended"]
    assert rows["words"]["accuracy"] is None and rows["words"]["auc"]["value"] > 0.8
    assert rows["constant"]["spearman"] is None and rows["constant"]["auc"]["value"] == 0.5
    assert rows["again"]["accuracy"] is not None, "a classifier's score is a log-odds"
    assert rows["again"]["spearman"]["value"] == pytest.approx(
        rows["proxy"]["spearman"]["value"], abs=1e-3
    )
    said = " ".join(found["cautions"])
    assert "constant gives every held-out text the same score" in said
    assert "What words, constant, again and ended learnt from is not compared" in said
    assert not [judge for judge in found["judges"][2:] if judge["unseen"]]


def test_an_experiment_without_training_judges_what_is_named(
    trained: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = trained.output_dir.parent / "mine.py"
    short = "short={source: rules:length, arguments: {longest: 12}}"
    fresh = f"output_dir={tmp_path / 'fresh'}"
    assert evaluate(trained, fresh) == 2
    assert "run `rlhf reward` with this config" in capsys.readouterr().err
    assert evaluate(trained, fresh, "--reward", f"words={mine}:words", "--reward", short) == 0
    err = capsys.readouterr().err
    assert "proxy is not trained yet" in err and "gold is not trained yet" in err
    found = read_json(tmp_path / "fresh" / "evaluate-reward" / "evaluation.json")
    assert [judge["name"] for judge in found["judges"]] == ["words", "short"]


def test_one_reward_without_a_judge_and_classes(
    trained: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own data with classes 0 and 1 and no raters, a function as the reward, no gold."""
    mine = trained.output_dir.parent / "mine.py"
    texts = [*load_data(trained).proxy, *load_data(trained).gold][:300]
    rows = "".join(
        json.dumps({"text": text.text, "label": int(text.rating > 0)}) + "\n" for text in texts
    )
    (tmp_path / "own.jsonl").write_text(rows)
    own = [
        f"data.dataset_name={tmp_path / 'own.jsonl'}", "data.positive_above=0.5",
        f"reward.source={mine}:words", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert evaluate(trained, *own) == 0
    assert "no judge of its own" in capsys.readouterr().err
    found = read_json(tmp_path / "run" / "evaluate-reward" / "evaluation.json")
    assert list(found["rewards"]) == ["proxy"]
    assert found["rewards"]["proxy"]["texts"] == 30
    assert found["one_person"] is None and found["pairwise"] is None and found["by_domain"] == []
    assert "Only 30 held-out texts" in found["cautions"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "mine"], "is not NAME=SOURCE"),
        (["--reward", "=x"], "is not NAME=SOURCE"),
        (["--reward", "a=x.py:f", "--reward", "a=y.py:f"], "--reward a: the name is given twice"),
        (["--reward", "a={source: sentiment}"], "is what this experiment trains"),
        (["--reward", "a={source: rules:length, weight: 2}"], "weight combines several"),
        (["--reward", "a={sorce: x}"], "--reward a: source: Field required"),
        (["--reward", "a={source: [x}"], "is not YAML"),
        (["--reward", "a={folder}/mine.py:looks_up"], "--reward a: asks for answer"),
        (["--reward", "gold=x.py:f"], "--reward gold: the name has a meaning already"),
        (["--reward", "a=nowhere.py:f"], "--reward a: nowhere.py:f: there is no file"),
        (["--reward", "a={folder}/mine.py:wrds"], "did you mean words?"),
        (["--reward", "a={folder}/mine.py:broken"], "--reward a:"),
        (["--output", "{folder}/mine.py"], "is a file; give a folder"),
        (["--output", "{folder}/mine.py/x"], "--output"),
        (["--most", "0"], "is not a whole number above 0"),
        (["reward.sorce=x"], "reward.sorce"),
        (["seed=3"], "give the config that it was made with"),
        (["data.heldout=9"], "was made with data.heldout"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, trained: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(trained.output_dir.parent)
    assert evaluate(trained, *(word.replace("{folder}", folder) for word in words)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_texts_without_ratings_are_refused(
    trained: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(
        json.dumps({"prompt": f"q {i}", "completion": f" a {i}"}) + "\n" for i in range(99)
    )
    (tmp_path / "own.jsonl").write_text(rows)
    assert evaluate(trained, f"data.dataset_name={tmp_path / 'own.jsonl'}") == 2
    assert "rated texts" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["sentiment", "pairwise"])
def test_what_the_experiment_trained_on_is_not_held_out(source: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    experiment = load_experiment(tmp_path / "toy.yaml", [f"reward.source={source}"])
    judged = {text.text for text in held_out(experiment).texts}
    data = load_data(experiment)
    assert judged == {text.text for text in data.classifier_test}
    assert not judged & {text.text for part in ("proxy", "gold") for text in data.half(part)}
    assert did_not_see(experiment, source)


def test_own_pairs_may_hold_the_judged_texts(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    own = ["reward.source=pairwise", "data.preferences_name=pairs.jsonl"]
    experiment = load_experiment(tmp_path / "toy.yaml", own)
    assert len(held_out(experiment).texts) == 300
    assert not did_not_see(experiment, "pairwise") and did_not_see(experiment, "sentiment")


@pytest.mark.assets
def test_other_domains_are_as_long_and_share_no_text(trained: Experiment) -> None:
    config = trained.output_dir.parent / "toy.yaml"
    experiment = load_experiment(config, ["data.dataset_name=embedded:tweets"])
    own, others = held_out(experiment), other_domains(experiment, most=50)
    assert own.name == "tweets"
    assert [domain.name for domain in others] == [name for name in DOMAINS if name != "tweets"]
    for domain in others:
        assert len(domain.texts) == 50
        for text, prompt, rest in zip(
            domain.texts, domain.prompts, domain.completions, strict=True
        ):
            assert prompt + rest == text.text and 8 <= len(text.text.split()) <= 30
    again = other_domains(experiment, most=50)
    assert [d.texts for d in again] == [d.texts for d in others]
