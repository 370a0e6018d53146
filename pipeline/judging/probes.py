"""Minimal pairs whose better completion is beyond doubt, and how often a reward sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("probes.yaml")


@dataclass(frozen=True)
class Pair:
    """One prompt and two completions; nobody who reads reviews doubts which praises more, or is
    the better text."""

    prompt: str
    better: str
    worse: str


@dataclass(frozen=True)
class Probe:
    """Pairs of one kind.

    Attributes:
        title: Its name on the page.
        says: What the pairs change, and why one is better.
    """

    title: str
    says: str
    pairs: list[Pair]


def load_probes() -> list[Probe]:
    """The probes of probes.yaml."""
    return [
        Probe(
            kind["title"], " ".join(kind["says"].split()), [Pair(*pair) for pair in kind["pairs"]]
        )
        for kind in yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    ]


def texts_of(probes: Sequence[Probe]) -> tuple[list[str], list[str]]:
    """Prompts and completions to score: of each pair the better, then the worse."""
    pairs = [pair for probe in probes for pair in probe.pairs]
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    return prompts, [text for pair in pairs for text in (pair.better, pair.worse)]


def results(probes: Sequence[Probe], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Of each probe how many pairs pass, and those that fail with their scores.

    Args:
        scores: Of `texts_of`, in its order. A pair passes where the better one scores higher;
            equal scores fail.
    """
    found, at = [], 0
    for probe in probes:
        failures = []
        for pair in probe.pairs:
            better, worse = scores[at], scores[at + 1]
            at += 2
            if better <= worse:
                failures.append(
                    {
                        "prompt": pair.prompt,
                        "better": pair.better,
                        "worse": pair.worse,
                        "score_better": better,
                        "score_worse": worse,
                    }
                )
        found.append({"passed": len(probe.pairs) - len(failures), "failures": failures})
    return found
