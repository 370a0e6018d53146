"""What is to be started: the command line's words, and accelerate's own config file.

accelerate reads such a file late and leniently: a setting of `fsdp_config` that it does not know
does nothing, a port in use is replaced. Everything is looked at here, before any process starts.
"""

from __future__ import annotations

import argparse
import difflib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.yamlfile import read_yaml
from pipeline.errors import UserError
from pipeline.output.quiet import verbose

ANY_PORT = 0
USUAL_PORT = 29500
"""Of several machines, which have to know it; torchrun's and accelerate's default too."""
SPLITTERS = {"MULTI_GPU": "", "FSDP": "FSDP"}
"""`distributed_type`s that are started, and what splits the weights there."""
_OTHERS = {
    "NO": "is one process; leave --accelerate out",
    "DEEPSPEED": "is not supported; FSDP splits weights and optimizer state too (fsdp2.yaml)",
}
_FSDP_1 = ("fsdp_sharding_strategy", "fsdp_use_orig_params", "fsdp_forward_prefetch")
_FSDP_1 += ("fsdp_backward_prefetch", "fsdp_sync_module_states")


@dataclass(frozen=True)
class Launch:
    """What `--accelerate` starts.

    Attributes:
        file: accelerate's config. processes: over all machines. machines: how many.
        rank: of this machine, from 0. address: of machine 0, where there are others.
        port: on machine 0, 0 for any; several machines use the next one too.
        splitter: what splits the weights over the processes: "FSDP", or "" for nothing.
    """

    file: Path
    processes: int
    machines: int = 1
    rank: int = 0
    address: str | None = None
    port: int = ANY_PORT
    splitter: str = ""

    @property
    def here(self) -> int:
        """Processes on this machine."""
        return self.processes // self.machines


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a launch, in their own group; accelerate's spelling works as well."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--accelerate",
        type=Path,
        metavar="FILE",
        help="as this config of accelerate says",
    )
    for name, metavar, text in (
        ("num-processes", "N", "how many, over all machines (the file's)"),
        ("num-machines", "N", "how many machines run this command (the file's)"),
        ("machine-rank", "R", "which of them this one is, from 0 (the file's)"),
        ("main-process-ip", "IP", "address of machine 0"),
        ("main-process-port", "PORT", f"a free one there; the next is used too ({USUAL_PORT})"),
    ):
        kind: Any = str if name.endswith("ip") else int
        other = f"--{name.replace('-', '_')}"
        group.add_argument(f"--{name}", other, type=kind, metavar=metavar, help=text)


def read_settings(options: argparse.Namespace) -> Launch | None:
    """What the options ask for, held against this machine; None where they ask for nothing.

    Raises:
        UserError: the file, an option, or what they say together cannot be started here.
    """
    given = {name: getattr(options, name) for name in _OPTIONS}
    if options.accelerate is None:
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{_flag(name)}: is for --accelerate FILE; add it, or leave it out")
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            "--accelerate: this is a process that a launcher has started already (WORLD_SIZE is"
            " set); leave the option or the launcher out"
        )
    if not verbose():  # what is wrong with a connection is told where it is lost
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    values = _read_file(options.accelerate)
    launch = _launch(options.accelerate, values, given)
    _check_ports(launch)
    _check_gpus(launch, values.get("gpu_ids"))
    return launch


_OPTIONS = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# --- The file -------------------------------------------------------------------------------------


def _read_file(path: Path) -> dict[str, Any]:
    """The settings of accelerate's file, each one that it knows; UserError otherwise."""
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    values = read_yaml(path, UserError)  # JSON is YAML too
    kind = values.get("distributed_type")
    if kind is None:
        raise UserError(
            f"{path}: no distributed_type, so it is no config of accelerate; take one of"
            " configs/accelerate"
        )
    _check_known(path, values, ClusterConfig.__dataclass_fields__)
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        raise UserError(f"{path}: compute_environment: only LOCAL_MACHINE is started from here")
    if str(kind) not in SPLITTERS:
        why = _OTHERS.get(str(kind), f"is not started from here; set {' or '.join(SPLITTERS)}")
        raise UserError(f"{path}: distributed_type: {kind} {why}")
    section = values.get("fsdp_config") or {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: fsdp_config: expected settings by name, got {section!r}")
    if section and kind != "FSDP":
        raise UserError(f"{path}: fsdp_config: does nothing with distributed_type: {kind}")
    known = {a.dest for a in launch_command_parser()._actions if a.dest.startswith("fsdp_")}
    section = {k if k.startswith("fsdp") else f"fsdp_{k}": v for k, v in section.items()}
    _check_known(path, section, known, "fsdp_config.")
    if kind == "FSDP":
        _check_fsdp(path, section)
    return values


def _check_known(path: Path, values: dict[str, Any], known: Iterable[str], place: str = "") -> None:
    known = list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {place}{near[0]}?" if near else "; remove it"
            raise UserError(f"{path}: {place}{key}: no setting of accelerate's{hint}")


def _check_fsdp(path: Path, section: dict[str, Any]) -> None:
    """UserError for FSDP settings that would train something else, or nothing."""
    if section.get("fsdp_version", 1) != 2:
        raise UserError(f"{path}: fsdp_config.fsdp_version: expected 2, FSDP 1 is not supported")
    for key in _FSDP_1:
        if key in section:
            raise UserError(f"{path}: fsdp_config.{key}: is FSDP 1's and does nothing; remove it")
    if section.get("fsdp_cpu_ram_efficient_loading", True):
        raise UserError(
            f"{path}: fsdp_config.fsdp_cpu_ram_efficient_loading: expected false, as the reference"
            " is made from the weights of every process"
        )


# --- What it says together with the options -------------------------------------------------------


def _launch(path: Path, values: dict[str, Any], given: dict[str, Any]) -> Launch:
    """The launch that file and options describe; UserError where that is none."""

    def value(name: str, default: Any) -> Any:
        own = given[name]
        chosen = values.get(name, default) if own is None else own
        return default if chosen is None else chosen

    def place(name: str) -> str:
        return _flag(name) if given[name] is not None else f"{path}: {name}"

    counts = {name: value(name, default) for name, default in _COUNTS.items()}
    for name, count in counts.items():
        least = 0 if name == "machine_rank" else 1
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise UserError(f"{place(name)}: expected a number from {least} up, got {count!r}")
    processes, machines, rank = counts.values()
    if processes % machines:
        raise UserError(
            f"{place('num_processes')}: {processes} do not go evenly on {machines} machines; it"
            f" counts those of all, so set a multiple of {machines}"
        )
    if rank >= machines:
        raise UserError(
            f"{place('machine_rank')}: {rank} is none of {machines} machines (0 to {machines - 1})"
        )
    address = value("main_process_ip", None)
    if machines > 1 and address is None:
        raise UserError("--main-process-ip: missing; set the address of machine 0")
    port = value("main_process_port", USUAL_PORT if machines > 1 else ANY_PORT)
    least = 1 if machines > 1 else ANY_PORT
    if not isinstance(port, int) or not least <= port < 2**16 - 1:
        raise UserError(f"{place('main_process_port')}: expected {least} to 65534, got {port!r}")
    splitter = SPLITTERS[values["distributed_type"]]
    return Launch(path, processes, machines, rank, address, port, splitter)


_COUNTS = {"num_processes": -1, "num_machines": 1, "machine_rank": 0}


def _check_ports(launch: Launch) -> None:
    """UserError where machine 0's ports are taken; accelerate would take another, or wait."""
    if launch.rank > 0 or launch.port == ANY_PORT:
        return
    for port in ports(launch):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("", port))
            except OSError as error:
                raise UserError(
                    f"--main-process-port: {port} cannot be used ({error.strerror}); set another,"
                    " the same on every machine"
                ) from None


def ports(launch: Launch) -> list[int]:
    """Those used on machine 0: the processes' and, of several machines, the launchers'."""
    return [launch.port, launch.port + 1] if launch.machines > 1 else [launch.port]


def _check_gpus(launch: Launch, ids: object) -> None:
    """UserError where a GPU would be shared; without any the processes are on the processor."""
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if ids not in (None, "all"):
        count = min(count, len(str(ids).split(",")))
    if 0 < count < launch.here:
        raise UserError(
            f"--num-processes: {launch.here} processes on this machine, which has {count} GPU"
            f"{'s' if count > 1 else ''}; set {count * launch.machines}"
        )
