"""`rlhf push`: send finished models, rewards and the report to the Hugging Face hub."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from common.parser import Parser
from pipeline.config import Experiment, load_experiment
from pipeline.config.hub import pushes
from pipeline.errors import UserError
from pipeline.planning import plan
from pipeline.runner import lock


def main(words: Sequence[str]) -> int:
    """Push what is named, or what the config asks to push, and return the exit code."""
    parser = Parser(
        raises=UserError,
        prog="rlhf push",
        description="Push what is finished to the Hugging Face hub: each model folder with its"
        " card, and the report as a static Space. What is there already is not sent again.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="name | key=value",
        help="sft, reward, a policy or report (default: whatever has push_to_hub: true); settings"
        " that replace the file's",
    )
    arguments = parser.parse_intermixed_args(words)
    overrides = [word for word in arguments.words if "=" in word]
    experiment = load_experiment(arguments.config, overrides)
    names = _names(experiment, [word for word in arguments.words if "=" not in word])
    from pipeline.sharing import pushing

    with lock(experiment.output_dir):
        checked = pushing.check(experiment, names)
        failed = pushing.push(experiment, checked)
    if failed:
        raise UserError("; ".join(failed))
    return 0


def _names(experiment: Experiment, named: Sequence[str]) -> list[str]:
    """What is to be pushed, all of it finished.

    Raises:
        UserError: there is none of that name, it is not finished or another config made it, or
            nothing is asked for.
    """
    known = [*(s.name for s in experiment.stages() if s.arguments), "report"]
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{name}: nothing to push; there are {', '.join(known)}{hint}")
    names = list(named) or pushes(experiment)
    if not names:
        raise UserError(
            "nothing asks to be pushed: name it (`rlhf push --config FILE ppo`), or set"
            " push_to_hub: true in its section"
        )
    stages = [name for name in names if name != "report"]
    unfinished = [s.stage for s in plan(experiment, stages) if s.action != "skip"] if stages else []
    if "report" in names and not (experiment.stage_dir("report") / "index.html").is_file():
        unfinished.append("report")
    if unfinished:
        first = unfinished[0]
        raise UserError(f"{first}: is not finished; run `rlhf {first}` with this config first")
    return names
