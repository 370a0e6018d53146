"""Stages run once for the same inputs, resume, refuse, and never overwrite. With fake stages."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from pipeline import cli, runner
from pipeline.config import Experiment, load_experiment, stages
from pipeline.config.stages import stage_names
from pipeline.errors import UserError
from pipeline.provenance import downstream, fingerprint, stage_inputs

Load = Callable[..., Experiment]
STAGES = stage_names()


class Fakes:
    """Stages that write one file and note that they ran; ``fail`` maps a stage to an exception."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fail: dict[str, BaseException] = {}

    def function(self, stage: str) -> Callable[[Experiment], None]:
        def run(experiment: Experiment) -> None:
            self.ran.append(stage)
            folder = experiment.stage_dir(stage)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "output").write_text(f"{stage} {experiment.seed}", encoding="utf-8")
            if stage in self.fail:
                raise self.fail.pop(stage)

        return run

    def take(self) -> list[str]:
        """The stages run since the last call."""
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    monkeypatch.setattr(runner, "stage_function", fakes.function)
    monkeypatch.setattr(runner, "check_ahead", lambda *_: None)  # there are no stages to read data
    monkeypatch.setattr(runner, "free_memory", lambda: None)  # nothing to free, and it takes time
    return fakes


@pytest.fixture
def load(tiny: Path, tmp_path: Path) -> Load:
    def load(*overrides: str) -> Experiment:
        return load_experiment(tiny, [f"output_dir={tmp_path / 'out'}", *overrides])

    return load


def record(experiment: Experiment, stage: str) -> dict[str, Any]:
    return json.loads((experiment.stage_dir(stage) / "stage.json").read_text(encoding="utf-8"))


def refusal(experiment: Experiment, command: str, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        runner.run(experiment, command, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_run_then_skip(fakes: Fakes, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(load(), "run")
    assert fakes.take() == [*STAGES, "report"]
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("all stages done in ") and "GiB" in line for line in lines)
    runner.run(load(), "run")
    assert fakes.take() == ["report"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:5] == [f"{stage}: finished already, skipped" for stage in STAGES]


def test_record(fakes: Fakes, load: Load) -> None:
    experiment = load()
    runner.run(experiment, "sft")
    kept = record(experiment, "sft")
    assert (kept["stage"], kept["status"], kept["seed"]) == ("sft", "finished", 0)
    assert kept["versions"]["torch"] and kept["versions"]["trl"] and kept["versions"]["python"]
    assert kept["platform"] and "git" in kept
    assert kept["config"]["model"]["model_name_or_path"] == "toy"
    assert kept["config"]["sft"]["learning_rate"] == 3e-3
    assert kept["seconds"] >= 0 and 0.01 < kept["peak_memory_gib"] < 64
    assert kept["fingerprint"] == fingerprint(stage_inputs(experiment)["sft"])


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_stage_is_resumed(fakes: Fakes, load: Load, stage: str) -> None:
    fakes.fail[stage] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runner.run(load(), "run")
    assert record(load(), stage)["status"] == "started"
    fakes.take()
    runner.run(load(), "run")
    assert fakes.take() == [*STAGES[STAGES.index(stage) :], "report"]
    assert record(load(), stage)["status"] == "finished"


def test_other_config_is_refused_before_any_work(fakes: Fakes, load: Load) -> None:
    runner.run(load(), "run")
    fakes.take()
    before = record(load(), "ppo")
    message = refusal(load("ppo.learning_rate=5e-3"), "run")
    assert str(load().stage_dir("ppo")) in message
    assert "ppo.learning_rate = 0.001, the config now has 0.005" in message
    assert "--overwrite to remove and redo ppo, compare" in message
    assert fakes.take() == []
    assert record(load(), "ppo") == before


def test_overwrite_redoes_what_differs_and_what_follows(fakes: Fakes, load: Load) -> None:
    runner.run(load(), "run")
    leftover = load().stage_dir("ppo") / "leftover"
    leftover.touch()
    fakes.take()
    runner.run(load("ppo.learning_rate=5e-3"), "run", overwrite=True)
    assert fakes.take() == ["ppo", "compare", "report"]
    assert not leftover.exists()


def test_overwrite_of_one_stage(fakes: Fakes, load: Load) -> None:
    runner.run(load(), "run")
    fakes.take()
    runner.run(load(), "reward", overwrite=True)
    assert fakes.take() == ["reward"]
    left = {stage for stage in STAGES if load().stage_dir(stage).exists()}
    assert left == {"sft", "reward"}


def test_what_a_stage_builds_on_is_done_first(
    fakes: Fakes, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(load(), "ppo")
    assert fakes.take() == ["sft", "reward", "ppo"]
    told = capsys.readouterr().err
    assert "ppo: builds on sft and reward, not finished yet: done first (sft.skip=true" in told
    runner.run(load(), "dpo")
    assert fakes.take() == ["dpo"]
    assert "builds on" not in capsys.readouterr().err
    assert "an earlier sft" in refusal(load("sft.learning_rate=1"), "ppo")
    assert "nothing to report" in refusal(load(), "report")


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", set(STAGES)),
        ("model.trainable_layers=1", {"sft", "ppo", "dpo", "compare"}),
        ("model.policy_modules=[v_proj]", {"ppo", "dpo", "compare"}),
        ("data.heldout=31", set(STAGES)),
        ("reward.num_train_epochs=3", {"reward", "ppo", "dpo", "compare"}),
        ("generation.max_new_tokens=9", {"ppo", "dpo", "compare"}),
        ("beta=2", {"ppo", "dpo", "compare"}),
        ("ppo.lam=0.9", {"ppo", "compare"}),
        ("pairs.hard_labels=true", {"dpo", "compare"}),
        ("pairs.hard_labels=false", set()),
        ("pairs.labels=soft", {"dpo", "compare"}),
        ("pairs.samples_per_prompt=3", {"dpo", "compare"}),
        ("compare.bootstrap=99", {"compare"}),
        ("data.preferences_name=pairs.jsonl", {"dpo", "compare"}),
        ("data.train_prompts=48", {"ppo", "dpo", "compare"}),
        ("data.positive_above=0.5", {"reward", "ppo", "dpo", "compare"}),
        ("sft.skip=true", {"sft", "ppo", "dpo", "compare"}),
        ("ppo.save_value_head=true", {"ppo", "compare"}),
        ("ppo.push_to_hub=true", set()),
        ("sft.hub_model_id=me/mine", set()),
        ("report.push_to_hub=true", set()),
        ("tracking.log_samples=1", set()),
        ("name=other", set()),
        ("output_dir=other", set()),
        ("beta=1", set()),
    ],
)
def test_what_a_setting_affects(load: Load, override: str, changed: set[str]) -> None:
    before, after = stage_inputs(load()), stage_inputs(load(override))
    assert {s for s in STAGES if fingerprint(before[s]) != fingerprint(after[s])} == changed


# What stages of configs/tiny.yaml kept when its sections were recorded whole and had fewer keys.
RELEASED = json.loads((Path(__file__).parent / "finished_runs.json").read_text(encoding="utf-8"))


def keep_released(experiment: Experiment, run: dict[str, Any], **settings: Any) -> None:
    """Write the stages of a ``run`` of an earlier release, ``settings`` of data put in."""
    config = {**run["config"], "data": {**run["config"]["data"], **settings}}
    for stage, kept in run["stages"].items():
        folder = experiment.stage_dir(stage)
        folder.mkdir(parents=True)
        written = {"stage": stage, "status": "finished", "config": config, **kept}
        (folder / "stage.json").write_text(json.dumps(written), encoding="utf-8")


@pytest.mark.parametrize("run", RELEASED)
def test_finished_runs_stay_valid(fakes: Fakes, load: Load, run: dict[str, Any]) -> None:
    experiment = load(*run["overrides"])
    keep_released(experiment, run)
    runner.run(experiment, "run")
    assert fakes.take() == ["report"]
    other = load(*run["overrides"], "data.heldout=31")
    assert "data.heldout = 32, the config now has 31" in refusal(other, "run")
    assert "ppo.lam = 0.95" in refusal(load(*run["overrides"], "ppo.lam=0.5"), "run")


def test_a_released_run_of_other_prompts_is_another(fakes: Fakes, load: Load) -> None:
    """PPO's record did not hold the data section then, its whole config did."""
    keep_released(load(), RELEASED[0], train_prompts=48)
    runner.run(load(), "sft")
    assert fakes.take() == []
    assert "data.train_prompts = 48, the config now has 64" in refusal(load(), "ppo")


def test_downstream(load: Load) -> None:
    assert downstream(load(), "sft") == ["ppo", "dpo", "compare"]
    assert downstream(load(), "dpo") == ["compare"]
    assert downstream(load(), "compare") == []


def test_a_reward_over_the_sft_model_is_made_again_with_it(fakes: Fakes, load: Load) -> None:
    over = "reward.encoder=sft"
    assert downstream(load(over), "sft") == ["reward", "ppo", "dpo", "compare"]
    before, after = stage_inputs(load(over)), stage_inputs(load(over, "sft.learning_rate=1e-9"))
    assert fingerprint(before["reward"]) != fingerprint(after["reward"])
    runner.run(load(over), "reward")
    assert fakes.take() == ["sft", "reward"]


def test_content_of_local_files_counts(fakes: Fakes, load: Load, tmp_path: Path) -> None:
    texts, judge = tmp_path / "texts.jsonl", tmp_path / "judge.py"
    texts.write_text("{}", encoding="utf-8")
    judge.write_text("def f(): ...", encoding="utf-8")
    overrides = (f"data.dataset_name={texts}", f"reward.source={judge}:f")
    runner.run(load(*overrides), "run")
    judge.write_text("def f(): return 1", encoding="utf-8")
    assert "another content of the file that reward.source names" in refusal(
        load(*overrides), "run"
    )
    judge.write_text("def f(): ...", encoding="utf-8")
    texts.write_text("{ }", encoding="utf-8")
    assert "data.dataset_name" in refusal(load(*overrides), "run")


def test_files_of_another_origin_are_left_alone(fakes: Fakes, load: Load) -> None:
    folder = load().stage_dir("sft")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    assert "no stage made it" in refusal(load(), "run")
    assert "no stage made it" in refusal(load(), "run", overwrite=True)
    assert (folder / "thesis.tex").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "done", "inputs": {}}'])
def test_broken_record(fakes: Fakes, load: Load, text: str) -> None:
    folder = load().stage_dir("sft")
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(text, encoding="utf-8")
    assert "not a stage record" in refusal(load(), "sft")


def test_two_processes(fakes: Fakes, load: Load) -> None:
    folder = load().output_dir
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"):
        assert "process unknown is working in it" in refusal(load(), "run")
        (folder / ".lock.pid").write_text("4711\n", encoding="utf-8")
        assert "process 4711 is working in it" in refusal(load(), "run")
    assert fakes.take() == []
    runner.run(load(), "sft")
    assert fakes.take() == ["sft"]


HOLD = """
import sys, time
from pathlib import Path
from pipeline import runner
with runner.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_dead_process_holds_nothing(root: Path, fakes: Fakes, load: Load) -> None:
    command = [sys.executable, "-c", HOLD, str(load().output_dir)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert f"process {process.pid} is working in it" in refusal(load(), "run")
        process.kill()
    runner.run(load(), "sft")
    assert fakes.take() == ["sft"]


def test_a_file_system_without_locks_goes_on(
    fakes: Fakes, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    runner.run(load(), "sft")
    assert fakes.take() == ["sft"]


def test_folder_that_cannot_be_written(fakes: Fakes, tmp_path: Path, load: Load) -> None:
    (tmp_path / "out").write_text("a file where the folder should be", encoding="utf-8")
    assert "cannot be written" in refusal(load(), "run")
    assert fakes.take() == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("No space left on device (28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_full_disk_is_one_line(fakes: Fakes, load: Load, error: Exception) -> None:
    fakes.fail["reward"] = error
    assert "the disk is full" in refusal(load(), "run")
    fakes.take()
    runner.run(load(), "run")
    assert fakes.take() == [*STAGES[1:], "report"]


def test_a_bug_is_not_hidden(fakes: Fakes, load: Load) -> None:
    fakes.fail["sft"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        runner.run(load(), "run")


def test_other_ranks_write_nothing(
    fakes: Fakes, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    runner.run(load(), "sft")
    assert fakes.take() == ["sft"]
    assert not (load().stage_dir("sft") / "stage.json").exists()
    assert not (load().output_dir / ".lock").exists()
    assert capsys.readouterr().err == ""
    assert "--overwrite" in refusal(load(), "sft", overwrite=True)


def test_free_memory_collects_cycles() -> None:
    cycle = Fakes()
    cycle.ran.append(cycle)  # pyright: ignore[reportArgumentType]
    left = weakref.ref(cycle)
    del cycle
    runner.free_memory()
    assert left() is None


def test_peak_memory_is_this_process_own(root: Path) -> None:
    """A child of a large process begins small; it then keeps its highest, not its present one."""
    code = (
        "from pipeline.output.memory import peak_memory\n"
        "before = peak_memory()\n"
        "block = bytearray(b'x') * 2**28\n"
        "del block\n"
        "print(before, peak_memory() - before)"
    )
    held = bytearray(b"x") * 2**29
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    before, risen = map(float, done.stdout.split())
    assert before < len(held) / 2**30 and 0.2 < risen < 0.4


NEW = """
def run(experiment):
    folder = experiment.stage_dir("throwaway")
    (folder / "output").write_text(f"seed {experiment.seed}", encoding="utf-8")
"""


def test_a_new_stage_is_one_entry_and_one_module(
    load: Load,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "throwaway_stage.py").write_text(NEW, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    new = stages.Stage(
        "throwaway", "throwaway_stage", does="write down the seed", reads=("seed", "beta")
    )
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, new))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "throwaway" in (shown := capsys.readouterr().out) and new.does in shown
    assert [step.stage for step in runner.plan(load(), stages.stage_names())][-1] == "throwaway"
    command = ["throwaway", "--config", str(tiny), f"output_dir={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    assert (load().stage_dir("throwaway") / "output").read_text() == "seed 0"
    assert record(load(), "throwaway")["inputs"]["config"] == {"seed": 0, "beta": 1}
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "throwaway: finished already, skipped" in capsys.readouterr().err


def test_a_new_stage_may_build_on_others(
    fakes: Fakes, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = stages.Stage("throwaway", "none", does="", needs=("dpo",))
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, new))
    assert downstream(load(), "dpo") == ["compare", "throwaway"]
    runner.run(load(), "throwaway")
    assert fakes.take() == ["sft", "reward", "dpo", "throwaway"]
    runner.run(load(), "run")
    assert fakes.take() == ["ppo", "compare", "report"]


def test_the_table_is_sound() -> None:
    for stage in stages.STAGES:
        before = STAGES[: STAGES.index(stage.name)]
        assert set(stage.needs) <= set(before)
        sections = {key.partition(".")[0] for key in stage.reads}
        assert {"seed"} <= sections <= set(Experiment.model_fields)
        assert callable(runner.stage_function(stage.name))
