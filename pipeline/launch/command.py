"""Runs the stages of a command one after another, each in as many processes as it is made for.

A stage with a Trainer is started through accelerate on every machine; what runs in one process (the
reward, the comparison, the report) is started on machine 0 while the others wait. Nothing of a
stage stays here, so a stage's memory is free when the next begins.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import psutil

from common.progress import say
from common.words import clock
from pipeline import launched, runner
from pipeline.config import Experiment
from pipeline.config.hub import pushes
from pipeline.errors import UserError
from pipeline.launch.agent import UNTOLD
from pipeline.launch.children import INTERRUPTED, LOST, MISTAKE, RESUME, by_signal, start, stop
from pipeline.launch.machines import LostMachine, Machines
from pipeline.launch.settings import ANY_PORT, Launch, ports

_AGENT = "pipeline.launch.agent"
_PAUSE = 0.1
_REPORT, _PUSH = "report", "push"
_LATE = 10.0
"""Seconds that machines give each other to say how a run ended."""
_UNCLEAR = (UNTOLD, INTERRUPTED)
"""Exit codes whose reason may be on another machine."""


@dataclass(frozen=True)
class Job:
    """One command for every machine.

    Attributes:
        command: a stage, the report or push. several: whether accelerate starts it, on all
            machines.
    """

    command: str
    several: bool


def launch(
    experiment: Experiment, command: str, settings: Launch, words: Sequence[str], overwrite: bool
) -> int:
    """Run ``command`` and return its exit code; 75 where the same command is to be run again.

    Args:
        words: what stands behind the command: config, settings.

    Raises:
        UserError: it is refused, or nothing can be started, before any work.
    """
    start_time, machines = time.monotonic(), None
    try:
        machines = Machines(settings)
        with _interface(settings):
            code = _run_all(machines, experiment, command, words, overwrite)
    except LostMachine as lost:
        say(f"error: {lost}; {RESUME}{' on every machine' if machines else ''}")
        return LOST
    if code == 0 and command == "run" and settings.rank == 0:
        say(f"all stages done in {clock(time.monotonic() - start_time)}")
    return code


def _run_all(
    machines: Machines, experiment: Experiment, command: str, words: Sequence[str], overwrite: bool
) -> int:
    """Every job in turn. Machine 0 decides on them; the others do what it says."""
    if machines.launch.rank > 0:
        return _follow(machines, words, command)
    code = MISTAKE
    number = 0
    try:
        with machines.busy():  # large data may be read for minutes
            planned = jobs(experiment, command, machines.launch.processes, overwrite)
        for job in planned:
            machines.tell(f"job/{number}", json.dumps(asdict(job)))
            code = _run_job(machines, number, job, words, command)
            number += 1
            if code != 0:
                return code
        code = 0
        return code
    finally:
        machines.tell(f"job/{number}", json.dumps({"code": code}))
        _linger(machines)


def _follow(machines: Machines, words: Sequence[str], command: str) -> int:
    """What machine 0 says, until it says that this is all."""
    code = number = 0
    while code == 0:
        while (told := machines.told(f"job/{number}")) is None:
            machines.look()
            time.sleep(_PAUSE)
        said = json.loads(told)
        if "code" in said:
            code = int(said["code"])
            if code == MISTAKE:
                say("error: machine 0 has refused the command; see what it says")
            break
        code = _run_job(machines, number, Job(**said), words, command)
        number += 1
    _linger(machines)
    return code


def jobs(experiment: Experiment, command: str, processes: int, overwrite: bool) -> list[Job]:
    """What is to be run for ``command``, in order; outputs to be replaced are removed.

    Raises:
        UserError: the command runs in one process, or is refused.
    """
    if command != "run" and (command == _REPORT or experiment.stage(command).alone):
        raise UserError(f"{command}: runs in one process; leave --accelerate out")
    with as_one_of(processes):
        steps = runner.ready(experiment, command, overwrite)
    made = []
    for step in steps:
        several = not experiment.stage(step.stage).alone
        if step.action == "skip":
            say(f"{step.stage}: finished already, skipped")
            continue
        made.append(Job(step.stage, several and not _is_taken_over(experiment, step.stage)))
    if command == "run":
        last = [_REPORT, *([_PUSH] if pushes(experiment) else [])]
        made += [Job(name, several=False) for name in last]
    return made


def _is_taken_over(experiment: Experiment, stage: str) -> bool:
    return stage == "sft" and experiment.sft.skip


@contextmanager
def as_one_of(processes: int) -> Iterator[None]:
    """See settings and records as one of so many processes does."""
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(processes)
    try:
        yield
    finally:
        del os.environ["WORLD_SIZE"]
        if before is not None:
            os.environ["WORLD_SIZE"] = before


# --- One job ------------------------------------------------------------------------------------


def _run_job(machines: Machines, number: int, job: Job, words: Sequence[str], command: str) -> int:
    """Run a part of ``command`` on every machine; the exit code that this one ends with."""
    launch, child, code = machines.launch, None, None
    about = launched.told(command, launch.processes)
    if job.several:
        child = start(_AGENT, accelerate_words(launch, ["pipeline", job.command, *words]), about)
    elif launch.rank == 0:
        child = start("pipeline", [job.command, *words], about)
    ended = 0.0
    try:
        while True:
            if code is None:
                code = 0 if child is None else _ended(job, child.poll())
                if code is not None:
                    ended = time.monotonic()
                    machines.tell(_end(number, launch.rank), str(code))
            others = _ends(machines, number)
            if code is None and any(others.values()) and child is not None:
                stop(child)
            if code is not None and _settled(code, others, launch.machines, ended):
                return _agreed(code, others)
            machines.look()
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        with suppress(LostMachine):
            machines.tell(_end(number, launch.rank), str(INTERRUPTED))
        raise
    finally:
        if child is not None:
            stop(child)


def _ended(job: Job, code: int | None) -> int | None:
    """The exit code of a child, told where a signal has ended it."""
    if code is None or code >= 0:
        return code
    if code == -signal.SIGTERM:
        return INTERRUPTED
    say(f"error: {job.command} {by_signal(code)}; {RESUME}")
    return LOST


def _end(number: int, rank: int) -> str:
    return f"end/{number}/{rank}"


def _ends(machines: Machines, number: int) -> dict[int, int]:
    """How the job ended on the other machines where it has."""
    launch = machines.launch
    others = [rank for rank in range(launch.machines) if rank != launch.rank]
    told = {rank: machines.told(_end(number, rank)) for rank in others}
    return {rank: int(end) for rank, end in told.items() if end is not None}


def _settled(code: int, others: dict[int, int], machines: int, ended: float) -> bool:
    """Whether there is nothing to wait for: all have ended, or this one failed for itself."""
    if len(others) == machines - 1 or code not in (0, *_UNCLEAR):
        return True
    return code in _UNCLEAR and time.monotonic() - ended > _LATE


def _agreed(code: int, others: dict[int, int]) -> int:
    """The exit code of the run, told where its reason is on no or another machine."""
    if code not in (0, *_UNCLEAR):
        return code  # and was told
    reasons = {rank: end for rank, end in others.items() if end not in (0, *_UNCLEAR)}
    if reasons:
        rank, code = min(reasons.items())
        how = RESUME if code == LOST else "see what it says"
        say(f"error: machine {rank} ended with exit code {code}; {how}")
        return code
    ends = {code, *others.values()}
    if INTERRUPTED in ends:
        say(f"interrupted; {RESUME}")
        return INTERRUPTED
    if ends == {0}:
        return 0
    say(f"error: another process of this run ended or no longer answers; {RESUME}")
    return LOST


def accelerate_words(settings: Launch, command: Sequence[str]) -> list[str]:
    """The words of `accelerate launch` for ``command``, a module and its arguments."""
    port = settings.port if settings.port == ANY_PORT else ports(settings)[-1]
    words = ["--config_file", str(settings.file), "--num_processes", str(settings.processes)]
    words += ["--num_machines", str(settings.machines), "--machine_rank", str(settings.rank)]
    words += ["--main_process_port", str(port), "--rdzv_backend", "static", "--same_network"]
    if settings.machines > 1:
        words += ["--main_process_ip", str(settings.address)]
    return [*words, "--module", *command]


@contextmanager
def _interface(settings: Launch) -> Iterator[None]:
    """Tell gloo which network the other machines are in.

    It would take the one of this machine's name, which on many systems is the loopback.
    """
    name = "GLOO_SOCKET_IFNAME"
    if settings.machines == 1 or name in os.environ:
        yield
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, suppress(OSError):
        one.connect((str(settings.address), settings.port))  # sends nothing
        own = one.getsockname()[0]
        for interface, addresses in psutil.net_if_addrs().items():
            if own in (address.address for address in addresses):
                os.environ[name] = interface
    yield


def _linger(machines: Machines) -> None:
    """Machine 0 keeps the store until the others have read how it ended."""
    launch = machines.launch
    deadline = time.monotonic() + _LATE
    with suppress(LostMachine):
        machines.tell(f"bye/{launch.rank}", "")
        while launch.rank == 0 and time.monotonic() < deadline:
            if all(machines.told(f"bye/{r}") is not None for r in range(1, launch.machines)):
                return
            time.sleep(_PAUSE)
