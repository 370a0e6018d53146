"""`rlhf plan`: what an experiment needs, and whether the machine has it, before the first step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.parser import Parser
from pipeline.errors import UserError

DOES_NOT_FIT = 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError,
        prog="rlhf plan",
        description="Plan an experiment without loading a weight: memory of every stage by role,"
        " sequence length, tokens a second, what does not fit and what to change. Exit code 1"
        " where a stage does not fit.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "--gpu", metavar="NAME", help="h100, h200, b200, a100, a100-40, l40s, l4, rtx4090, rtx3090,"
        " mi300x or cpu; default: this machine's own",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", type=_count, default=1, metavar="N", help="processes, a device each (default: 1)"
    )
    parser.add_argument("--memory", type=_size, metavar="GIB", help="memory of each device, in GiB")
    parser.add_argument(
        "--fsdp2", action="store_true", help="weights split over the devices, not repeated on each"
    )
    parser.add_argument("--stage", metavar="NAME", help="this stage or policy alone")
    parser.add_argument("--json", action="store_true", help="print JSON, every phase in it")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of docs/scaling.md: 1B, 8B and 70B"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB above 0")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 1 where a stage does not fit.

    Raises:
        UserError: the config, the model's configuration or a device is not known.
    """
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.table:
        from pipeline.plan.tables import tables

        print(tables())
        return 0
    if arguments.config is None:
        raise UserError("--config FILE is missing; `rlhf plan --help` shows how")
    if arguments.fsdp2 and arguments.gpus == 1:
        raise UserError("--fsdp2: splits over several devices; give --gpus N")
    plan = _plan(arguments)
    if arguments.json:
        print(json.dumps(plan.as_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(plan.as_text())
    return 0 if plan.fits else DOES_NOT_FIT


def _plan(arguments: argparse.Namespace) -> Any:
    from pipeline.config import load_experiment
    from pipeline.output import quiet
    from pipeline.plan.devices import machine
    from pipeline.plan.planned import plan_of

    experiment = load_experiment(arguments.config, arguments.overrides)
    quiet.after_imports()
    known = [stage.name for stage in experiment.stages()]
    if arguments.stage is not None and arguments.stage not in known:
        raise UserError(f"--stage: {arguments.stage!r} is none of {', '.join(known)}")
    stages = None if arguments.stage is None else [arguments.stage]
    of = machine(arguments.gpu, arguments.gpus, arguments.memory)
    return plan_of(experiment, of, stages, arguments.fsdp2)
