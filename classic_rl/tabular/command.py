"""The tabular half of ``python -m classic_rl``: the options of its commands.

This module reads the words of the command line. `classic_rl.tabular.experiments` does the work; it
needs numpy, gymnasium and matplotlib, and is imported only when the words are correct.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from classic_rl.errors import ProblemError
from classic_rl.folders import RUNS
from classic_rl.tabular.names import COMMANDS, CONTROL, PLANNING, PREDICTION, SWEPT
from classic_rl.tabular.tuned import (
    MONTE_CARLO_ALPHA,
    PREDICTION_ALPHA,
    PREDICTION_STEPS,
    Rate,
    listing,
)
from common.parser import Parser


def main(argv: Sequence[str], prog: str = "python -m classic_rl") -> int:
    """Run the tabular command that is the first word of ``argv``; return the exit status.

    Raises:
        ProblemError: for every mistake of the user.
    """
    name, *words = argv
    arguments = parser(name, prog).parse_args(words)
    arguments.algorithm = name
    _check(arguments)
    from classic_rl.tabular import experiments

    experiments.run(arguments)
    return 0


def parser(name: str, prog: str) -> argparse.ArgumentParser:
    """The options of a command."""
    made = Parser(
        raises=ProblemError,
        prog=f"{prog} {name}",
        description=f"{COMMANDS[name][:1].upper()}{COMMANDS[name][1:]}.",
        epilog=_epilog(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_problem(made, "TokenMDP" if name == "soft-value-iteration" else "FrozenLake-v1")
    if name in PLANNING:
        add = made.add_argument_group("planning").add_argument
        if name != "policy-evaluation":
            add("--tolerance", type=_positive, metavar="X", default=1e-8, help=_TOLERANCE)
        if name == "soft-value-iteration":
            add("--beta", type=_positive, metavar="B", default=1.0, help=_BETA)
    else:
        _add_learning(made, name)
    if name in PREDICTION or name == "policy-evaluation":
        made.add_argument(
            "--policy",
            choices=("uniform", "optimal"),
            default="uniform",
            help="the policy to value: every action as likely, or the best one (default: uniform)",
        )
    made.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"folder to write (default: {RUNS}/{name}-ID)"
    )
    made.add_argument("--no-pictures", action="store_true", help="write results.json alone")
    return made


def _epilog(name: str) -> str:
    if name in CONTROL:
        head = "tuned settings (A:B is a line over the steps; with --episodes it is 0.1):"
        return "\n".join([head, *listing()])
    lines = [line.partition(", alpha")[0] for line in listing()]
    return "\n".join(["tuned discounts:", *lines])


_TOLERANCE = "largest Bellman error to leave, in units of reward (default: 1e-8)"
_BETA = "price of leaving the reference policy, in reward per nat of KL (default: 1)"
_RATE = "a number, or START:END[:STEPS], a straight line over so many steps (all of --steps)"


def _add_problem(made: argparse.ArgumentParser, env: str) -> None:
    add = made.add_argument_group("problem").add_argument
    add("--env", metavar="ID", default=env, help=f"a gymnasium id or one of ours (default: {env})")
    add(
        "--env-arg",
        metavar="KEY=VALUE",
        type=_keyword,
        action="append",
        default=[],
        help="an argument of the environment, such as is_slippery=false; can be repeated",
    )
    add(
        "--gamma",
        type=_gamma,
        metavar="G",
        help="discount a step, in (0, 1] (default: tuned, below)",
    )
    add(
        "--max-steps",
        type=_count,
        metavar="N",
        help="end episodes after N steps (default: the environment's time limit, else 1000)",
    )
    add(
        "--eval-episodes",
        type=_count,
        metavar="N",
        default=1000,
        help="episodes to play with each seed's finished policy (default: 1000)",
    )
    seeds = made.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed", type=_seed, metavar="N", help="of everything random, a whole number (default: 0)"
    )
    seeds.add_argument(
        "--seeds", type=_seed, metavar="N", nargs="+", help="repeat the run with each of these"
    )


def _add_learning(made: argparse.ArgumentParser, name: str) -> None:
    group = made.add_argument_group("learning")
    add = group.add_argument
    length = group.add_mutually_exclusive_group()
    steps = "tuned, below" if name in CONTROL else f"{PREDICTION_STEPS:,}"
    length.add_argument(
        "--steps",
        type=_count,
        metavar="N",
        help=f"environment steps to learn from, for each seed (default: {steps})",
    )
    length.add_argument(
        "--episodes", type=_count, metavar="N", help="learn from N episodes instead"
    )
    if name.startswith("monte-carlo"):
        default = MONTE_CARLO_ALPHA if name in CONTROL else "average"
        words = f"{_RATE}, or average: 1 / visits (default: {default})"
        add("--alpha", type=_alpha, metavar="A", help=f"step size: {words}")
    else:
        default = "tuned, below" if name in CONTROL else PREDICTION_ALPHA
        add("--alpha", type=_rate, metavar="A", help=f"step size: {_RATE} (default: {default})")
    add(
        "--initial",
        type=_number,
        metavar="X",
        help="first value of every table entry, in units of return (default: 0, or as below)",
    )
    if name == "td":
        kind = group.add_mutually_exclusive_group()
        kind.add_argument(
            "--n", type=_count, metavar="N", help="n-step TD: rewards in each target (default: 1)"
        )
        kind.add_argument(
            "--lam", type=_fraction, metavar="L", help="TD(λ): decay of traces, 0 to 1"
        )
    if name not in CONTROL:
        return
    add(
        "--explore",
        choices=("greedy", "epsilon", "softmax", "ucb"),
        default="epsilon",
        help="how actions are tried while learning (default: epsilon)",
    )
    add(
        "--epsilon",
        type=_rate,
        metavar="E",
        help=f"probability of a random action: {_RATE} (default: tuned, below)",
    )
    add(
        "--temperature",
        type=_rate,
        metavar="T",
        help="of --explore softmax, in units of return, as --epsilon (default: 0.1)",
    )
    add(
        "--confidence",
        type=_number,
        metavar="C",
        help="of --explore ucb: width of the bounds in units of return (default: 1)",
    )
    add(
        "--sweep",
        metavar="NAME=X,Y",
        nargs="+",
        type=_sweep,
        help=f"learn with every value of one or two of {', '.join(SWEPT)}, and compare",
    )


def _check(arguments: argparse.Namespace) -> None:
    """Check what the parser cannot: settings that need or exclude each other."""
    names = [name for name, _ in arguments.env_arg]
    if len(set(names)) < len(names):
        raise ProblemError(f"--env-arg: {max(names, key=names.count)} is there twice")
    arguments.seeds = arguments.seeds or [arguments.seed or 0]
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise ProblemError("--seeds: a seed is there twice")
    if arguments.algorithm not in CONTROL:
        return
    needs = {"epsilon": "epsilon", "temperature": "softmax", "confidence": "ucb"}
    swept = [name for name, _ in arguments.sweep or []]
    for option, rule in needs.items():
        given = getattr(arguments, option) is not None or option in swept
        if given and arguments.explore != rule:
            raise ProblemError(f"{option} is used by --explore {rule} only")
    if len(swept) > 2 or len(set(swept)) < len(swept):
        raise ProblemError("--sweep: give one or two different settings")
    for name in swept:
        if getattr(arguments, name) is not None:
            raise ProblemError(f"--{name} is given beside --sweep {name}: keep one of them")


def _fail(text: str, wanted: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")


def _float(text: str, wanted: str) -> float:
    try:
        number = float(text)
    except ValueError:
        _fail(text, wanted)
    return number if math.isfinite(number) else _fail(text, wanted)


def _whole(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        wanted = f"a whole number of at least {least}"
        try:
            number = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            _fail(text, wanted)
        return number if number >= least else _fail(text, wanted)

    return convert


_seed, _count = _whole(0), _whole(1)


def _number(text: str) -> float:
    return _float(text, "a number")


def _positive(text: str) -> float:
    wanted = "a number above 0"
    number = _float(text, wanted)
    return number if number > 0 else _fail(text, wanted)


def _gamma(text: str) -> float:
    wanted = "a discount in (0, 1]"
    number = _float(text, wanted)
    return number if 0 < number <= 1 else _fail(text, wanted)


def _fraction(text: str) -> float:
    wanted = "a number from 0 to 1"
    number = _float(text, wanted)
    return number if 0 <= number <= 1 else _fail(text, wanted)


def _rate(text: str) -> Rate:
    wanted = "a number or START:END[:STEPS]"
    parts = [_float(part, wanted) for part in text.split(":")]
    if len(parts) > 3 or (len(parts) == 3 and parts[2] < 1):
        return _fail(text, f"{wanted}, STEPS at least 1")
    return Rate(*parts)


def _alpha(text: str) -> Rate | str:
    return text if text == "average" else _rate(text)


def _keyword(text: str) -> tuple[str, Any]:
    """``key=value`` with a Python literal, or text where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        _fail(text, "KEY=VALUE")
    if value.lower() in ("true", "false", "none"):
        value = value.capitalize()
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _sweep(text: str) -> tuple[str, list[float]]:
    name, equals, values = text.partition("=")
    if not equals:
        _fail(text, "NAME=X,Y,…, such as alpha=0.1,0.3")
    if name not in SWEPT:
        near = difflib.get_close_matches(name, SWEPT, n=1)
        raise argparse.ArgumentTypeError(
            f"{name!r} cannot be swept" + (f"; did you mean {near[0]}?" if near else f": {SWEPT}")
        )
    numbers = [_float(value, "a number") for value in values.split(",")]
    if name == "gamma":
        numbers = [_gamma(value) for value in values.split(",")]
    return name, numbers
