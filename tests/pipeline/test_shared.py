"""`shared`: another experiment's SFT model and rewards are read, never made, never others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.files import read_json, write_json
from pipeline import runner
from pipeline.config import Experiment, load_experiment
from pipeline.errors import UserError
from pipeline.planning import plan
from pipeline.provenance import stage_inputs

SHARED = ("sft", "reward")


@pytest.fixture
def load(tiny: Path, tmp_path: Path) -> Any:
    """configs/tiny.yaml in a folder of its own, with overrides."""

    def made(name: str, *overrides: str) -> Experiment:
        return load_experiment(tiny, [f"output_dir={tmp_path / name}", *overrides])

    return made


@pytest.fixture
def base(load: Any, tmp_path: Path) -> Path:
    """The folder of an experiment whose sft and reward stages say that they are finished."""
    finish(load("base"))
    return tmp_path / "base"


def finish(experiment: Experiment, *stages: str) -> None:
    for stage in stages or SHARED:
        step = next(s for s in plan(experiment, [stage]) if s.stage == stage)
        record = {
            "stage": stage,
            "status": "finished",
            "fingerprint": step.fingerprint,
            "seed": experiment.seed,
            "config": experiment.model_dump(mode="json"),
            "inputs": step.inputs,
        }
        write_json(experiment.stage_dir(stage) / "stage.json", record)


def actions(experiment: Experiment, *stages: str) -> dict[str, str]:
    return {step.stage: step.action for step in plan(experiment, stages)}


def test_they_are_read_from_there_and_the_rest_is_its_own(load: Any, base: Path) -> None:
    trial = load("trial", f"shared={base}")
    assert [trial.stage_dir(s) for s in SHARED] == [base / s for s in SHARED]
    assert trial.of("ppo").stage_dir("sft") == base / "sft"
    assert trial.stage_dir("ppo") == trial.output_dir / "ppo"
    assert trial.stage_dir("compare") == trial.output_dir / "compare"


def test_another_seed_and_beta_of_the_policies_are_no_difference(load: Any, base: Path) -> None:
    trial = load("trial", f"shared={base}", "seed=7", "beta=0.25", "data.seed=0")
    every = [stage.name for stage in trial.stages()]
    assert actions(trial, *every) == {
        "sft": "skip",
        "reward": "skip",
        "ppo": "start",
        "dpo": "start",
        "compare": "start",
    }
    assert actions(trial, "ppo") == {"ppo": "start"}


def test_policies_are_made_from_the_same_as_with_stages_of_their_own(load: Any, base: Path) -> None:
    own, trial = load("base"), load("trial", f"shared={base}")
    records = {stage: read_json(base / stage / "stage.json") for stage in SHARED}
    for stage in ("ppo", "dpo"):
        assert stage_inputs(trial, records)[stage] == stage_inputs(own, records)[stage]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["sft.learning_rate=1e-4"], "sft.learning_rate"),
        (["reward.num_train_epochs=1"], "reward.num_train_epochs"),
        (["data.demonstrations=100"], "data.demonstrations"),
        (["seed=1"], "data.seed"),  # would be compared on what SFT has learned
        (["data.seed=3"], "data.seed"),
    ],
)
def test_other_settings_are_refused(load: Any, base: Path, overrides: list[str], key: str) -> None:
    trial = load("trial", f"shared={base}", *overrides)
    for stages in (["ppo"], ["sft", "reward", "ppo"]):
        with pytest.raises(UserError) as caught:
            plan(trial, stages)
        message = str(caught.value)
        assert f"{key} = " in message and "set another shared" in message, message
        assert "overwrite" not in message and "\n" not in message


def test_what_is_not_finished_is_not_made(load: Any, base: Path, tmp_path: Path) -> None:
    record = read_json(base / "reward" / "stage.json")
    write_json(base / "reward" / "stage.json", record | {"status": "started"})
    trial = load("trial", f"shared={base}")
    with pytest.raises(UserError, match=r"reward: is not finished.* only read.*rlhf reward"):
        runner.run(trial, "ppo")
    empty = load("other", f"shared={tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="sft: is not finished"):
        runner.run(empty, "run")
    assert not (tmp_path / "nothing").exists() and not (tmp_path / "other" / "ppo").exists()


@pytest.mark.parametrize("command", SHARED)
def test_overwrite_removes_nothing_that_is_shared(load: Any, base: Path, command: str) -> None:
    trial = load("trial", f"shared={base}")
    with pytest.raises(UserError, match="only read"):
        runner.run(trial, command, overwrite=True)
    changed = load("trial", f"shared={base}", "sft.learning_rate=1e-4", "reward.weight_decay=0.3")
    with pytest.raises(UserError, match="set another shared"):
        runner.run(changed, "run", overwrite=True)
    assert (base / command / "stage.json").is_file()


def test_a_model_taken_as_it_is_has_no_division(load: Any, tmp_path: Path) -> None:
    """With own rules for a reward too, nothing of the shared stages depends on the seed."""
    finish(load("base", "sft.skip=true"), "sft")
    trial = load("trial", "sft.skip=true", f"shared={tmp_path / 'base'}", "seed=1")
    assert actions(trial, "sft") == {"sft": "skip"}


def test_it_is_not_the_folder_itself(load: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is output_dir itself; name the folder"):
        load("trial", f"shared={tmp_path / 'trial'}")


def test_a_sweep_or_a_shared_folder_leaves_no_trace_in_what_is_made(load: Any) -> None:
    plain, swept = load("trial"), load("trial", "sweep.seeds=[4]", "sweep.jobs=2")
    assert stage_inputs(plain) == stage_inputs(swept)
    assert not {"sweep", "shared"} & plain.model_dump(mode="json").keys()
