"""The command line of classic_rl: ``python -m classic_rl <algorithm> --env … --seed …``.

``classic-rl`` is the same where the distribution of that name is installed.

The tabular algorithms are in `classic_rl.tabular.command`, the deep ones, which need torch, in
`classic_rl.deep.command`. Nothing heavy is imported before the command's words are understood.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence

from classic_rl.errors import ProblemError
from classic_rl.tabular import command as tabular
from classic_rl.tabular.names import COMMANDS as TABULAR

# The name that the person called it by: `classic-rl` is the same program, installed.
INSTALLED = "classic-rl"
PROG = INSTALLED if os.path.basename(sys.argv[0]) == INSTALLED else "python -m classic_rl"
INTERRUPTED = 130
EXAMPLES = (
    "value-iteration --env GridWorld3x4 --gamma 0.9",
    "q-learning --env FrozenLake-v1 --seeds 0 1 2",
    "q-learning --env FrozenLake-v1 --env-arg is_slippery=false",
    "sarsa --env CliffWalking-v1 --sweep alpha=0.1,0.3,0.5 gamma=0.9,1",
    "soft-value-iteration --env TokenMDP --beta 0.5",
    "ppo --env CartPole-v1 --seed 3",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except ProblemError as error:
        # One line, whatever it quotes: large spaces print over several.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command begins anew", file=sys.stderr)
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    if not words:
        raise ProblemError(f"no algorithm given; `{PROG} --help` lists them")
    name = words[0]
    if name in TABULAR:
        return tabular.main(words, PROG)
    from classic_rl.deep import command

    if name in ("-h", "--help"):
        print(overview(command.COMMANDS))
        return 0
    if name in command.COMMANDS:
        return command.main(words, PROG)
    known = [*TABULAR, *command.COMMANDS]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; `{PROG} --help` lists them"
    raise ProblemError(f"{name}: no such algorithm{hint}")


def overview(deep: Mapping[str, str]) -> str:
    """All commands, a line each. ``deep``: those that need torch."""
    lines = [f"usage: {PROG} <algorithm> [--env ID] [options]", ""]
    lines += ["Reinforcement learning from scratch.", ""]
    for head, commands in (("tabular", TABULAR), ("deep", deep)):
        lines += [f"{head}:", *(f"  {name:<27}{what}" for name, what in commands.items()), ""]
    lines += ["examples:", *(f"  {PROG} {example}" for example in EXAMPLES), ""]
    lines += [f"`{PROG} <algorithm> --help` explains its options."]
    return "\n".join(lines)
