"""A whole sweep: shared stages, a failed trial, what is repeated, and the same numbers."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import read_json
from pipeline import runner
from pipeline.errors import UserError
from pipeline.sweep import command, spec
from pipeline.sweep.status import Status
from tests.checkout import ROOT
from tests.nursery import Nursery
from tests.pipeline.sweep.told import LAST, SETTINGS, TRIALS, Told, kept, same_numbers, wait_until


def test_shared_stages_are_made_once_and_first(told: Told) -> None:
    assert told.started[0] == ["shared", *TRIALS]
    assert sorted(p.parent.name for p in told.folder.glob("shared/*/stage.json")) == [
        "reward",
        "sft",
    ]
    assert not list(told.folder.glob("trials/*/sft")) + list(told.folder.glob("trials/*/reward"))


def test_a_failed_trial_is_told_and_stops_nothing(told: Told) -> None:
    assert told.codes[0] == 1
    states = {row["trial"]: row["state"] for row in told.first["trials"]}
    assert states == dict.fromkeys(TRIALS, "done") | {LAST: "failed"}
    (failed,) = [row for row in told.first["trials"] if row["state"] == "failed"]
    assert "is working in it" in failed["error"]
    assert f"{LAST} failed" in told.page
    assert "is working in it" in (told.folder / "trials" / LAST / "log.txt").read_text()


def test_the_same_command_repeats_only_what_failed(told: Told) -> None:
    assert told.codes[1:] == [0, 0]
    assert told.started[1:] == [[LAST], []]
    found = read_json(told.folder / "sweep.json")
    assert {row["state"] for row in found["trials"]} == {"done"} and found["done"] == 4


def test_the_reference_is_measured_once_a_seed(told: Told) -> None:
    assert len(kept(told.folder)) == 2
    measured = {
        name: read_json(told.folder / "trials" / name / "compare" / "measured" / "sft.json")
        for name in TRIALS
    }
    assert measured[LAST]["nll"] == 12.5  # copied, with the mark
    assert measured["ppo-b1-s0"] == measured["dpo-b1-s0"]
    assert measured["ppo-b1-s0"]["texts"] != measured["ppo-b1-s1"]["texts"]
    assert measured["ppo-b1-s0"]["prompts"] == measured["ppo-b1-s1"]["prompts"]


def test_a_trial_is_what_an_ordinary_experiment_makes(
    told: Told, nursery: Nursery, tmp_path: Path
) -> None:
    """With SFT and rewards of its own, from the same seed, and no other policy beside it."""
    words = [*told.words[:2], *SETTINGS[1:], f"output_dir={tmp_path / 'own'}", "policies=[ppo]"]
    code = nursery.wait(nursery.start(tmp_path / "log", "rlhf", "run", *words))
    assert code == 0, (tmp_path / "log").read_text()
    own = read_json(tmp_path / "own" / "compare" / "measured" / "ppo.json")
    trial = told.folder / "trials" / "ppo-b1-s0" / "compare" / "measured" / "ppo.json"
    assert read_json(trial) == own


def test_its_config_repeats_it(told: Told, nursery: Nursery, tmp_path: Path) -> None:
    """`rlhf run` with a trial's config finds all of it finished, and adds the report."""
    config = told.folder / "trials" / "ppo-b1-s0" / "config.yaml"
    pid = nursery.start(tmp_path / "log", "rlhf", "run", "--config", str(config))
    text = (tmp_path / "log").read_text() if nursery.wait(pid) == 0 else "failed"
    for stage in ("sft", "reward", "ppo", "compare"):
        assert f"{stage}: finished already, skipped" in text
    assert (config.parent / "report" / "index.html").is_file()


def test_rows_and_pooled_numbers(told: Told) -> None:
    found = read_json(told.folder / "sweep.json")
    with (told.folder / "sweep.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(found["rows"]) == 4 + 2 + 2  # trials, and two beside each seed
    row = next(line for line in lines if line["trial"] == "dpo-b1-s0")
    results = read_json(told.folder / "trials" / "dpo-b1-s0" / "compare" / "results.json")
    assert float(row["reward"]) == results["methods"]["dpo"]["reward"]
    (pooled,) = found["comparisons"]
    assert pooled["seeds"] == {"ppo": [0, 1], "dpo": [0, 1]}
    both = [float(line["reward"]) for line in lines if line["policy"] == "dpo"]
    assert pooled["methods"]["dpo"]["reward"] == pytest.approx(sum(both) / 2)
    assert [p["name"] for p in pooled["policies"]] == ["sft", "ppo", "dpo", "best_of_n"]
    assert len({p["colour"] for p in pooled["policies"]}) == 4


def test_the_page_holds_all_it_needs(told: Told) -> None:
    folder = told.folder / "report"
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<svg" in page and "PPO" in page and "DPO" in page
    assert "src=" not in page and "<script" not in page and "http-equiv" in page
    assert (folder / "reward_kl.png").stat().st_size > 10_000
    assert read_json(folder / "sweep.json") == read_json(told.folder / "sweep.json")


def test_another_config_is_refused_before_any_work(told: Told, tiny: Path) -> None:
    words = [*told.words[2:], "ppo.learning_rate=5e-4"]
    with pytest.raises(UserError, match=r"trials/ppo-b1-s0/ppo: was made with ppo.learning_rate"):
        command.main([*told.words, "ppo.learning_rate=5e-4"])
    status = Status(spec.read(tiny, words))
    removed = status.made_otherwise(overwrite=True)
    assert [folder.name for folder in removed] == ["ppo-b1-s0", "ppo-b1-s1"]
    assert status.done() == {"shared", "dpo-b1-s0", "dpo-b1-s1"}


def test_other_shared_stages_take_their_trials_along(told: Told, tiny: Path) -> None:
    status = Status(spec.read(tiny, [*told.words[2:], "sft.learning_rate=1e-4"]))
    with pytest.raises(UserError, match="shared/sft: was made with sft.learning_rate"):
        status.made_otherwise(overwrite=False)
    removed = [folder.name for folder in status.made_otherwise(overwrite=True)]
    assert removed == ["shared", *TRIALS] and not status.done()


def test_a_shared_folder_of_the_config_must_be_what_it_says(told: Told, tiny: Path) -> None:
    """Before any work, and not trial by trial."""
    own = [*told.words[2:], "output_dir=other", f"shared={told.folder / 'shared'}"]
    assert not Status(spec.read(tiny, own)).made_otherwise(overwrite=False)
    with pytest.raises(UserError, match="set another shared"):
        Status(spec.read(tiny, [*own, "sft.learning_rate=1e-4"]))
    with pytest.raises(UserError, match="sft: is not finished"):
        Status(spec.read(tiny, [*own, "shared=nothing"]))


@pytest.mark.parametrize(
    ("keep", "left"),
    [("all", {"checkpoints", "model"}), ("models", {"model"}), ("numbers", set())],
)
def test_what_is_kept_of_a_finished_trial(
    told: Told, tiny: Path, tmp_path: Path, keep: str, left: set[str]
) -> None:
    """Of a copy, which the numbers still come from, and which is finished as before."""
    shutil.copytree(told.folder / "trials", tmp_path / "s" / "trials")
    words = [*told.words[2:], f"output_dir={tmp_path / 's'}", f"shared={told.folder / 'shared'}"]
    sweep = spec.read(tiny, [*words, f"sweep.keep={keep}"])
    policy = tmp_path / "s" / "trials" / "ppo-b1-s0" / "ppo"
    (policy / "checkpoints").mkdir(exist_ok=True)
    status = Status(sweep)
    assert status.done() == set(TRIALS)
    status.write(status.done())
    assert {name for name in ("checkpoints", "model") if (policy / name).exists()} == left
    assert Status(sweep).done() == set(TRIALS)
    assert read_json(tmp_path / "s" / "sweep.json")["done"] == 4


def test_more_seeds_keep_what_is_there(told: Told, tiny: Path) -> None:
    status = Status(spec.read(tiny, [*told.words[2:], "sweep.seeds=[0,1,2]"]))
    assert not status.made_otherwise(overwrite=False)
    assert status.done() == {"shared", *TRIALS}


def test_one_command_at_a_time(told: Told) -> None:
    with runner.lock(told.folder), pytest.raises(UserError, match="is working in it"):
        command.main(told.words)


def test_the_list_does_nothing(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*told.words, "sweep.seeds=[0,7]", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"finished  {told.folder / 'shared'}"
    assert lines[-1] == f"to do     {told.folder / 'trials' / 'dpo-b1-s7'}"
    assert not (told.folder / "trials" / "dpo-b1-s7").exists()


@pytest.mark.slow
@pytest.mark.long
def test_side_by_side_and_interrupted_it_makes_the_same_numbers(told: Told, tmp_path: Path) -> None:
    """Two at a time in processes of their own, stopped by Ctrl-C while the first two train."""
    folder = tmp_path / "s"
    words = ["sweep", *told.words[:2], f"output_dir={folder}", *SETTINGS, "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(folder.glob("trials/*/*/stage.json"))) >= 2)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "run the same command to resume" in text
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shared/*/stage.json")}
    for name in TRIALS:
        with runner.lock(folder / "trials" / name):  # nobody works on
            pass
    assert command.main([*words[1:]]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    same_numbers(folder, told.folder)
