"""What is compared: one record a method, the reference first.

The comparison measures every method of `METHODS`, and the report shows each with its title, marker
and colour. A new method is one more record here, and a stage that writes ``<stage>/model``.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A way to get a policy from π_ref.

    Attributes:
        name: key in results.json, and name of its CSS variable.
        title: for people.
        marker: matplotlib's, so that nobody has to tell methods apart by colour.
        colour: ``#rrggbb`` in lower case, readable as text on a light page. dark: on a dark one.
        stage: the stage that trains it: its checkpoint is ``<stage>/model``. None is a choice among
            π_ref's own samples: it has no checkpoint and no next-token probabilities, so that only
            an upper bound of its KL is known, and of its objective a lower one.
        reference: π_ref itself, which all others are measured against; exactly one is.
    """

    name: str
    title: str
    marker: str
    colour: str
    dark: str
    stage: str | None
    reference: bool = False


# The colours can be told apart by the colour-blind.
SFT = Method("sft", "SFT", "o", "#66717f", "#9aa6b5", stage="sft", reference=True)
PPO = Method("ppo", "PPO", "D", "#0b67b8", "#5aaef2", stage="ppo")
DPO = Method("dpo", "DPO", "s", "#c25400", "#f2954a", stage="dpo")
BEST_OF_N = Method("best_of_n", "Best-of-N", "^", "#007a60", "#3fc09d", stage=None)

METHODS: tuple[Method, ...] = (SFT, PPO, DPO, BEST_OF_N)
"""In the order in which they are measured and shown."""


def reference() -> Method:
    """Return π_ref's record."""
    return next(method for method in METHODS if method.reference)


def present(names: Container[str]) -> list[Method]:
    """Return the methods whose names are in ``names``, e.g. in results.json, in order."""
    return [method for method in METHODS if method.name in names]
