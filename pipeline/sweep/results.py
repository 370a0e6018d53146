"""What a sweep found, a row a trial, and the files that hold it: sweep.json and sweep.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_json, write_json, write_text
from common.words import json_able
from pipeline.compare.evaluate import Evaluation
from pipeline.compare.frontier import Array
from pipeline.compare.spreadsheet import flat
from pipeline.compare.training import together
from pipeline.sweep.trials import Trial

Numbers = Mapping[str, Any]
REFERENCE, CHOICE = "reference", "choice"


@dataclass(frozen=True)
class Measured:
    """What is read of a finished trial.

    Attributes:
        results, details: content of compare/results.json and compare/details.json.
        prompts: the evaluation prompts.
        reward, kl: the policy's, each prompt's mean over its samples: ``(P,)``; no KL is NaN.
        reference: rewards of the reference's samples: ``(P, N)``.
        measure_seconds: of the comparison.
    """

    results: Numbers
    details: Numbers
    prompts: Sequence[str]
    reward: Array
    kl: Array
    reference: Array
    measure_seconds: float | None


def read(trial: Trial) -> Measured:
    """Read a finished trial's folder."""
    compare = trial.folder / "compare"
    results, details = read_json(compare / "results.json"), read_json(compare / "details.json")
    kinds = {row["name"]: row["kind"] for row in results["policies"]}
    reference = next(name for name, kind in kinds.items() if kind == REFERENCE)
    own, base = (_evaluation(compare, name) for name in (trial.policy, reference))
    return Measured(
        results=together(results, details),
        details=details,
        prompts=tuple(base.prompts),
        reward=own.grid(own.proxy).mean(axis=1),
        kl=own.grid(own.kl or [math.nan] * len(own.proxy)).mean(axis=1),
        reference=base.grid(base.proxy),
        measure_seconds=read_json(compare / "stage.json").get("seconds"),
    )


def _evaluation(compare: Path, name: str) -> Evaluation:
    return Evaluation(**read_json(compare / "measured" / f"{name}.json"))


# --- Rows -----------------------------------------------------------------------------------------


def rows(found: Mapping[Trial, Measured]) -> list[dict[str, Any]]:
    """A row a trial; the reference's and best-of-n's once for each seed, β and pool."""
    made, seen = [], set()
    for trial, measured in found.items():
        for policy in measured.results["policies"]:
            kind, name = policy["kind"], policy["name"]
            own = name == trial.policy
            of_beta = kind == CHOICE or (own and len(trial.betas) == 1)
            beta = trial.beta if of_beta else None
            if not own:
                once = (name, trial.pool, trial.seed, beta)
                if kind not in (REFERENCE, CHOICE) or once in seen:
                    continue
                seen.add(once)
            made.append(
                {
                    "trial": trial.name if own else None,
                    "policy": name,
                    "method": trial.method if own else None,
                    "kind": kind,
                    "beta": beta,
                    "seed": trial.seed,
                    "over": dict(trial.over) if own else {},
                    "metrics": _metrics(measured.results["methods"][name], of_beta),
                    "measure_seconds": measured.measure_seconds if own else None,
                }
            )
    return made


def _metrics(row: Numbers, of_beta: bool) -> dict[str, Any]:
    """A row of results.json; without what depends on β where the policy is the same at each."""
    if of_beta:
        return dict(row)
    changes = ("objective", "optimality")
    return {key: value for key, value in row.items() if not key.startswith(changes)}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; an interval is two columns, what a row lacks is empty."""
    lines = [_flat(row) for row in found]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    nested = ("over", "metrics")
    line = {key: value for key, value in row.items() if key not in nested}
    return line | dict(row["over"]) | flat(row["metrics"])


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write sweep.json and sweep.csv."""
    write_text(folder / "sweep.csv", table(content["rows"]))
    write_json(folder / "sweep.json", json_able(dict(content)))
