"""Stand-in until the core lands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.compare import methods as core


@dataclass(frozen=True)
class Method:
    name: str
    title: str
    kind: str
    marker: str
    colour: str
    dark: str
    method: str | None = None
    beta: float | None = None
    seed: int | None = None


def shown(results: Mapping[str, Any]) -> list[Method]:
    if results.get("policies"):
        return [Method(**row) for row in results["policies"] if row["name"] in results["methods"]]
    out = []
    for m in core.present(results["methods"]):
        kind = "reference" if m.reference else "choice" if m.stage is None else "trained"
        out.append(Method(m.name, m.title, kind, m.marker, m.colour, m.dark, m.stage))
    return out
