"""Two processes train what one does, and a run that loses one of them ends clearly and resumes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from pipeline import cli, runner
from pipeline.errors import UserError
from pipeline.launch.children import LOST
from pipeline.ppo.upkeep import distributed
from pipeline.ppo.upkeep.sharing import uniform_draws

pytestmark = pytest.mark.slow
RUNS = {"ddp": "one", "ddp-tokens": "one", "fsdp": "one", "fsdp-lora": "one-lora"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What distributed_worker.py left of all its cases."""
    return work(tmp_path_factory.mktemp("distributed"))


def work(folder: Path) -> Path:
    worker = Path(__file__).with_name("distributed_worker.py")
    command = [sys.executable, str(worker), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def results(case: Path, rank: int = 0) -> Any:
    return json.loads((case / f"{rank}.json").read_text())


def losses(case: Path) -> list[float]:
    return [log["loss"] for log in results(case)["logs"] if "loss" in log]


@pytest.mark.parametrize("case", RUNS)
def test_two_processes_train_what_one_does(cases: Path, case: str) -> None:
    """Losses of every update to 1e-5, weights to 1e-5, the objective far within seed noise.

    Over the seeds 0 to 4 the evaluation's score after these 12 updates has a deviation of 0.3;
    here it may not move by more than rounding. FSDP's runs also accumulate over two microbatches,
    and two runs learn from so many tokens at once, in several parts a microbatch.
    """
    assert_same(cases / RUNS[case], cases / case)


def assert_same(one: Path, two: Path) -> None:
    assert len(losses(two)) == len(losses(one)) >= 8
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    whole, part = load_file(one / "0.safetensors"), load_file(two / "0.safetensors")
    assert whole.keys() == part.keys()
    for name, value in whole.items():
        assert torch.allclose(part[name], value, rtol=1e-4, atol=1e-5), name
    for name, value in results(one)["evaluation"].items():
        assert results(two)["evaluation"][name] == pytest.approx(value, rel=1e-4), name
    assert results(two)["kl_coef"] == pytest.approx(results(one)["kl_coef"], rel=1e-6)


def test_every_metric_of_a_rollout_is_global(cases: Path) -> None:
    one, two = (
        [log for log in results(cases / case)["logs"] if "objective/kl" in log]
        for case in ("one", "ddp")
    )
    assert len(one) == len(two) == 3
    for before, after in zip(one, two, strict=True):
        for name in before:
            if name.split("/")[0] in ("objective", "policy", "val", "loss"):
                close = pytest.approx(before[name], rel=1e-3, abs=1e-5)
                assert after[name] == close, name


def test_statistics_of_own_rows_alone_would_be_seen(cases: Path) -> None:
    """The control: whitened and scaled by each process's rows, the first loss is another."""
    own = losses(cases / "ddp-own-statistics")
    assert abs(own[0] / losses(cases / "one")[0] - 1) > 0.01


@pytest.mark.parametrize("case", ["ddp", "fsdp"])
def test_all_processes_agree(cases: Path, case: str) -> None:
    first, second = results(cases / case), results(cases / case, rank=1)
    assert first["kl_coef"] == second["kl_coef"]
    assert first["evaluation"] == second["evaluation"]
    a, b = (load_file(cases / case / f"{rank}.safetensors") for rank in (0, 1))
    shared = [name for name in a if name.startswith("value.")] if case == "fsdp" else list(a)
    for name in shared:
        assert torch.equal(a[name], b[name]), name


def test_fsdp_splits_the_policy_and_leaves_the_value_head_whole_in_float32(cases: Path) -> None:
    for case in ("fsdp", "fsdp-lora"):
        assert results(cases / case)["split"] > 30
        assert results(cases / case)["head"] == "torch.float32"
    assert results(cases / "fsdp")["trunk"]  # the frozen trunk is cached there too
    assert results(cases / "ddp")["split"] == 0


def test_an_fsdp_run_resumes_as_if_it_had_not_stopped(cases: Path) -> None:
    assert losses(cases / "fsdp-again") == losses(cases / "fsdp")[8:]
    whole = load_file(cases / "fsdp" / "0.safetensors")
    again = load_file(cases / "fsdp-again" / "0.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [("ddp", "ddp-alone", 8), ("fsdp", "fsdp-four", 8), ("fsdp-lora", "fsdp-lora-alone", 4)],
)
def test_a_run_goes_on_under_another_number_of_processes(
    cases: Path, before: str, after: str, step: int
) -> None:
    """From two to one, to four and to one, with the same batches: whole and split optimizers."""
    expected = losses(cases / before)[step:]
    assert len(expected) == 4
    assert losses(cases / after) == pytest.approx(expected, rel=1e-5)
    # Without the optimizer's state the steps after the first are others.
    assert losses(cases / before)[:4] != pytest.approx(expected, rel=1e-2)


def test_sft_under_fsdp_and_gone_on_in_one_process_is_that_of_one(cases: Path) -> None:
    """Other stages than PPO leave their checkpoints to the Trainer."""
    run = cases / "sft-fsdp" / "run"
    one = load_file(cases / "sft-one" / "run" / "sft" / "model" / "model.safetensors")
    parts = run / "sft" / "checkpoints" / "checkpoint-4" / "pytorch_model_fsdp_0"
    assert len(list(parts.glob("*.distcp"))) == 2
    for folder in (run / "sft-model", run / "sft" / "model"):
        model = load_file(folder / "model.safetensors")
        assert model.keys() == one.keys()
        for name, value in one.items():
            assert torch.allclose(model[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(("file", "under"), [("optimizer.pt", True), ("optimizer.bin", False)])
def test_another_optimizer_is_refused(tmp_path: Path, file: str, under: bool) -> None:
    (tmp_path / file).touch()
    trainer: Any = SimpleNamespace(is_fsdp_enabled=under)
    saved = distributed.as_saved(trainer, tmp_path)
    with pytest.raises(UserError, match="was saved (under|without) FSDP"), saved:
        pass


def test_a_checkpoint_has_the_same_whole_weights_however_they_were_split(cases: Path) -> None:
    one, split = (cases / case / "run" / "checkpoint-8" for case in ("one", "fsdp"))
    for name in ("model.safetensors", "value_head.safetensors"):
        expected, whole = load_file(one / name), load_file(split / name)
        assert expected.keys() == whole.keys()
        for key, value in expected.items():
            assert torch.allclose(whole[key], value, rtol=1e-4, atol=1e-5), key
    own = {path.name for path in split.iterdir()} - {path.name for path in one.iterdir()}
    # A file of its own is written by each process for its random numbers, and by no other.
    assert own <= {"optimizer.bin", "rng_state_0.pth", "rng_state_1.pth"}


def test_a_mistake_of_all_processes_is_told_once(cases: Path) -> None:
    assert (cases / "fail" / "said").read_text() == "error: the same mistake\n"


def test_draws_belong_to_rows_and_equal_one_process_sampling_them_all() -> None:
    lengths = [5, 2, 7, 2, 9, 3]
    everyone = uniform_draws(lengths, range(6), steps=4, seed=3)
    parts = [uniform_draws(lengths, rows, steps=4, seed=3) for rows in (range(3), range(3, 6))]
    assert torch.equal(everyone, torch.cat(parts))
    torch.manual_seed(3)  # as `sample` does: rows in order of length, a column a step
    columns = torch.cat([torch.rand(6, 1) for _ in range(4)], 1)
    assert torch.equal(everyone[[1, 3, 5, 0, 2, 4]], columns)


@pytest.mark.parametrize("name", ["ddp", "ddp-cpu", "fsdp2", "fsdp2-cpu"])
def test_accelerate_configs_load(root: Path, name: str) -> None:
    config: Any = load_config_from_file(str(root / "configs" / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == (2 if name.endswith("cpu") else 8)
    assert config.distributed_type.value == ("FSDP" if "fsdp" in name else "MULTI_GPU")


def test_a_lost_process_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]")
    assert not runner._process_is_lost(gloo)  # alone there is nobody to lose
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert runner._process_is_lost(gloo)
    assert not runner._process_is_lost(RuntimeError("shape mismatch"))


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A folder with the tiny SFT and reward models, and the arguments of its PPO stage."""
    folder = tmp_path_factory.mktemp("tiny")
    arguments = ["--config", str(root / "configs" / "tiny.yaml"), f"output_dir={folder}"]
    arguments += ["reward.num_train_epochs=1", "ppo.per_device_train_batch_size=8"]
    arguments += ["ppo.total_episodes=320"]
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["sft", *arguments]) == cli.main(["reward", *arguments]) == 0
    signal.signal(signal.SIGTERM, before)
    yield SimpleNamespace(root=root, folder=folder, arguments=arguments)


def launch(prepared: SimpleNamespace, errors: Path) -> subprocess.Popen:
    config = prepared.root / "configs" / "accelerate" / "ddp-cpu.yaml"
    command = [sys.executable, "-m", "pipeline", "ppo", *prepared.arguments]
    command += ["--accelerate", str(config)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors.open("w"))


def rank_one(launcher: int) -> psutil.Process:
    workers = psutil.Process(launcher).children(recursive=True)
    return next(w for w in workers if w.environ().get("RANK") == "1")


@pytest.mark.long
def test_a_killed_rank_ends_the_job_and_it_goes_on_in_one_process(
    prepared: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = tmp_path / "stderr"
    job = launch(prepared, errors)
    checkpoints = prepared.folder / "ppo" / "checkpoints"
    while not list(checkpoints.glob("*/complete.json")):
        assert job.poll() is None, errors.read_text()
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    rank_one(job.pid).send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert job.wait(timeout=60) == LOST
    assert time.monotonic() - began < 30
    told = [line for line in errors.read_text().splitlines() if "error" in line.lower()]
    assert told == [
        "error: process 1 was ended by SIGKILL (memory may have run out); run the same command to"
        " resume"
    ]
    assert not any(child.is_running() for child in family)
    record = json.loads((prepared.folder / "ppo" / "stage.json").read_text())
    assert record["status"] == "started" and record["processes"] == 2
    assert not (prepared.folder / "ppo" / "model").exists()

    capsys.readouterr()
    assert cli.main(["ppo", *prepared.arguments]) == 2  # half the batch
    said = capsys.readouterr().err
    assert "set ppo.per_device_train_batch_size=16 ppo.gradient_accumulation_steps=1" in said
    whole = "ppo.per_device_train_batch_size=16"
    assert cli.main(["ppo", *prepared.arguments, whole]) == 0
    assert capsys.readouterr().err.count("ppo: resuming") == 1
    record = json.loads((prepared.folder / "ppo" / "stage.json").read_text())
    assert record["status"] == "finished" and record["processes"] == 1
    rows = (prepared.folder / "ppo" / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, rows) if "loss" in row]
    assert steps == list(range(4, 41, 4))
    assert (prepared.folder / "ppo" / "model" / "model.safetensors").is_file()
    assert cli.main(["ppo", *prepared.arguments, whole]) == 0
    assert "finished already, skipped" in capsys.readouterr().err
