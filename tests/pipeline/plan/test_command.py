"""`rlhf plan` from the command line: what it prints, and its exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline import cli, runner
from pipeline.plan import devices, warning
from pipeline.plan.tables import MODELS, Plan, tables
from pipeline.stages import budget
from tests.pipeline.plan.models import folder_of


def test_a_toy_fits_and_says_what_it_takes(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["plan", "--config", str(tiny), f"output_dir={tmp_path / 'run'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny on ") and lines[-1] == "plan: every stage fits"
    assert "prompts up to 4 tokens, completions up to 8" in lines[2]
    rows = {line.split()[0]: line.split() for line in lines[5:10]}
    assert list(rows) == ["sft", "reward", "ppo", "dpo", "compare"]
    assert not (tmp_path / "run").exists()  # a plan leaves nothing behind


def test_what_does_not_fit_is_told_with_what_to_change(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "model", hidden_size=768, num_hidden_layers=8)
    words = [
        "plan", "--config", str(tiny), f"model.model_name_or_path={folder}", "--gpu", "l4",
        "--memory", "3", "--stage", "sft", "sft.per_device_train_batch_size=512",
    ]  # fmt: skip
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert re.search(r"sft: does not fit while learning, \d", out)
    assert "fits with sft.per_device_train_batch_size=" in out
    assert out.rstrip().endswith("plan: does not fit")
    assert cli.main([*words, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    (stage,) = plan["stages"]
    assert not plan["fits"] and not stage["fits"] and stage["changes"]
    total = max(sum(roles.values()) for roles in stage["phases"].values())
    assert stage["peak_bytes"] == pytest.approx(total, abs=len(stage["phases"]) * 10)


def test_sequences_beyond_the_models_positions_do_not_fit(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--config", str(tiny), "--stage", "ppo", "generation.max_new_tokens=200"]
    assert cli.main([*words, "reward.max_length=512"]) == 1
    out = capsys.readouterr().out
    assert "ppo: 204 tokens are more than the 128 positions" in out


def test_data_that_are_not_reached_are_told(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", str(tiny), "data.dataset_name=nobody/nothing", "--gpu", "h100"]
    assert cli.main([*words, "--stage", "sft"]) == 0
    assert "the data is not read here: data.dataset_name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--gpu", "h10"], "error: --gpu: 'h10' is none of .*; did you mean h100?"),
        (["--memory", "none"], "error: .*'none' is not a number of GiB above 0"),
        (["--fsdp2"], "error: --fsdp2: splits over several devices; give --gpus N"),
        (["--stage", "pp"], "error: --stage: 'pp' is none of sft, reward, ppo, dpo, compare"),
    ],
)
def test_mistakes_are_one_line(
    tiny: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--config", str(tiny), *words]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(line.replace("?", r"\?"), said), said


def test_the_tables_are_the_documents(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    begin, end = "<!-- rlhf plan --table: begin -->", "<!-- rlhf plan --table: end -->"
    assert cli.main(["plan", "--table"]) == 0
    assert text.split(begin)[1].split(end)[0].strip() == capsys.readouterr().out.strip() == tables()
    sizes = {model.name: model.parameters for model in MODELS}
    # The published counts, from the checkpoints' own tensors.
    assert sizes == {"1B": 1_235_814_400, "8B": 8_030_261_248, "70B": 70_553_706_496}


def test_the_tables_models_are_those_that_are_counted(tmp_path: Path) -> None:
    """The formulas of the tables and the count of a plan agree on Llama 3.2 1B."""
    import torch

    from pipeline.config import ModelSection
    from pipeline.plan.sizes import policy_of
    from tests.pipeline.plan.models import llama

    config = llama(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256,
    )  # fmt: skip
    one = MODELS[0]
    for method, section in {
        "full": ModelSection(),
        "LoRA": ModelSection(use_peft=True),
        "frozen trunk": ModelSection(trainable_layers=4),
    }.items():
        policy, plan = policy_of(config, section, torch.bfloat16), Plan(one, method)
        assert (policy.parameters, policy.trained) == (one.parameters, plan.trained)
        assert policy.frozen_bytes == 2 * plan.stored_frozen
        assert policy.kv_token == one.kv_bytes


def test_a_run_is_warned_of_what_is_above_the_free_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.config import load_experiment

    experiment = load_experiment(tiny, [f"output_dir={tmp_path}"])
    warning.warn(experiment, ["sft", "ppo"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(devices, "free_memory", lambda: 0.25 * devices.GIB)
    warning.warn(experiment, ["sft", "ppo"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(r"warning: (sft|ppo): about 0\.7 GiB while \w+, and 0\.2 GiB are free", line)
    monkeypatch.setattr(warning, "needs_of", lambda *_: 1 / 0)
    warning.warn(experiment, ["sft"])  # an estimate ends no run
    assert capsys.readouterr().err == ""


def test_stages_with_work_are_planned_before_the_first(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.config import load_experiment

    order: list[object] = []
    monkeypatch.setattr(warning, "warn", lambda _, stages: order.append(list(stages)))
    monkeypatch.setattr(runner, "_run_step", lambda _, step: order.append(step.stage))
    folder = folder_of(tmp_path / "model")
    overrides = [f"output_dir={tmp_path / 'run'}", f"model.model_name_or_path={folder}"]
    runner.run(load_experiment(tiny, overrides), "sft")
    assert order == [["sft"], "sft"]
    order.clear()
    runner.run(load_experiment(tiny, overrides[:1]), "sft")
    assert order == ["sft"]  # not for the toy


def test_this_processor_is_timed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.pipeline.stages.test_expected import ENCODER, SPEED, TEXTS, Counter

    monkeypatch.setattr(budget, "counter_of", lambda made: Counter(made, TEXTS, SPEED, ENCODER))
    folder = folder_of(tmp_path / "model")
    words = ["plan", "--config", str(tiny), f"model.model_name_or_path={folder}", "--gpu", "cpu"]
    assert cli.main([*words, "--json", "ppo.total_episodes=128"]) == 0
    plan = json.loads(capsys.readouterr().out)
    rates = {stage["stage"]: stage["tokens_per_second"] for stage in plan["stages"]}
    from pipeline.config import load_experiment

    experiment = load_experiment(tiny, [*words[3:4], "ppo.total_episodes=128"])
    seconds = Counter(experiment, TEXTS, SPEED, ENCODER).seconds("ppo")
    assert rates["ppo"] == pytest.approx(128 * 20 / seconds, rel=0.01)
    assert rates["compare"] is None
