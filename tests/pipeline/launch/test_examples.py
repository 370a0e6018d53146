"""The SLURM and Kubernetes examples: what they start is read by the command line's own parser."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from pipeline.config import load_experiment
from pipeline.launch.children import LOST, MISTAKE
from pipeline.launch.settings import Launch, ports, read_settings
from tests.checkout import ROOT

SLURM = ROOT / "scripts" / "slurm.sh"
KUBERNETES = ROOT / "scripts" / "kubernetes.yaml"


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[argparse.Namespace, Launch]:
    """What `rlhf` makes of the words, on a machine without GPUs whose ports are free."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("pipeline.launch.settings._check_ports", lambda launch: None)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    options = cli._parser().parse_intermixed_args(words)
    assert options.command == "run"
    load_experiment(options.config, options.overrides)
    launch = read_settings(options)
    assert launch is not None
    return options, launch


# --- SLURM ----------------------------------------------------------------------------------------

STUBS = {
    # What SLURM gives each task, and the highest exit code of them.
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        pids=(); code=0
        for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
        for pid in "${pids[@]}"; do wait "$pid"; c=$?; ((c > code)) && code=$c; done
        exit $code""",
    "scontrol": """
        [[ $1 == show ]] && printf 'node-a\\nnode-b\\n' || echo "$@" >> "$DONE/scontrol\"""",
    "scancel": """
        echo "$@" >> "$DONE/scancel"; kill -TERM $(cat "$DONE"/pid-*)""",
    "rlhf": """
        trap 'exit 130' TERM
        printf '%s\\n' "$@" > "$DONE/words-$SLURM_NODEID"
        echo $$ > "$DONE/pid-$SLURM_NODEID"
        [[ $ENDS == never ]] && { sleep 60 & wait $!; }
        exit "$ENDS\"""",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two machines, with stand-ins for SLURM's commands."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    for name, body in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body.strip()}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2"}
    job |= {"DONE": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    return os.environ | job


def test_slurm_starts_one_launcher_a_machine(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bash", str(SLURM), "output_dir=runs/elsewhere"]
    assert subprocess.run(command, env=cluster | {"ENDS": "0"}, timeout=60).returncode == 0
    for rank in (0, 1):
        words = (tmp_path / f"words-{rank}").read_text().splitlines()
        options, launch = parsed(words, monkeypatch)
        assert options.overrides == ["output_dir=runs/elsewhere"]
        assert (launch.machines, launch.rank, launch.here) == (2, rank, 8)
        assert (launch.address, launch.port) == ("node-a", 24242)
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(LOST, 0, True), (LOST, 20, False), (MISTAKE, 0, False)]
)
def test_slurm_puts_back_what_would_resume(
    code: int, restarts: int, again: bool, cluster: dict[str, str], tmp_path: Path
) -> None:
    environment = cluster | {"ENDS": str(code), "SLURM_RESTART_COUNT": str(restarts)}
    assert subprocess.run(["bash", str(SLURM)], env=environment, timeout=60).returncode == code
    asked = tmp_path / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 4242\n" if again else "")


def test_slurm_ends_and_requeues_before_its_time_is_over(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    job = subprocess.Popen(["bash", str(SLURM)], env=cluster | {"ENDS": "never"})
    deadline = time.monotonic() + 30
    while len([p for p in tmp_path.glob("pid-*") if p.read_text().strip()]) < 2:
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 130
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 4242\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 4242\n"


def test_slurm_asks_for_what_it_starts() -> None:
    lines = [line.split() for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    words = [line[1].lstrip("-").partition("=") for line in lines]
    asked = {name: value for name, _, value in words}
    assert asked["nodes"] == "2" and asked["ntasks-per-node"] == "1"
    assert asked["gpus-per-node"] == "8"
    assert asked["signal"].startswith("B:USR1@") and "requeue" in asked


# --- Kubernetes -----------------------------------------------------------------------------------


def test_kubernetes_starts_as_many_machines_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    documents: list[Any] = list(yaml.safe_load_all(KUBERNETES.read_text()))
    service, job = documents
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    program, *words = [*container["command"], *container["args"]]
    assert program == "rlhf" and spec["completionMode"] == "Indexed"
    for index in range(spec["completions"]):
        own = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in words]
        _, launch = parsed(own, monkeypatch)
        assert launch.machines == spec["completions"] == spec["parallelism"]
        assert (launch.rank, launch.here) == (index, gpus)
        # A pod's name is the job's and its number, behind the service's.
        name = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
        assert launch.address == name and pod["subdomain"] == service["metadata"]["name"]
        assert ports(launch) == [port["port"] for port in service["spec"]["ports"]]
        assert ports(launch) == [port["containerPort"] for port in container["ports"]]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None"
    [fails, _] = spec["podFailurePolicy"]["rules"]
    assert fails["action"] == "FailJob" and fails["onExitCodes"]["values"] == [MISTAKE]
    assert fails["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never"  # a policy for failures needs it
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    outputs = [word for word in words if word.startswith("output_dir=")]
    assert outputs and outputs[0].partition("=")[2].startswith(mounts["runs"])
