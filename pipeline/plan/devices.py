"""Devices that can be planned for: peaks from their makers' data sheets, and this machine."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.errors import UserError
from pipeline.plan.formulas import USABLE

GIB = 2**30
PROCESSOR = "cpu"
# What Python, the libraries, a tokenizer and some data take in each process; toys end at 0.6.
INTERPRETER = 0.7 * GIB
CUDA_CONTEXT = 0.6 * GIB


@dataclass(frozen=True)
class Device:
    """One accelerator, or a processor with its memory.

    Attributes:
        name: as ``--gpu`` takes it. title: its maker's. memory: bytes, as its driver reports them.
        flops: dense bfloat16 operations a second, 0 where nobody says. bandwidth: bytes a second
            from its memory. link: bytes a second that it sends to others of its node, one way.
    """

    name: str
    title: str
    memory: float
    flops: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0

    @property
    def is_processor(self) -> bool:
        """Whether it shares its memory with everything else on the machine."""
        return self.name == PROCESSOR


_PCIE4 = 32e9
DEVICES = {
    device.name: device
    for device in (
        Device("h100", "NVIDIA H100 SXM", 79.6 * GIB, 989e12, 3.35e12, 450e9),
        Device("h200", "NVIDIA H200 SXM", 140.4 * GIB, 989e12, 4.8e12, 450e9),
        Device("b200", "NVIDIA B200", 179.0 * GIB, 2250e12, 8.0e12, 900e9),
        Device("a100", "NVIDIA A100 SXM 80 GB", 80.0 * GIB, 312e12, 2.039e12, 300e9),
        Device("a100-40", "NVIDIA A100 SXM 40 GB", 40.0 * GIB, 312e12, 1.555e12, 300e9),
        Device("l40s", "NVIDIA L40S", 45.0 * GIB, 362e12, 0.864e12, _PCIE4),
        Device("l4", "NVIDIA L4", 22.5 * GIB, 121e12, 0.3e12, _PCIE4),
        Device("rtx4090", "NVIDIA GeForce RTX 4090", 24.0 * GIB, 165e12, 1.008e12, _PCIE4),
        Device("rtx3090", "NVIDIA GeForce RTX 3090", 24.0 * GIB, 71e12, 0.936e12, _PCIE4),
        Device("mi300x", "AMD Instinct MI300X", 191.5 * GIB, 1307e12, 5.3e12, 448e9),
    )
}
"""By name. Memory is what the drivers show; peaks are without sparsity."""


@dataclass(frozen=True)
class Machine:
    """What a plan is for.

    Attributes:
        device: of each process. count: processes, a device each.
        room: bytes that a process may fill. here: whether it is the machine that plans.
    """

    device: Device
    count: int
    room: float
    here: bool

    @property
    def base(self) -> float:
        """Bytes that are gone before anything is loaded: of a card its context."""
        return INTERPRETER if self.device.is_processor else CUDA_CONTEXT

    def of(self, count: int) -> Machine:
        """As many of these devices."""
        room = self.room * self.count / count if self.device.is_processor else self.room
        return Machine(self.device, count, room, self.here)


def machine(name: str | None, count: int = 1, memory: float | None = None) -> Machine:
    """The devices that are asked for.

    Args:
        name: one of `DEVICES`, ``cpu``, or None for this machine's own. memory: GiB of each
            instead of what is known of it.

    Raises:
        UserError: nothing is known of such a device, and its memory is not given.
    """
    device = here() if name is None else processor() if name == PROCESSOR else DEVICES.get(name)
    if device is None:
        near = difflib.get_close_matches(str(name), [PROCESSOR, *DEVICES], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if memory is None:
            known = ", ".join([PROCESSOR, *DEVICES])
            raise UserError(f"--gpu: {name!r} is none of {known}{hint}; or give --memory GIB")
        device = Device(str(name), str(name), memory * GIB)
    whole = device.memory if memory is None else memory * GIB
    if device.is_processor:
        room = (whole if memory is not None else free_memory()) / count
    else:
        room = USABLE * whole
    own = name is None and memory is None
    return Machine(device, count, room, own)


def here() -> Device:
    """This machine's accelerator as torch sees it, else its processor."""
    import torch

    from pipeline.lm.hardware import best_device

    device = best_device()
    if device.type != "cuda":
        return processor()
    found = torch.cuda.get_device_properties(device)
    plain = found.name.lower().replace(" ", "").replace("-", "")
    for known in DEVICES.values():
        short = known.name.split("-")[0]
        if short in plain and abs(known.memory - found.total_memory) < 0.1 * known.memory:
            return known
    return Device(found.name, found.name, float(found.total_memory))


def processor() -> Device:
    """This machine's processor with the memory that this process may have."""
    return Device(PROCESSOR, "this machine's processor", _limit() or psutil.virtual_memory().total)


def free_memory() -> float:
    """Bytes that a process started now could fill: the machine's, or its container's."""
    free = float(psutil.virtual_memory().available)
    limit = _limit()
    if limit is None:
        return free
    group = Path("/sys/fs/cgroup")
    used = (_number(group / "memory.current") or 0.0) - _dropped_at_need(group / "memory.stat")
    return min(free, max(0.0, limit - used))


def _limit() -> float | None:
    """A container's limit (cgroup v2) where it is below the machine's memory."""
    limit = _number(Path("/sys/fs/cgroup/memory.max"))
    return limit if limit is not None and limit < psutil.virtual_memory().total else None


def _dropped_at_need(path: Path) -> float:
    """Bytes of files that are only cached."""
    try:
        rows = dict(line.split() for line in path.read_text(encoding="utf-8").splitlines())
        return float(rows["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0.0


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max", or no such file
        return None
