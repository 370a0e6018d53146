"""A list of sources as one reward on the toy: scaled on π_ref, measured, optimised."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import TrainerCallback

from common.files import read_json, write_json
from pipeline.config import Experiment, RewardPart, load_experiment
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.lm.generation import sample
from pipeline.lm.models import load_checkpoint
from pipeline.lm.scored import score_completions
from pipeline.runner import run
from pipeline.stages import reward, reward_reference, reward_sources, tracking
from reward_models.rules import KNOWN

SAMPLES = 40_000
# One that is trained, one that says nothing of some completions, one that is a rule.
LIST = """
    - {source: sentiment, normalize: reference, clip: 30}
    - {source: "OWN:wonderful", weight: 0.5}
    - {source: "rules:length", normalize: reference, weight: -0.25, arguments: {longest: 2}}
"""
OWN = """
def wonderful(completions, ended):
    return [float("wonderful" in c) if e else None for c, e in zip(completions, ended)]
def alike(completions):
    return [2.0 for _ in completions]
"""
CONFIG = """
model: {model_name_or_path: toy, dtype: float32}
data: {dataset_name: toy, demonstrations: 256, heldout: 8, train_prompts: 32, eval_prompts: 8}
generation: {max_new_tokens: 6, batch_size: 2000}
sft: {per_device_train_batch_size: 16, learning_rate: 3e-3, gradient_checkpointing: false,
  bf16: false, use_cpu: true}
reward:
  source: LIST
  normalize_samples: 64
  encoder: toy
  num_train_epochs: 1
  learning_rate: 3e-3
  use_cpu: true
ppo: {total_episodes: 64, per_device_train_batch_size: 8, num_mini_batches: 2, num_ppo_epochs: 1,
  learning_rate: 1e-3, save_steps: 2, use_cpu: true}
pairs: {per_prompt: 1, max_pairs: 16}
dpo: {per_device_train_batch_size: 8, gradient_checkpointing: false, bf16: false, use_cpu: true}
compare: {samples_per_prompt: 2, reference_samples: 8, best_of_n: 4, bootstrap: 20}
tracking: {report_to: []}
"""
Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("config")
    (folder / "own.py").write_text(OWN)
    config = folder / "toy.yaml"
    config.write_text(CONFIG.replace("LIST", LIST).replace("OWN", str(folder / "own.py")))

    def experiment(output: Path, *overrides: str) -> Experiment:
        own = (override.replace("OWN", str(folder / "own.py")) for override in overrides)
        return load_experiment(config, [f"output_dir={output}", *own])

    return experiment


@pytest.fixture(scope="module")
def trained(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reference policy and a reward of three parts."""
    output = tmp_path_factory.mktemp("trained") / "run"
    run(make(output), "reward")
    return output


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(trained, tmp_path / "run")
    yield tmp_path / "run"


def scales(experiment: Experiment) -> dict[str, Any]:
    return read_json(experiment.stage_dir("reward") / "scale.json")["scales"]


@pytest.mark.slow
@pytest.mark.long
def test_normalised_rewards_have_mean_0_and_deviation_1_on_fresh_samples(
    make: Make, copied: Path
) -> None:
    """Of 40,000 samples each: the mean is known to 0.007 deviations, the deviation about so."""
    only = "reward.source={source: sentiment, normalize: reference}"
    experiment = make(copied, only, f"reward.normalize_samples={SAMPLES}")
    prompts = load_data(experiment).train_prompts
    reward_reference.estimate_scales(experiment, prompts)
    kept = [row for row in scales(experiment).values() if row["n"] == SAMPLES]
    assert {row["part"] for row in kept} == {"proxy", "gold"}
    model, tokenizer = load_checkpoint(experiment.stage_dir("sft") / "model")
    fresh = sample(
        model,
        tokenizer,
        prompts,
        samples_per_prompt=SAMPLES // len(prompts),
        max_new_tokens=experiment.generation.max_new_tokens,
        batch_size=experiment.generation.batch_size,
        seed=12345,
    )
    totals = score_completions(reward_sources.proxy_reward(experiment), fresh).total
    assert abs(np.mean(totals)) < 0.02
    assert abs(np.std(totals) - 1) < 0.02
    row = next(row for row in kept if row["part"] == "proxy")
    assert row["standard_error"] == pytest.approx(row["deviation"] / SAMPLES**0.5)


def test_each_part_is_measured_and_the_sum_is_of_scaled_ones(make: Make, trained: Path) -> None:
    experiment = make(trained)
    metrics = read_json(trained / "reward" / "metrics.json")
    assert metrics["proxy"]["source"] == "sentiment + 0.5·wonderful − 0.25·length"
    parts = metrics["proxy"]["parts"]
    assert list(parts) == ["sentiment", "wonderful", "length"]
    assert parts["sentiment"]["accuracy"] > 0.5 and "accuracy" not in parts["length"]
    assert metrics["judge_is_proxy"] is False
    assert {(row["part"], row["source"]) for row in scales(experiment).values()} == {
        ("proxy", "reward.source[0]"),
        ("gold", "reward.source[0]"),
        ("proxy", "reward.source[2]"),  # no classifier: the judge's is the same
    }
    prompts = ["the film about love"] * 2
    texts = [" is truly wonderful and warm", " is dull"]
    columns = {"ended": [True, False], "completion_ids": [[1], [2]]}
    scores = reward_sources.proxy_reward(experiment).scores(prompts, texts, **columns)
    assert scores.parts["wonderful"] == [1.0, None] and scores.parts["length"] == [-3.0, 0.0]
    known = {row["source"]: row for row in scales(experiment).values() if row["part"] == "proxy"}
    for i in range(2):
        expected = 0.5 * (scores.parts["wonderful"][i] or 0.0)
        for name, key, weight in (
            ("sentiment", "reward.source[0]", 1.0),
            ("length", "reward.source[2]", -0.25),
        ):
            raw, scale = scores.parts[name][i], known[key]
            assert raw is not None
            expected += weight * (raw - scale["mean"]) / scale["deviation"]
        assert scores.total[i] == pytest.approx(expected)


def test_another_scale_is_never_taken(make: Make, copied: Path) -> None:
    """Of another setting, another source or another reference; what is the same is not redone."""
    others = [
        ["generation.max_new_tokens=5"],
        ["reward.source[0].clip=20"],
        ["reward.normalize_samples=65"],
        ["reward.source[2].arguments.longest=3"],
    ]
    for overrides in others:
        with pytest.raises(UserError, match="holds no scale of this source") as error:
            reward_sources.proxy_reward(make(copied, *overrides))
        assert "run `rlhf reward`" in str(error.value) and "\n" not in str(error.value)
    before = scales(make(copied))
    reward_reference.estimate_scales(make(copied), [])  # no prompt is needed where all is known
    assert scales(make(copied)) == before
    same = ["reward.source[0].weight=3", "reward.source[0].name=mood", "seed=4"]
    reward_sources.proxy_reward(make(copied, *same))
    config = read_json(copied / "sft" / "model" / "config.json")
    write_json(copied / "sft" / "model" / "config.json", config | {"another": 1})
    with pytest.raises(UserError, match=r"reward.source\[0\].normalize: "):
        reward_sources.proxy_reward(make(copied))


def test_what_cannot_be_normalised_is_one_line(make: Make, copied: Path) -> None:
    experiment = make(copied, 'reward.source={source: "OWN:alike", normalize: reference}')
    with pytest.raises(UserError) as error:
        reward_reference.estimate_scales(experiment, load_data(experiment).train_prompts)
    message = str(error.value)
    assert message.startswith("reward.source[0].normalize: the source scores 64 of 64 samples")
    assert "all alike" in message and "\n" not in message


def test_a_mistake_of_a_part_names_its_place(make: Make, tmp_path: Path) -> None:
    overrides = ["reward.source=[rules:ended, nowhere.py:f]", "reward.gold=rules:ended"]
    with pytest.raises(UserError, match=r"^reward.source\[1\]: nowhere.py:f: there is no file"):
        reward_sources.proxy_reward(make(tmp_path, *overrides))


def test_a_list_that_trains_nothing_judges_itself(make: Make, tmp_path: Path) -> None:
    experiment = make(tmp_path, "reward.source=[rules:ended, rules:repetition]")
    assert reward_sources.judge_is_proxy(experiment)
    assert reward_sources.trained_source(experiment, "gold") is None
    pessimistic = make(
        tmp_path,
        "reward.source=[rules:ended, rules:repetition]",
        "reward.combine=pessimistic",
        "reward.uncertainty_penalty=2",
    )
    call = reward_sources.proxy_reward(pessimistic)
    # 1 and −0.5: mean 0.25, deviation 0.75.
    assert call([""], ["a b c a b c"], ended=[True]) == pytest.approx([0.375 - 2 * 0.625])
    assert reward_sources.gold_reward(make(tmp_path, "reward.gold=rules:ended"))(
        [""], ["a"], ended=[True]
    ) == [1.0]


def test_the_example_of_the_docs_runs(make: Make, copied: Path, root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "reward-models.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    parts = yaml.safe_load(example)["reward"]["source"]
    shutil.rmtree(copied / "reward" / "checkpoints")  # what is trained already stays
    experiment = make(copied, f"reward.source={json.dumps(parts)}")
    reward.run(experiment)
    metrics = read_json(copied / "reward" / "metrics.json")["proxy"]
    assert metrics["source"] == "sentiment + 0.1·length + cliches"
    call = reward_sources.proxy_reward(experiment)
    plain, banned = call([""] * 2, [" is truly warm", " is truly warm, a must see"])
    assert plain - banned > 0.5


def test_the_page_tells_of_every_rule_and_key(root: Path) -> None:
    page = (root / "docs" / "reward-models.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `rules:")}
    assert set(rows) == {f"rules:{name}" for name in KNOWN} | {"rules:name"}
    for name, made in KNOWN.items():
        for argument in inspect.signature(made).parameters:
            assert f"`{argument}`" in rows[f"rules:{name}"]
    for key in RewardPart.model_fields:
        assert f"`{key}`" in page


class Stopped(Exception):
    pass


class Stop(TrainerCallback):
    """Ends the run behind its first checkpoint, as a kill would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise Stopped


@pytest.mark.long  # its parts are the tests above
def test_a_whole_run_on_three_parts_and_one_that_was_stopped(
    make: Make, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(copied, stopped)
    run(make(copied), "run")
    results = read_json(copied / "compare" / "results.json")
    assert {"sft", "ppo", "dpo", "best_of_n"} <= set(results["methods"])
    # The reference's own mean is that of its scaled parts: 0, and 0.5 · P(wonderful).
    assert abs(results["methods"]["sft"]["reward"] - 0.1) < 0.6
    logged = json.loads((copied / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert {f"rewards/{name}/mean" for name in ("sentiment", "wonderful", "length")} <= set(logged)

    callbacks = tracking.callbacks
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "callbacks", lambda *a, **k: [*callbacks(*a, **k), Stop()])
        with pytest.raises(Stopped):
            run(make(stopped), "ppo")
    run(make(stopped), "run")
    for stage in ("ppo", "dpo"):
        models = [run_ / stage / "model" / "model.safetensors" for run_ in (copied, stopped)]
        assert models[0].read_bytes() == models[1].read_bytes(), stage
    assert read_json(stopped / "compare" / "results.json") == results
