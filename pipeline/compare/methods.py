"""What is compared: one record a policy, the reference first and best-of-N last.

The policies are the experiment's, and the checkpoints from elsewhere that its config names. Their
records go into results.json, from which the report takes titles, markers and colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pipeline.config import Experiment
from pipeline.config.stages import find_stage

Kind = Literal["reference", "trained", "checkpoint", "choice"]


@dataclass(frozen=True)
class Method:
    """A policy that is compared.

    Attributes:
        name: key in results.json.
        title: for people.
        marker: matplotlib's, so that nobody has to tell methods apart by colour.
        colour: ``#rrggbb`` in lower case, readable as text on a light page. dark: on a dark one.
        stage: the stage that trains it: its checkpoint is ``<stage>/model``. None where no stage
            does: a checkpoint from elsewhere, or a choice.
        kind: `reference`, π_ref, which all others are measured against; `trained` here; a
            `checkpoint` from elsewhere; or a `choice` among π_ref's own samples, which has no
            next-token probabilities, so that only an upper bound of its KL is known, and of its
            objective a lower one.
        method: how it was trained, by the name of the method; empty where no stage did.
        beta: the KL coefficient it was trained with. seed: of its training.
        note: what is to be told beside its numbers, as why it has no KL.
    """

    name: str
    title: str
    marker: str
    colour: str
    dark: str
    stage: str | None
    kind: Kind = "trained"
    method: str = ""
    beta: float | None = None
    seed: int | None = None
    note: str | None = None

    @property
    def reference(self) -> bool:
        """Whether it is π_ref."""
        return self.kind == "reference"


# The colours can be told apart by the colour-blind.
SFT = Method("sft", "SFT", "o", "#66717f", "#9aa6b5", stage="sft", kind="reference")
PPO = Method("ppo", "PPO", "D", "#0b67b8", "#5aaef2", stage="ppo", method="ppo")
DPO = Method("dpo", "DPO", "s", "#c25400", "#f2954a", stage="dpo", method="dpo")
BEST_OF_N = Method("best_of_n", "Best-of-N", "^", "#007a60", "#3fc09d", stage=None, kind="choice")

METHODS: tuple[Method, ...] = (SFT, PPO, DPO, BEST_OF_N)
"""The default experiment's, in the order in which they are measured and shown."""

# Of further policies, in the order of the config: marker, colour, colour on a dark page.
_LOOKS = (
    ("v", "#8a3ea8", "#c98be6"),
    ("P", "#a8123e", "#f07895"),
    ("X", "#56690c", "#a9bf4a"),
    ("<", "#00707f", "#4cc3d3"),
    (">", "#7a5230", "#cda077"),
    ("p", "#3b3fb0", "#8f95f0"),
    ("h", "#a01f8d", "#ec7fda"),
    ("d", "#2f6b2a", "#7cc476"),
    ("*", "#8c6400", "#dbb03f"),
    ("H", "#44546a", "#a3b4cc"),
)


def reference() -> Method:
    """Return π_ref's record."""
    return SFT


def named(experiment: Experiment) -> list[Method]:
    """Return a record of everything that the experiment compares, in order."""
    looks = iter(_LOOKS * (1 + (len(experiment.policies) + len(experiment.compare.policies)) // 10))
    made = [_of_policy(experiment, name, looks) for name in experiment.methods()]
    elsewhere = [
        Method(name, name, *next(looks), stage=None, kind="checkpoint")
        for name in experiment.compare.policies
    ]
    return [SFT, *made, *elsewhere, BEST_OF_N]


def _of_policy(experiment: Experiment, name: str, looks: Any) -> Method:
    """The record of a policy of the config; PPO and DPO under their own names look as ever."""
    view, method = experiment.of(name), experiment.methods()[name]
    known = {m.name: m for m in (PPO, DPO)}.get(name if name == method else "")
    marker, colour, dark = (known.marker, known.colour, known.dark) if known else next(looks)
    title = find_stage(method).title if name == method else name
    return Method(
        name, title, marker, colour, dark,
        stage=name, method=method, beta=view.beta, seed=view.seed,
    )  # fmt: skip


def to_json(methods: Iterable[Method]) -> list[dict[str, Any]]:
    """The records as results.json holds them."""
    return [asdict(method) for method in methods]


def shown(results: Mapping[str, Any]) -> list[Method]:
    """Return the records of what a results.json has measured, in order.

    One of an earlier release has no records: it compared SFT, PPO, DPO and best-of-N.
    """
    known = {field.name for field in fields(Method)}
    records = [
        Method(**{key: value for key, value in record.items() if key in known})
        for record in results.get("policies") or ()
    ]
    return [m for m in records or METHODS if m.name in results["methods"]]
