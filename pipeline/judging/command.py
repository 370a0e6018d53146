"""`rlhf evaluate-reward`: how far each reward can be trusted, against the people it stands for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.parser import Parser
from pipeline.errors import UserError
from pipeline.judging import PEOPLE

_TAKEN = ("proxy", "gold", PEOPLE)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError,
        prog="rlhf evaluate-reward",
        description="Judge the experiment's proxy and gold rewards, and any others, on rated texts"
        " that neither was trained on: a page with pictures, and the numbers as JSON.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "--reward", action="append", default=[], type=_named, metavar="NAME=SOURCE",
        help="a further reward: what reward.source takes (a folder, a hub id, file.py:function, "
        "rules:vader), or '{source: …, positive_labels: …}'; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="default: evaluate-reward in the experiment's output folder",
    )  # fmt: skip
    parser.add_argument(
        "--most", type=_count, default=1000, metavar="N",
        help="texts of each other domain (default: 1000)",
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    return parser


def _named(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name.strip() and equals and source.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SOURCE")
    return name.strip(), source.strip()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: a line a reward on stdout, page, pictures and JSON in the output folder.

    Raises:
        UserError: the config, the data or a reward cannot be used.
    """
    arguments = _parser().parse_intermixed_args(argv)
    named = _rewards(arguments.reward)
    if arguments.output and arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"--output: {arguments.output} is a file; give a folder")
    from pipeline.config import load_experiment
    from pipeline.output import quiet

    experiment = load_experiment(arguments.config, arguments.overrides)
    quiet.after_imports()
    folder = arguments.output or experiment.output_dir / "evaluate-reward"
    _evaluate(experiment, named, folder, arguments.most)


def _rewards(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, source in given:
        if name in named or name in _TAKEN:
            taken = "is given twice" if name in named else "has a meaning already"
            raise UserError(f"--reward {name}: the name {taken}; give another")
        named[name] = source
    return named


def _evaluate(experiment: Any, named: dict[str, str], folder: Path, most: int) -> None:
    from common import files
    from pipeline.judging import page
    from pipeline.judging.account import account_of
    from pipeline.judging.pictures import pictures
    from pipeline.output.console import say

    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        account = account_of(experiment, named, most)
        files.write_json(folder / "evaluation.json", account)
        drawn = pictures(account)
        for picture in drawn.values():
            files.write_bytes(folder / f"{picture.name}.png", picture.png)
        files.write_text(folder / "index.html", page.render(account, drawn))
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written ({error.strerror}); name another folder"
        ) from None
    for line in page.lines(account):
        print(line)
    say(f"evaluate-reward: {folder / 'index.html'} and evaluation.json")
