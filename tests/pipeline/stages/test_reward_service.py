"""A service as the reward of an experiment: its settings, and what must not be kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.files import read_json
from pipeline.config import Experiment, load_experiment
from pipeline.errors import UserError
from pipeline.provenance import fingerprint, stage_inputs
from pipeline.stages import reward, reward_sources
from tests.service import Service

CONFIG = """
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 8, eval_prompts: 8}
model: {model_name_or_path: toy}
reward: {encoder: toy, use_cpu: true}
tracking: {report_to: []}
"""
Make = Callable[..., Experiment]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return lambda *settings: load_experiment(
        tmp_path / "toy.yaml", [f"output_dir={tmp_path}/run", *settings]
    )


def test_a_service_is_measured_with_its_header(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HEADER", "X-Key: s3cr3t")
    with Service() as service:
        experiment = make(f"reward.source={service.url}", "reward.header_env=MY_HEADER")
        reward.run(experiment)
        assert all(headers["X-Key"] == "s3cr3t" for headers in service.headers)
        call = reward_sources.proxy_reward(experiment)
    assert read_json(experiment.stage_dir("reward") / "metrics.json")["proxy"]["mean"] > 0
    assert getattr(call, "label", "") == f"reward.source: {service.url}"
    monkeypatch.delenv("MY_HEADER")
    with pytest.raises(UserError, match="reward.source: http.*no environment variable MY_HEADER"):
        reward.run(experiment)


def test_a_service_in_a_list_has_its_own_arguments(make: Make) -> None:
    with Service() as service:
        part = f"{{source: '{service.url}', arguments: {{batch_size: 5, concurrency: 2}}}}"
        experiment = make(f"reward.source=[{part}, rules:repetition]", "reward.concurrency=3")
        call = reward_sources.proxy_reward(experiment)
        assert call(["p"] * 12, ["cc"] * 12) == pytest.approx([call(["p"], ["cc"])[0]] * 12)
        assert sorted(len(body["prompts"]) for body in service.requests) == [1, 2, 5, 5]
        assert service.most <= 2


def test_how_a_service_is_asked_makes_no_other_result(make: Make) -> None:
    url = "reward.source=http://localhost:1/score"
    one = make(url)
    other = make(url, "reward.header_env=MY_HEADER", "reward.concurrency=9")
    for stage, inputs in stage_inputs(one).items():
        assert fingerprint(inputs) == fingerprint(stage_inputs(other)[stage])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["reward.header_env=A"], "reward.header_env=A: is for a service, and none of reward.s"),
        (["reward.concurrency=2"], "is for a service, and none of reward.source and reward.gold"),
        (["reward.concurrency=0"], "reward.concurrency"),
        (["reward.source=https://me:s3cr3t@host/x"], "https://host/x: the address holds a user"),
        (["reward.source=[{source: 'http://h', arguments: {a: 1}}]"], "has no argument 'a'; there"),
        (
            ["reward.source=http://h", "reward.format=text"],
            "is for a checkpoint or a function, and",
        ),
        (["reward.gold=https://s3cr3t@host"], "the address holds a user or a password"),
    ],
)
def test_settings_that_do_not_go_are_one_line(
    make: Make, settings: list[str], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        make(*settings)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert "s3cr3t" not in str(error.value)
