"""How a launch ends: exit codes, one line, and machines that notice when another is gone."""

from __future__ import annotations

import _thread
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.launch import agent, command, machines
from pipeline.launch.children import INTERRUPTED, LOST, MISTAKE
from pipeline.launch.command import accelerate_words
from pipeline.launch.machines import LostMachine, Machines
from pipeline.launch.settings import Launch
from tests.checkout import ROOT

FILE = Path("accelerate.yaml")


@pytest.mark.parametrize(
    ("codes", "expected", "told"),
    [
        ({1: -9}, LOST, "process 1 was ended by SIGKILL (memory may have run out)"),
        ({0: -15, 1: -9}, LOST, "process 1 was ended by SIGKILL"),
        ({0: LOST, 1: -6}, LOST, "process 1 was ended by SIGABRT;"),
        ({0: MISTAKE, 1: INTERRUPTED}, MISTAKE, ""),
        ({0: LOST, 1: LOST}, agent.UNTOLD, ""),
        ({0: INTERRUPTED}, INTERRUPTED, ""),
        ({0: LOST, 1: 1}, 1, "process 1 ended with exit code 1; the reason stands above"),
    ],
)
def test_how_processes_ended(
    codes: dict[int, int], expected: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in codes.items()}
    assert agent.ended(failures) == expected
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == bool(told)


@pytest.mark.parametrize(
    ("own", "others", "expected", "told"),
    [
        (0, {1: 0}, 0, ""),
        (MISTAKE, {1: agent.UNTOLD}, MISTAKE, ""),
        (agent.UNTOLD, {1: LOST}, LOST, "machine 1 ended with exit code 75; run the same"),
        (INTERRUPTED, {1: MISTAKE}, MISTAKE, "machine 1 ended with exit code 2; see what it says"),
        (agent.UNTOLD, {1: agent.UNTOLD}, LOST, "another process of this run ended"),
        (0, {1: INTERRUPTED}, INTERRUPTED, "interrupted"),
        (agent.UNTOLD, {}, LOST, "another process of this run ended"),
    ],
)
def test_what_all_machines_agree_on(
    own: int, others: dict[int, int], expected: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command._agreed(own, others) == expected
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == bool(told)


def test_the_words_of_accelerate() -> None:
    """Its own parser takes them, and gives the processes the next port."""
    from accelerate.commands.launch import launch_command_parser

    launch = Launch(FILE, 4, 2, 1, "10.0.0.1", 29511)
    words = accelerate_words(launch, ["pipeline", "ppo", "--config", "c.yaml", "seed=1"])
    parsed = launch_command_parser().parse_args(words)
    assert (parsed.num_processes, parsed.num_machines, parsed.machine_rank) == (4, 2, 1)
    assert (parsed.main_process_ip, parsed.main_process_port) == ("10.0.0.1", 29512)
    assert parsed.module and parsed.training_script == "pipeline"
    assert parsed.training_script_args == ["ppo", "--config", "c.yaml", "seed=1"]
    alone = launch_command_parser().parse_args(accelerate_words(Launch(FILE, 2), ["pipeline"]))
    assert alone.main_process_port == 0  # any


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT interrupts, though a shell that starts the tests by & has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_an_interrupted_launcher_ends_its_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C or SIGTERM; the child has a session of its own, so only the launcher gets it."""
    begun = []

    def start(module: str, words: list[str], told: Any) -> subprocess.Popen[bytes]:
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        begun.append(subprocess.Popen(sleeper, start_new_session=True))
        return begun[0]

    monkeypatch.setattr(command, "start", start)
    timer = threading.Timer(1.0, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        command._run_job(Machines(Launch(FILE, 2)), 0, command.Job("ppo", True), [], "ppo")
    assert begun[0].returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends children on Linux only")
def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """However that ended: the launcher is killed, and no process stays on the GPUs."""
    child = "from pipeline.launch.children import end_with_parent; end_with_parent()\n"
    child += f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    parent = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
    parent += "print(c.pid, flush=True); c.wait()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert started.stdout is not None
    process = psutil.Process(int(started.stdout.readline()))
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    started.kill()
    started.wait()
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def pair() -> list[Machines]:
    """Two machines that have met, on this one."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return [Machines(Launch(FILE, 2, 2, rank, "127.0.0.1", port)) for rank in (0, 1)]


def wait_for(lost: Machines, limit: float = 20.0) -> str:
    """What ``lost`` says when it misses the other."""
    deadline = time.monotonic() + limit
    with pytest.raises(LostMachine) as told:
        while time.monotonic() < deadline:
            lost.look()
            time.sleep(0.02)
    return str(told.value)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "BEAT", 0.05)
    monkeypatch.setattr(machines, "SILENCE", 1.0)


def test_a_silent_machine_is_missed(quick: None) -> None:
    first, second = pair()
    for _ in range(40):
        first.look()
        second.look()
        time.sleep(0.05)  # twice SILENCE in all: whoever speaks is not lost
    second.tell("end/0/1", "0")
    assert first.told("end/0/1") == "0" and first.told("end/0/0") is None
    began = time.monotonic()
    assert "machine 1 no longer answers" in wait_for(first)
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("heeded")
def test_waiting_for_the_first_machine_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    monkeypatch.setattr(machines, "_TRY", timedelta(seconds=1))
    importlib.import_module("torch.distributed")  # which must not be interrupted
    began = time.monotonic()
    threading.Timer(0.5, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        Machines(Launch(FILE, 2, 2, 1, "127.0.0.1", port))
    assert time.monotonic() - began < 60


def test_a_first_machine_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_ANSWER", timedelta(seconds=1))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(UserError, match="--main-process-ip: no-such-host: this machine 0 does not"):
        Machines(Launch(FILE, 2, 2, 0, "no-such-host", port))


def test_a_first_machine_that_is_gone_is_missed(quick: None) -> None:
    first, second = pair()
    second.look()
    del first._store
    assert "machine 0 no longer answers" in wait_for(second)


def test_machines_run_the_same_jobs(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """Machine 0 decides; a stage in one process runs there alone; the first failure ends all."""
    ran: list[tuple[int, str]] = []
    codes = {"sft": 0, "reward": 0, "ppo": LOST, "compare": 0}

    class Child:
        def __init__(self, code: int) -> None:
            self.code = code

        def poll(self) -> int:
            return self.code

    def start(rank: int) -> Any:
        def started(module: str, words: list[str]) -> Child:
            name = next(word for word in words if word in codes)
            ran.append((rank, name))
            return Child(codes[name] if rank == 0 else agent.UNTOLD if codes[name] else 0)

        return started

    monkeypatch.setattr(machines, "SILENCE", 2.0)

    def planned(*_: Any) -> list[command.Job]:
        time.sleep(3.0)  # as large data are read; it is not lost
        return [command.Job(name, name in ("sft", "ppo")) for name in codes]

    monkeypatch.setattr(command, "jobs", planned)
    both, ends = pair(), {}

    def follow(one: Machines) -> None:
        ends[one.launch.rank] = command._run_all(one, None, "run", [], False)  # type: ignore

    by_thread: dict[int | None, int] = {}
    monkeypatch.setattr(
        command,
        "start",
        lambda module, words, told: start(by_thread[threading.get_ident()])(module, words),
    )

    def as_machine(one: Machines) -> None:
        by_thread[threading.get_ident()] = one.launch.rank
        follow(one)

    threads = [threading.Thread(target=as_machine, args=(one,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ends == {0: LOST, 1: LOST}
    assert [name for rank, name in ran if rank == 0] == ["sft", "reward", "ppo"]
    assert [name for rank, name in ran if rank == 1] == ["sft", "ppo"]
