"""Every mistake about a launch is one line, before anything starts."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import cli
from pipeline.errors import UserError
from pipeline.launch.settings import Launch, add_options, ports, read_settings
from tests.checkout import ROOT

CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
DDP, FSDP = (ROOT / "configs" / "accelerate" / name for name in ("ddp-cpu.yaml", "fsdp2-cpu.yaml"))


def read(*words: str) -> Launch | None:
    """The settings of a command line."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_settings(parser.parse_args(words))


def changed(tmp_path: Path, base: Path = DDP, **values: Any) -> str:
    """A config of accelerate like ``base``; None takes a key away."""
    config = yaml.safe_load(base.read_text()) | values
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    launch = read("--accelerate", str(path))
    assert launch is not None
    assert launch.processes == (2 if path.stem.endswith("cpu") else 8)
    assert launch.splitter == ("FSDP" if "fsdp" in path.stem else "")
    text = path.read_text()
    assert f"--accelerate configs/accelerate/{path.name}" in text


def test_options_go_before_the_file(tmp_path: Path) -> None:
    words = ["--num-processes", "6", "--num_machines", "3", "--machine-rank", "2"]
    words += ["--main-process-ip", "10.0.0.1", "--main-process-port", "29611"]
    launch = read("--accelerate", str(DDP), *words)
    assert launch == Launch(DDP, 6, 3, 2, "10.0.0.1", 29611)
    assert launch is not None and launch.here == 2 and ports(launch) == [29611, 29612]
    assert read() is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"distributed_type": None}, "no distributed_type, so it is no config of accelerate"),
        ({"distributed_type": "NO"}, "leave --accelerate out"),
        ({"distributed_type": "DEEPSPEED"}, "FSDP splits weights"),
        ({"distributed_type": "XLA"}, "XLA is not started from here; set MULTI_GPU or FSDP"),
        (
            {"num_proceses": 2},
            "num_proceses: no setting of accelerate's; did you mean num_",
        ),
        ({"num_processes": "two"}, "num_processes: expected a number from 1 up, got 'two'"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "compute_environment: only LOCAL_MACHINE"),
        ({"fsdp_config": {"fsdp_version": 2}}, "does nothing with distributed_type: MULTI_GPU"),
    ],
)
def test_a_wrong_file(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    path = changed(tmp_path, **values)
    with pytest.raises(UserError) as told:
        read("--accelerate", path)
    assert expected in str(told.value) and path in str(told.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"fsdp_version": 1}, "fsdp_version: expected 2"),
        ({"fsdp_cpu_ram_efficient_loading": True}, "expected false"),
        (
            {"fsdp_reshard_after_foward": True},
            "did you mean fsdp_config.fsdp_reshard_after_fo",
        ),
        ({"fsdp_sharding_strategy": "FULL_SHARD"}, "is FSDP 1's and does nothing"),
    ],
)
def test_a_wrong_fsdp_setting(tmp_path: Path, values: dict[str, object], expected: str) -> None:
    section = yaml.safe_load(FSDP.read_text())["fsdp_config"] | values
    with pytest.raises(UserError, match=expected):
        read("--accelerate", changed(tmp_path, FSDP, fsdp_config=section))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num-processes", "3", "--num-machines", "2"], "3 do not go evenly on 2 machines"),
        (["--num-processes", "0"], "--num-processes: expected a number from 1 up"),
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank: 2 is none of 2 machines"),
        (["--num-machines", "2"], "--main-process-ip: missing"),
        (["--main-process-port", "70000"], "--main-process-port: expected 0 to 65534"),
    ],
)
def test_options_that_do_not_fit(words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read("--accelerate", str(DDP), *words)


def test_an_option_without_accelerate() -> None:
    with pytest.raises(UserError, match="--num-processes: is for --accelerate FILE"):
        read("--num-processes", "2")


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match="none.yaml: no such file"):
        read("--accelerate", "none.yaml")


def test_within_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started already"):
        read("--accelerate", str(DDP))


def test_a_port_in_use() -> None:
    with socket.socket() as one:
        one.bind(("", 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(UserError, match=f"--main-process-port: {port} cannot be used"):
            read("--accelerate", str(DDP), "--main-process-port", str(port))


@pytest.mark.parametrize(("gpus", "refused"), [(1, True), (2, False), (0, False)])
def test_more_processes_than_gpus(
    gpus: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    if not refused:
        assert read("--accelerate", str(DDP))
        return
    with pytest.raises(UserError, match="2 processes on this machine, which has 1 GPU; set 1"):
        read("--accelerate", str(DDP))


@pytest.mark.parametrize("command", ["reward", "compare", "report", "data"])
def test_what_runs_in_one_process(
    command: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--config", str(tiny), f"output_dir={tmp_path}", "--accelerate", str(DDP)]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said == f"error: {command}: runs in one process; leave --accelerate out\n"


@pytest.mark.parametrize("command", ["run", "report", "reward"])
def test_several_processes_of_what_runs_in_one(
    command: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As torchrun would start them: they would all do the same, or wait half an hour."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([command, "--config", str(tiny), f"output_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
