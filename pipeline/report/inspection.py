"""``rlhf inspect``: one page that shows a PPO rollout token by token.

The page is one HTML file without any script or outside resource; the switch between quantities is
radio buttons and CSS, and its Content-Security-Policy forbids scripts. What a model wrote goes
through the template's escaping, and characters that cannot be seen are written out.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import unicodedata
import webbrowser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from common import files
from common.parser import Parser
from pipeline.compare.wording import number, percent, signed
from pipeline.errors import UserError
from pipeline.output.metrics_file import read_metrics
from pipeline.ppo.upkeep import journal
from pipeline.report.templating import template


@dataclass(frozen=True)
class Quantity:
    """Something a token has a number of.

    Attributes:
        key: its column in the journal, or ``change``, which follows from two of them.
        label: on its button. unit: of its numbers. says: how to read it.
        signed: coloured from negative over 0 to positive, rather than by size alone.
        scale: quantities of one scale are coloured alike, so that they can be compared.
    """

    key: str
    label: str
    unit: str
    says: str
    signed: bool
    scale: str
    digits: int = 3


QUANTITIES = (
    Quantity(
        "advantage", "advantage", "reward units",
        "How much better the completion went from this token on than the value had foreseen. PPO"
        " makes blue tokens likelier and orange ones less likely.", True, "advantage",
    ),
    Quantity(
        "reward", "reward", "reward units",
        "What the token was paid. The score comes on the last token; where the KL is charged in the"
        " reward, every token pays β times the estimate of its KL.", True, "reward",
    ),
    Quantity(
        "value", "value", "reward units",
        "What the critic expects the rest to earn, before it sees this token. A good one foresees"
        " the score: its colour nears the return's as the sentence unfolds.", True, "value",
    ),
    Quantity(
        "return", "return", "reward units",
        "What the critic learns towards: the value it gave plus the advantage before whitening.",
        True, "value",
    ),
    Quantity(
        "logp", "log-prob", "nats",
        "Log-probability of the token under the policy that wrote it. Strongly coloured tokens were"
        " unlikely.",
        False, "logp",
    ),
    Quantity(
        "ref_logp", "reference", "nats",
        "Log-probability of the same token under the reference. Same colours as log-prob.",
        False, "logp",
    ),
    Quantity(
        "change", "change", "nats",
        "Log-prob minus reference: blue tokens are likelier than under the reference, orange ones"
        " less likely. Summed over a completion this is k1, the estimate of the KL.",
        True, "change",
    ),
    Quantity(
        "kl", "KL", "nats",
        "Exact KL between the whole next-token distributions of policy and reference:"
        " strong colour is where the policy has left the reference, whichever token was drawn.",
        False, "kl", 4,
    ),
    Quantity(
        "entropy", "entropy", "nats",
        "How undecided the policy was. Near 0 at every token is a policy that has collapsed.",
        False, "entropy",
    ),
)  # fmt: skip

# Metric → its name on the page, how it is written, what it is.
SUMMARY: tuple[tuple[str, str, Any, str], ...] = (
    ("objective/scores", "score", signed, "mean over the rollout"),
    ("objective/kl_exact", "KL", lambda v: number(v, 3), "nats a completion, exact"),
    ("objective/rlhf_reward", "objective", signed, "score − β·KL"),
    ("policy/entropy_avg", "entropy", number, "nats a token"),
    ("val/explained_variance", "explained", percent, "of the return's variance, by the value"),
    ("policy/clipfrac_avg", "clipped", percent, "of the tokens, in the update after it"),
    ("val/ended", "ended", percent, "of the completions, by themselves"),
    ("val/length", "length", lambda v: number(v, 1), "tokens a completion"),
)
_WRITTEN = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}


def main(argv: Sequence[str]) -> None:
    """Write the page of one rollout and print its path.

    Raises:
        UserError: no such run, nothing recorded in it, or no such step.
    """
    arguments = _parser().parse_args(list(argv))
    folder = find_rollouts(arguments.run)
    step = choose(folder, arguments.step)
    output: Path = arguments.output or folder.parent / f"inspect-step-{step}.html"
    content = page(folder, step, arguments.step)
    try:
        files.write_text(output, content)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be written ({error.strerror}); name another file"
        ) from None
    print(output)
    if arguments.open == "yes" and _has_display():
        webbrowser.open(output.absolute().as_uri())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError, prog="rlhf inspect", description="Show a PPO rollout token by token."
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="an experiment's folder, e.g. runs/quickstart"
    )
    parser.add_argument(
        "--step", type=int, metavar="K", help="the rollout at or before this optimizer step"
        " (default: the last)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the page")
    parser.add_argument(
        "--open", choices=("yes", "no"), default="yes", help="show it in the browser (default: yes)"
    )
    return parser


def _has_display() -> bool:
    """False on a server: a browser for the terminal would take the terminal over."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def find_rollouts(run: Path) -> Path:
    """The folder of rollouts of an experiment, of its PPO stage or of a trainer's output folder."""
    if not run.is_dir():
        raise UserError(
            f"{run}: no such run; give an experiment's output folder, as in"
            " `rlhf inspect runs/quickstart`"
        )
    places = (run / "rollouts", run / "ppo" / "rollouts", run.parent / "rollouts", run)
    for place in places:
        if journal.steps(place):
            return place
    raise UserError(
        f"{run}: no rollouts recorded; run `rlhf ppo` first (with ppo.log_completions above 0)"
    )


def choose(folder: Path, step: int | None) -> int:
    """The rollout made at or before ``step``; the last for None."""
    steps = journal.steps(folder)
    if step is None:
        return steps[-1]
    last = max([steps[-1], *(row["step"] for row in _metrics(folder))])
    if not steps[0] <= step <= last:
        raise UserError(
            f"--step {step}: out of range; {folder} has {len(steps)} rollouts, made at steps"
            f" {steps[0]} to {steps[-1]}"
        )
    return max(made for made in steps if made <= step)


def page(folder: Path, step: int, asked: int | None = None) -> str:
    """The page of the rollout made at ``step``.

    Raises:
        UserError: its file is not what the trainer wrote.
    """
    path = journal.path(folder, step)
    try:
        return _render(folder, step, asked, files.read_json(path))
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: no record of a rollout ({type(error).__name__}: {error}); remove the file"
        ) from None


def _render(folder: Path, step: int, asked: int | None, record: dict[str, Any]) -> str:
    metrics: dict[str, Any] = dict(record["metrics"])
    episode = metrics.get("episode")
    # The row logged after the update that learned from this rollout knows more.
    rows = _metrics(folder) if episode is not None else []
    row = next((row for row in rows if row.get("episode") == episode), {})
    metrics |= row
    completions = [_columns(completion) for completion in record["completions"]]
    limits, (low, high) = _limits(completions), _range(completions)
    stage = folder.parent
    steps = journal.steps(folder)
    return template("inspect.html", visible=visible).render(
        name=stage.parent.name if stage.name == "ppo" else stage.name,
        step=step,
        asked=asked if asked != step else None,
        steps=steps,
        updated=row.get("step"),
        metrics=metrics,
        summary=[
            (name, write(metrics[key]), what)
            for key, name, write, what in SUMMARY
            if isinstance(metrics.get(key), int | float)
        ],
        whitened=record["whitened"],
        quantities=QUANTITIES,
        limits=limits,
        low=low,
        high=high,
        completions=[_shown(c, limits, _curves(c, low, high)) for c in completions],
    )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder.parent / "metrics.jsonl")


def _columns(completion: dict[str, Any]) -> dict[str, Any]:
    """A completion with the quantities that follow from others; every column one length."""
    change = [
        None if ours is None or theirs is None else ours - theirs
        for ours, theirs in zip(completion["logp"], completion["ref_logp"], strict=True)
    ]
    completion = completion | {"change": change}
    for quantity in QUANTITIES:
        if len(completion[quantity.key]) != len(completion["tokens"]):
            raise ValueError(f"{quantity.key} has another length than tokens")
    return completion


def _limits(completions: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The size at which each scale's colour is full: the 95 % quantile of what is shown, so that
    one odd token does not pale all others."""
    sizes: dict[str, list[float]] = {quantity.scale: [] for quantity in QUANTITIES}
    for completion in completions:
        for quantity in QUANTITIES:
            values = [abs(v) for v in completion[quantity.key] if v is not None]
            # A completion has one score and many tokens; the score sets the scale of rewards.
            sizes[quantity.scale] += (
                [max(values, default=0.0)] if quantity.key == "reward" else values
            )
    return {scale: _quantile(values, 0.95) for scale, values in sizes.items()}


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else 0.0


def _shown(
    completion: dict[str, Any], limits: dict[str, float], curves: dict[str, str]
) -> dict[str, Any]:
    """What the template writes of a completion."""
    tokens = []
    for i, text in enumerate(completion["tokens"]):
        values = [completion[quantity.key][i] for quantity in QUANTITIES]
        strengths = [
            _strength(value, limits[quantity.scale])
            for value, quantity in zip(values, QUANTITIES, strict=True)
        ]
        tokens.append(
            {
                "text": str(text),
                "numbers": [
                    number(v, quantity.digits)
                    for v, quantity in zip(values, QUANTITIES, strict=True)
                ],
                "style": ";".join(f"--q{q}:{s:g}" for q, s in enumerate(strengths) if s),
            }
        )
    return {
        "prompt": str(completion["prompt"]),
        "tokens": tokens,
        "score": completion["score"],
        "kl": _total(completion["kl"]),
        "return": _total(completion["reward"]),
        "ended": bool(completion["ended"]),
        "curves": curves,
    }


def _strength(value: float | None, limit: float) -> float:
    """How strong the colour is, −1 to 1."""
    if value is None or limit <= 0:
        return 0.0
    return round(max(-1.0, min(1.0, value / limit)), 2)


def _total(values: Iterable[float | None]) -> float:
    return sum(v for v in values if v is not None)


def _range(completions: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Least and greatest value or return shown, and 0: one height for all the curves."""
    heights = [v or 0.0 for c in completions for name in ("value", "return") for v in c[name]]
    return min([0.0, *heights]), max([0.0, *heights])


def _curves(completion: dict[str, Any], low: float, high: float) -> dict[str, str]:
    """Value and return along the completion as points of a picture 100 wide and 30 high."""

    def y(value: float | None) -> str:
        return f"{28 - 26 * ((value or 0.0) - low) / ((high - low) or 1.0):.2f}"

    step = 100 / max(len(completion["tokens"]), 1)
    points = {
        name: " ".join(f"{(i + 0.5) * step:.2f},{y(v)}" for i, v in enumerate(completion[name]))
        for name in ("value", "return")
    }
    return points | {"zero": y(0.0)}


def visible(text: str) -> Markup:
    """``text`` escaped for HTML, with every character that cannot be seen written out.

    Line ends, tabs and lone spaces become signs, other controls and zero-width characters their
    code point, a leading combining mark gets a circle to sit on, nothing at all becomes ∅.
    """
    if not text:
        return _sign("∅")
    if text.isspace() and set(text) == {" "}:
        return _sign("␣" * len(text))
    parts: list[Markup] = []
    for position, character in enumerate(text):
        category = unicodedata.category(character)
        if character in _WRITTEN:
            parts.append(_sign(_WRITTEN[character]))
        elif category[0] == "C" or category in ("Zl", "Zp") or _is_blank(character):
            parts.append(_sign(f"U+{ord(character):04X}"))
        elif position == 0 and category[0] == "M":
            parts.append(escape("◌" + character))
        else:
            parts.append(escape(character))
    return Markup("").join(parts)


def _is_blank(character: str) -> bool:
    """True for what takes no ink: wide spaces, the Hangul fillers, the blank braille pattern."""
    return character != " " and (
        character.isspace() or character in "\u115f\u1160\u3164\uffa0\u2800"
    )


def _sign(text: str) -> Markup:
    return Markup('<i class="sign">{}</i>').format(text)
