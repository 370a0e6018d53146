"""The whole plan: every stage's memory and pace, and what to change; as text and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.words import clock
from pipeline.config import Experiment
from pipeline.errors import UserError
from pipeline.plan.advice import Change, changes
from pipeline.plan.devices import GIB, Machine
from pipeline.plan.lengths import Lengths, read_lengths
from pipeline.plan.memory import Need, need_of
from pipeline.plan.needs import settings_of
from pipeline.plan.pace import Pace, by_peaks, by_probe
from pipeline.plan.sizes import read_config

# Columns of the table, and the roles that each sums up.
_COLUMNS = {
    "weights": (
        *("frozen weights", "trained weights", "merged weights", "policy"),
        "policy gathered whole",
    ),
    "gradients": ("gradients", "buckets of DDP"),
    "Adam": ("Adam",),
    "reference": ("reference",),
    "value head": ("value head",),
    "activations": ("activations", "copies for autocast", "gathered by FSDP2"),
    "logits": ("logits",),
    "KV cache": ("KV cache",),
    "rollout": ("rollout's trunk", "reference's states", "cached trunk"),
    "reward": ("reward models",),
    "process": ("process", "freed, not returned"),
}


@dataclass(frozen=True)
class Plan:
    """What an experiment needs on a machine.

    Attributes:
        needs: of its stages. paces: by stage, where they are known. mends: what to change, by
            stage that does not fit. model: a line about it.
    """

    name: str
    machine: Machine
    lengths: Lengths
    needs: tuple[Need, ...]
    paces: dict[str, Pace]
    mends: dict[str, list[Change]]
    model: str

    def _too_large(self) -> list[Need]:
        return [need for need in self.needs if need.peak.total > self.machine.room]

    def _too_long(self) -> list[Need]:
        return [n for n in self.needs if n.positions is not None and n.sequence > n.positions]

    @property
    def fits(self) -> bool:
        """Whether every stage fits, in memory and in the model's positions."""
        return not self._too_large() and not self._too_long()

    def as_json(self) -> dict[str, Any]:
        """Everything, bytes as whole numbers."""
        machine, lengths = self.machine, self.lengths
        return {
            "experiment": self.name,
            "fits": self.fits,
            "device": machine.device.title,
            "processes": machine.count,
            "room_bytes": round(machine.room),
            "lengths": {
                "prompt": lengths.prompt,
                "response": lengths.response,
                "text": lengths.text,
                "from": lengths.known or "data",
            },
            "stages": [self._stage_json(need) for need in self.needs],
        }

    def _stage_json(self, need: Need) -> dict[str, Any]:
        pace = self.paces.get(need.stage)
        return {
            "stage": need.stage,
            "method": need.method,
            "fits": need not in [*self._too_large(), *self._too_long()],
            "peak_bytes": round(need.peak.total),
            "at": need.peak.name,
            "sequence": need.sequence,
            "positions": need.positions,
            "phases": {
                phase.name: {role: round(size) for role, size in phase.roles.items()}
                for phase in need.phases
            },
            "tokens_per_second": None if pace is None else round(pace.rate, 1),
            "limit": None if pace is None else pace.limit,
            "notes": list(need.rough),
            "changes": [
                {"settings": c.settings, "cost": c.why, "peak_bytes": round(c.need.peak.total)}
                for c in self.mends.get(need.stage, [])
            ],
        }

    def as_text(self) -> str:
        """What the command prints."""
        lines = [*self._head(), "", *_aligned(self._rows()), ""]
        lines += [line for need in self.needs for line in self._about(need)]
        verdict = "every stage fits" if self.fits else "does not fit"
        return "\n".join([*lines, f"plan: {verdict}"])

    def _head(self) -> list[str]:
        machine, lengths = self.machine, self.lengths
        room = f"{_gib(machine.room)} GiB to fill"
        each = f"{machine.count} × {machine.device.title}" if machine.count > 1 else (
            machine.device.title
        )  # fmt: skip
        tokens = (
            f"prompts up to {lengths.prompt:,} tokens, completions up to {lengths.response:,},"
            f" texts up to {lengths.text:,}"
        )
        guess = f" (the data is not read here: {lengths.known}; taken from the data section)"
        lines = [f"{self.name} on {each}: {room}{' each' if machine.count > 1 else ''}", self.model]
        if lengths.looked_at < max(lengths.prompts, lengths.texts):
            tokens += f" (of {lengths.looked_at:,} of them, evenly chosen)"
        return [*lines, tokens + (guess if lengths.known else "")]

    def _rows(self) -> list[list[str]]:
        used = [
            name for name, roles in _COLUMNS.items()
            if any(_sum(need, roles) >= 0.005 * GIB for need in self.needs)
        ]  # fmt: skip
        rows = [["stage", "at its most", "GiB", *used, "tokens/s"]]
        for need in self.needs:
            pace = self.paces.get(need.stage)
            cells = [_gib(_sum(need, _COLUMNS[name])) for name in used]
            rate = f"{pace.rate:,.0f}" if pace else "–"
            rows.append([need.stage, need.peak.name, _gib(need.peak.total), *cells, rate])
        return rows

    def _about(self, need: Need) -> list[str]:
        """Whether a stage fits, how long it takes, and what to change."""
        lines = [f"{need.stage}: {note}" for note in need.rough]
        pace = self.paces.get(need.stage)
        if pace is not None and pace.seconds is not None:
            about = "about" if self.machine.device.is_processor else "at least"
            lines.append(f"{need.stage}: {about} {clock(pace.seconds)}, bound by {pace.limit}")
        if need in self._too_long():
            lines.append(
                f"{need.stage}: {need.sequence:,} tokens are more than the {need.positions:,}"
                " positions that the model was made for; shorten the longest prompts or texts, or"
                " lower generation.max_new_tokens"
            )
        if need not in self._too_large():
            return lines
        short = _gib(need.peak.total - self.machine.room)
        lines.append(f"{need.stage}: does not fit while {need.peak.name}, {short} GiB too much")
        for change in self.mends.get(need.stage, []):
            left = f"{_gib(change.need.peak.total)} GiB"
            lines.append(f"  fits with {change.settings}: {left} ({change.why})")
        if not self.mends.get(need.stage):
            lines.append("  no change known here makes it fit: a smaller model, or larger devices")
        return lines


def _sum(need: Need, roles: Sequence[str]) -> float:
    return sum(need.peak.roles.get(role, 0.0) for role in roles)


def _gib(size: float) -> str:
    """GiB in two digits, or whole ones from a hundred on."""
    amount = size / GIB
    return (
        f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}" if amount >= 10 else f"{amount:.2f}"
    )


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows in columns, words to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def plan_of(
    experiment: Experiment,
    machine: Machine,
    stages: Sequence[str] | None = None,
    split: bool = False,
) -> Plan:
    """Plan the stages of an experiment, all by default.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    config = read_config(experiment.model)
    lengths, data = read_lengths(experiment)
    settings = dict(settings_of(experiment, machine, config, lengths, stages, split))
    needs = tuple(need_of(name, setting) for name, setting in settings.items())
    counter = _counter(experiment, machine) if data is not None else None
    paces: dict[str, Pace] = {}
    for name, setting in settings.items():
        pace = by_probe(name, counter) if counter is not None else by_peaks(setting)
        if pace is not None:
            paces[name] = pace
    mends = {
        need.stage: changes(need.stage, settings[need.stage])
        for need in needs
        if need.peak.total > machine.room
    }
    policy = next(iter(settings.values())).policy
    positions = "" if policy.positions is None else f", {policy.positions:,} positions"
    model = (
        f"{policy.name}, {policy.parameters / 1e6:,.1f}M weights: {policy.layers} layers of width"
        f" {policy.width:,}, {policy.vocabulary:,} tokens{positions}"
    )
    return Plan(experiment.name, machine, lengths, needs, paces, mends, model)


def _counter(experiment: Experiment, machine: Machine) -> Any:
    """This processor timed; None where the plan is for another device, or there is no use."""
    toy = experiment.model.model_name_or_path == "toy"
    alone = machine.count == 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if toy or not machine.device.is_processor or not alone:
        return None
    import torch

    from pipeline.stages.budget import counter_of

    try:
        with torch.random.fork_rng(devices=[]):
            return counter_of(experiment)
    except (UserError, RuntimeError, OSError, ValueError):  # an estimate ends no plan
        return None
