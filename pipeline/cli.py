"""The command line: `rlhf <stage> --config FILE [section.key=value ...]`."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from common.parser import Parser
from common.progress import close_all
from pipeline.config import stages
from pipeline.errors import LostProcess, UserError
from pipeline.launch import children
from pipeline.launch.settings import Launch, add_options, read_settings
from pipeline.launched import launched
from pipeline.output import quiet
from pipeline.output.console import complain

# The heavy libraries take seconds to import, so they are imported after the arguments are read:
# `rlhf --help` answers at once.

# Commands with arguments of their own: what they do, and the module with their `main`.
TOOLS = {
    "certify": ("hold the trainers against an exactly known optimum", "pipeline.certify.command"),
    "label": ("label preference pairs with a judge model or a reward", "pipeline.label.command"),
    "evaluate-reward": (
        "judge the rewards against the people they stand for",
        "pipeline.judging.command",
    ),
    "overoptimise": (
        "proxy and gold as optimisation goes on: best-of-n, PPO, ensembles",
        "pipeline.overoptimise.command",
    ),
    "push": ("send finished models, rewards, the report to the hub", "pipeline.sharing.command"),
    "play": ("what each policy makes of a prompt, with rewards and KL", "pipeline.play.command"),
    "plan": ("memory, length and speed of an experiment before it is run", "pipeline.plan.command"),
    "sweep": ("policies × β × seeds, side by side, on one picture", "pipeline.sweep.command"),
    "inspect": ("a page that shows a PPO rollout token by token", "pipeline.report.inspection"),
}
PREVIEW = "pipeline.preview"
INTERRUPTED = children.INTERRUPTED


def commands() -> dict[str, str]:
    """Every command that takes a config, and what it does."""
    return {
        "run": "all stages in order, then the report",
        **{stage.name: stage.does for stage in stages.stages_with()},
        "report": "write the report from a finished comparison",
        "data": "show what is read of the data files, as the model sees it",
    }


def _epilog() -> str:
    """What ``--help`` says below the options."""
    return "\n".join(
        [
            "commands:",
            *(f"  {name:<10}{does}" for name, does in commands().items()),
            "  <policy>  train the policy of this name in the config's `policies`",
            "",
            "commands with arguments of their own (`rlhf <command> --help`):",
            *(f"  {name:<17}{does}" for name, (does, _) in TOOLS.items()),
            "",
            "A stage whose finished output for the same inputs is there is skipped; an interrupted",
            "one resumes from its last checkpoint when the same command is run again.",
            "",
            "examples:",
            "  rlhf run --config configs/tiny.yaml",
            "  rlhf run --config configs/quickstart.yaml seed=1 output_dir=runs/seed-1",
            "  rlhf sft --config configs/quickstart.yaml model.model_name_or_path=gpt2",
            "  rlhf ppo --config configs/quickstart.yaml ppo.learning_rate=1e-5 --overwrite",
            "  rlhf compare --config configs/quickstart.yaml --policy theirs=path/to/checkpoint",
            "  rlhf run --config configs/quickstart.yaml --accelerate configs/accelerate/ddp.yaml",
            "",
            "environment: RLHF_CACHE (folder for fetched models and data), RLHF_VERBOSE=1 (the",
            "libraries' own output), WANDB_API_KEY, HF_TOKEN, HF_HUB_OFFLINE=1",
        ]
    )


def _version() -> str:
    """The installed version, or "checkout" when run from one that is not installed."""
    try:
        return importlib.metadata.version("rlhf-pipeline")
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


def _parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = Parser(
        raises=UserError,
        prog="rlhf",
        description="SFT, reward model, PPO, DPO and their honest comparison.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="command", help="see below")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    parser.add_argument(
        "--policy", action="append", default=[], type=_named, metavar="NAME=PATH",
        help="with compare or run: measure this checkpoint too, a folder, an adapter's folder or a"
        " hub id (compare.policies); may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove and redo the stage and what was made from it (with `run`: only stages that"
        " another config made)",
    )
    add_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    return parser


def _named(text: str) -> str:
    """A checkpoint from elsewhere as the setting that it is."""
    name, equals, path = text.partition("=")
    if not (name.strip() and equals and path.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    if "." in name or "[" in name:
        raise argparse.ArgumentTypeError(
            f"{name!r}: such a name is for the file; leave out the dot"
        )
    return f"compare.policies.{name.strip()}={json.dumps(path.strip())}"


def _check_command(command: str, policies: Mapping[str, str]) -> None:
    """UserError for what is neither a command nor one of these policies, names and methods."""
    known = ["run", *stages.stage_names(policies), "report", "data"]
    if command not in known:
        near = difflib.get_close_matches(command, [*known, *TOOLS], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        choices = ", ".join(known)
        raise UserError(f"invalid choice: {command!r} (choose from {choices}){hint}")


def _interrupt(signum: int, frame: object) -> NoReturn:
    """SIGTERM ends a run as Ctrl-C does."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 where a part of a sweep failed; 2 for a user's mistake; 75 where another process is lost
    and the same command resumes; 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if launched():
        children.end_with_parent()
    try:
        if words and words[0] in TOOLS:
            signal.signal(signal.SIGTERM, _interrupt)
            quiet.before_imports()
            return importlib.import_module(TOOLS[words[0]][1]).main(words[1:]) or 0
        arguments = _parser().parse_intermixed_args(words)
        signal.signal(signal.SIGTERM, _interrupt)
        quiet.before_imports()
        from pipeline.config import load_experiment
        from pipeline.runner import run

        if not arguments.config.exists():
            _check_command(arguments.command, stages.DEFAULT_POLICIES)
        if arguments.policy and arguments.command not in ("compare", "run"):
            raise UserError("--policy: is for compare and run; leave it out")
        given = [*arguments.overrides, *arguments.policy]
        launch = read_settings(arguments)
        if launch is not None:
            return _start(arguments, launch, given)
        experiment = load_experiment(arguments.config, given)
        _check_command(arguments.command, experiment.methods())
        if arguments.command == "data":
            importlib.import_module(PREVIEW).show(experiment)
        else:
            run(experiment, arguments.command, overwrite=arguments.overwrite)
    except LostProcess as error:
        if not launched():  # else the launcher tells, which knows more
            complain(f"error: {error}")
        return children.LOST
    except UserError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        why = "stopped by the launcher, maybe as another process ended" if elastic else ""
        if not launched():
            complain(f"{why or 'interrupted'}; run the same command to resume")
        return INTERRUPTED
    finally:
        close_all()
    return 0


def _start(arguments: argparse.Namespace, launch: Launch, given: Sequence[str]) -> int:
    """Have accelerate start the processes of a command, and return its exit code."""
    from pipeline.config import load_experiment
    from pipeline.launch import command as launcher

    with launcher.as_one_of(launch.processes):
        experiment = load_experiment(arguments.config, given)
    name = arguments.command
    _check_command(name, experiment.methods())
    if name == "data":
        raise UserError("data: runs in one process; leave --accelerate out")
    words = ["--config", str(arguments.config), *given]
    return launcher.launch(experiment, name, launch, words, arguments.overwrite)
