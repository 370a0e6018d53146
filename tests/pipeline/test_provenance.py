"""What a finished stage was made from, held against what it would be made from now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.files import write_json
from pipeline.config import Experiment, load_experiment
from pipeline.errors import UserError
from pipeline.planning import plan
from pipeline.provenance import Record, differences, stage_inputs


def test_embedded_texts_that_were_divided_otherwise_make_another_run(tiny: Path) -> None:
    """Today's held-out texts may be among those that an earlier release trained on."""
    experiment = load_experiment(tiny, ["data.dataset_name=embedded:tweets"])
    now = stage_inputs(experiment)["sft"]
    before = {"inputs": {key: value for key, value in now.items() if key != "division"}}
    assert differences(experiment, "sft", {"inputs": now}, now) == []
    (found,) = differences(experiment, "sft", before, now)
    assert "an earlier release divided otherwise" in str(found)
    assert "division" not in stage_inputs(load_experiment(tiny))["sft"]


def test_another_function_of_the_same_file_is_another_reward(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_rewards.py").write_text("f = g = len")
    monkeypatch.chdir(tmp_path)
    for form in ("two_rewards.py", "two_rewards"):
        first, second = (load_experiment(tiny, [f"reward.source={form}:{name}"]) for name in "fg")
        made = {"inputs": stage_inputs(first)["reward"]}
        assert differences(first, "reward", made, stage_inputs(first)["reward"]) == []
        assert differences(second, "reward", made, stage_inputs(second)["reward"])


def trained(experiment: Experiment, policy: str) -> Record:
    """The record of a policy's stage that is finished."""
    config = experiment.of(policy).model_dump(mode="json")
    return {"config": config, "inputs": stage_inputs(experiment)[policy], "status": "finished"}


def test_a_policy_of_another_method_is_another_policy(tiny: Path) -> None:
    """Even where the settings of both methods were the same all along."""
    before, now = (load_experiment(tiny, [f"policies.mine={m}"]) for m in ("rloo", "grpo"))
    record = trained(before, "mine")
    assert differences(before, "mine", record, stage_inputs(before)["mine"]) == []
    (found,) = differences(now, "mine", record, stage_inputs(now)["mine"])
    assert str(found) == "policies.mine.method = 'rloo', the config now has 'grpo'"


def test_a_policys_seed_that_is_the_experiments_makes_no_other_policy(tiny: Path) -> None:
    before = load_experiment(tiny, ["seed=3"])
    now = load_experiment(tiny, ["seed=3", "policies.ppo.seed=3"])
    assert differences(now, "ppo", trained(before, "ppo"), stage_inputs(now)["ppo"]) == []


def test_a_server_elsewhere_makes_no_other_policy_and_another_engine_does(tiny: Path) -> None:
    vllm = ["ppo.generation=vllm"]
    before = load_experiment(tiny, [*vllm, "ppo.server=http://here:8000"])
    moved = ["ppo.server=http://there:8001", "ppo.server_folder=/dev/shm/x", "ppo.server_retries=3"]
    now = load_experiment(tiny, vllm + moved)
    record = trained(before, "ppo")
    assert differences(now, "ppo", record, stage_inputs(now)["ppo"]) == []
    loop = load_experiment(tiny)
    (found,) = differences(loop, "ppo", record, stage_inputs(loop)["ppo"])
    assert "ppo.generation" in str(found)


def test_a_refusal_names_the_key_where_it_stands(tiny: Path, tmp_path: Path) -> None:
    """With the policy where the policy sets it, else with the method's section."""

    def load(*overrides: str) -> Experiment:
        own = [f"output_dir={tmp_path}", "policies.mine.method=dpo", "policies.mine.beta=0.5"]
        return load_experiment(tiny, [*own, "policies.mine.pairs.labels=hard", *overrides])

    before = load()
    for stage in ("sft", "reward"):
        made = {"config": before.model_dump(mode="json"), "inputs": stage_inputs(before)[stage]}
        write_json(tmp_path / stage / "stage.json", {**made, "status": "finished"})
    write_json(tmp_path / "mine" / "stage.json", trained(before, "mine"))
    write_json(tmp_path / "mine" / "pairs.json", {})
    for override, key in (
        ("policies.mine.learning_rate=1", "policies.mine.learning_rate"),
        ("policies.mine.beta=1", "policies.mine.beta"),
        ("policies.mine.seed=1", "policies.mine.seed"),
        ("policies.mine.pairs.labels=soft", "policies.mine.pairs.labels"),
        ("dpo.learning_rate=1", "dpo.learning_rate"),
    ):
        with pytest.raises(UserError, match=rf"mine: was made with {re.escape(key)} = "):
            plan(load(override), ["mine"])
