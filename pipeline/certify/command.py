"""`rlhf certify`: train the methods on small problems and hold them against the optimum."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.parser import Parser
from pipeline.errors import UserError

METHODS = (
    *("ppo", "dpo", "dpo-soft", "rebel", "ipo", "kto", "rloo", "grpo", "grpo-k3"),
    *("rejection", "reweighted"),
)
QUICK = 0.25
LEAST_KL, MOST_KL = 0.5, 2.0


def _parser() -> argparse.ArgumentParser:

    parser = Parser(
        raises=UserError,
        prog="rlhf certify",
        description="Train each method on language models small enough to list every completion, "
        "and hold it against the exact optimum. Finished runs are kept and reused.",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--seeds", nargs="+", type=_seed, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4"
    )
    parser.add_argument(
        "--beta", type=_positive, default=0.6, help="reward per nat of KL; default: 0.6"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/certificate"), metavar="DIR",
        help="default: runs/certificate",
    )  # fmt: skip
    parser.add_argument(
        "--switches",
        nargs="*",
        metavar="NAME",
        help="PPO with one of its switches changed at a time; all of them, or those named",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the steps: a look, not a certificate"
    )
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2³² − 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: a table on stdout, JSON and a picture in the output folder."""
    arguments = _parser().parse_args(argv)
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"--output: {arguments.output} is a file; give a folder")
    if "kto" in arguments.methods and arguments.beta > 1 and arguments.switches is None:
        raise UserError("--methods kto: where it ends is known for --beta up to 1; leave it out")
    from pipeline.certify.methods import METHODS as KNOWN
    from pipeline.certify.switches import SWITCHES
    from pipeline.output import quiet

    quiet.after_imports()
    if arguments.switches is not None:
        name, methods = "switches", [KNOWN["ppo"], *_chosen(SWITCHES, arguments.switches)]
    else:
        name, methods = "methods", [KNOWN[method] for method in arguments.methods]
    _study(name, methods, arguments)


def _chosen(switches: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The switches of these names, in their order; all of them where none is named."""
    short = {name.removeprefix("ppo-"): switch for name, switch in switches.items()}
    for name in names:
        if name not in short:
            raise UserError(f"--switches: there is no {name!r}; choose from {', '.join(short)}")
    return [switch for name, switch in short.items() if not names or name in names]


def _study(name: str, methods: Sequence, arguments: argparse.Namespace) -> None:
    from classic_rl.results import write_bytes
    from common.files import write_json
    from pipeline.certify import figures, study
    from pipeline.output.console import say
    from pipeline.report.plotting import png

    seeds, folder = list(dict.fromkeys(arguments.seeds)), arguments.output
    effort = QUICK if arguments.quick else 1.0
    results = study.run_all(methods, seeds, arguments.beta, effort, folder)
    write_json(folder / f"{name}.json", results)
    picture = figures.convergence(methods, results)
    assert picture is not None
    write_bytes(folder / f"{name}.png", png(picture))
    print(study.table(methods, results))
    print()
    for method in methods:
        print(f"{method.title}: {method.why}.")
    far = [r["seed"] for r in results if not LEAST_KL <= r["target_kl"] <= MOST_KL]
    if far:
        say(
            f"note: π* is outside {LEAST_KL} to {MOST_KL} nats from the reference for seeds "
            f"{', '.join(map(str, sorted(set(far))))}; --beta 0.6 is inside for seeds 0 to 9"
        )
    say(f"certify: {folder / name}.json and .png")
