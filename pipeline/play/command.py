"""`rlhf play`: type a prompt, see what each policy makes of it, its rewards and its KL."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.parser import Parser
from common.words import json_able
from pipeline.compare.wording import number, signed
from pipeline.errors import UserError
from pipeline.output.console import complain, say
from pipeline.output.policies import is_policy, policy_folder

if TYPE_CHECKING:  # they import torch
    from pipeline.config import Experiment
    from pipeline.data.records import Prompt
    from pipeline.play.players import Played, Player, Settings

COLDEST = 1e-3
Continue = Callable[["Prompt", "Settings"], list["Played"]]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError,
        prog="rlhf play",
        description="Continue prompts by several policies and show each completion's reward, gold "
        "score and KL. Prompts are typed (Ctrl-D ends), piped in a line each, or given by "
        "--prompt. Where the experiment's prompts are conversations, a prompt is what the user "
        "says in the model's chat template.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="POLICY",
        help="a policy of the experiment by its name (sft, ppo, …), a folder or a hub id; default: "
        "those that are finished. key=value is a setting that replaces the file's",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times"
    )
    parser.add_argument(
        "--samples", type=_count, default=1, metavar="N", help="completions each; default: 1"
    )
    parser.add_argument(
        "--temperature", type=_temperature, default=1.0, metavar="T",
        help="divides the logits of policy and reference, in KL too; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=_natural, default=0, metavar="N",
        help="of the first prompt, one more for each that follows; default: 0",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", action="store_true", help="show log π − log π_ref of each token, in nats"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line and completion")
    return parser


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _temperature(text: str) -> float:
    # Divided by less, logits leave float32, and KL with them; what is drawn is long the likeliest.
    with suppress(ValueError):
        if COLDEST <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {COLDEST:g} up")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: completions on stdout.

    Raises:
        UserError: a policy, the reward or a prompt that is not typed cannot be used.
    """
    arguments = _parser().parse_intermixed_args(argv)
    words = arguments.words
    if any(not text.strip() for text in arguments.prompt or ()):
        raise UserError("--prompt: is empty; write a text")
    for text in arguments.prompt or ():
        _check_text("--prompt", text)
    wanted = [word for word in words if "=" not in word]
    from pipeline.config import load_experiment
    from pipeline.output import quiet

    experiment = load_experiment(arguments.config, [word for word in words if "=" in word])
    quiet.after_imports()
    sources = _sources(experiment, wanted)
    with redirect_stdout(sys.stderr):  # some libraries greet
        continued, first = _ready(experiment, sources, arguments)
        talk = _converses(experiment)
    show = _as_json if arguments.json else _writer(arguments.tokens)
    typed = arguments.prompt is None and sys.stdin.isatty()
    given = arguments.prompt if arguments.prompt is not None else _typed(typed)
    for turn, text in enumerate(given):
        prompt: Any = [{"role": "user", "content": text}] if talk else text
        settings = replace(first, seed=(first.seed + turn) % 2**32)
        try:
            _check_text("the prompt", text)
            played = continued(prompt, settings)
        except UserError as error:
            if not typed:
                raise
            complain(f"error: {error}")
            continue
        show(text, played)


def _check_text(place: str, text: str) -> None:
    """Refuse bytes that are no UTF-8: Python holds them as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = repr(text[error.start : error.end])
        raise UserError(f"{place}: is not UTF-8 ({broken} at {error.start})") from None


def _typed(shown: bool) -> Iterator[str]:
    """The lines of stdin that are not blank; Ctrl-D, or Ctrl-C at an empty line, ends."""
    while True:
        try:
            if shown:
                print("prompt> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            line = ""
        except UnicodeDecodeError as error:
            raise UserError(f"the prompts on stdin: are not UTF-8 ({error})") from None
        if not line:
            if shown:
                print(file=sys.stderr)
            return
        if line.strip():
            yield line.rstrip("\n")


# --- What is played -------------------------------------------------------------------------------


def _finished(experiment: Experiment) -> dict[str, Path]:
    """Where each policy of the experiment lies, the reference first, or would."""
    from pipeline.compare import methods

    return {
        method.name: policy_folder(experiment.stage_dir(method.stage))
        for method in methods.named(experiment)
        if method.stage is not None
    }


def _sources(experiment: Experiment, wanted: Sequence[str]) -> dict[str, str]:
    """A policy's name to the folder or hub id that it is loaded from.

    Raises:
        UserError: a policy of the experiment is not finished, or named twice, or none is there.
    """

    own = _finished(experiment)
    elsewhere = experiment.compare.policies
    if not wanted:
        there = {name: str(folder) for name, folder in own.items() if is_policy(folder)}
        if not there and not elsewhere:
            raise UserError(
                f"{experiment.output_dir}: no policy is finished there; run `rlhf run` with this"
                " config, or name folders or hub ids"
            )
        return there | elsewhere
    sources: dict[str, str] = {}
    for name in wanted:
        if name in sources:
            raise UserError(f"{name}: is named twice; leave one out")
        if name in own and not is_policy(own[name]):
            raise UserError(f"{name}: {own[name]} is not there; run `rlhf {name}` first")
        sources[name] = str(own[name]) if name in own else elsewhere.get(name, name)
    return sources


def _converses(experiment: Experiment) -> bool:
    """True where the experiment's prompts are conversations."""
    data = experiment.data
    if data.prompts_name is None and _of_the_project(data.dataset_name):
        return False
    from pipeline.data.splits import load_data

    return not isinstance(load_data(experiment, labels=False).eval_prompts[0], str)


def _of_the_project(name: str) -> bool:
    return name == "toy" or name.startswith("embedded:")


def _ready(
    experiment: Experiment, sources: dict[str, str], arguments: argparse.Namespace
) -> tuple[Continue, Settings]:
    """What continues a prompt by every policy, each loaded once; and how."""
    from pipeline.lm.hardware import policy_dtype
    from pipeline.play.players import Settings, load_player, play
    from pipeline.stages.reward_sources import gold_reward, judge_is_proxy, proxy_reward

    proxy = proxy_reward(experiment)
    gold = proxy if judge_is_proxy(experiment) else gold_reward(experiment)
    section, model = experiment.generation, experiment.model
    dtype = policy_dtype(model)

    def loaded(name: str, source: str) -> Player:
        say(f"play: loading {name}")
        tokens = section.max_new_tokens
        try:
            return load_player(name, source, "play", dtype, tokens, model.trust_remote_code)
        except UserError as error:
            if Path(source).exists():
                raise
            named = ", ".join([*_finished(experiment), *experiment.compare.policies])
            raise UserError(f"{error}; policies of this experiment: {named}") from error

    base, folder = next(iter(_finished(experiment).items()))
    reference = loaded(base, str(folder)) if is_policy(folder) else None
    players = [
        reference if reference is not None and source == str(folder) else loaded(name, source)
        for name, source in sources.items()
    ]
    settings = Settings(
        arguments.samples,
        section.max_new_tokens,
        section.batch_size,
        arguments.temperature,
        arguments.seed,
    )

    def continued(prompt: Prompt, settings: Settings) -> list[Played]:
        made = [play(p, reference, prompt, settings, proxy, gold) for p in players]
        return [played for each in made for played in each]

    return continued, settings


# --- What is shown --------------------------------------------------------------------------------


def _as_json(prompt: str, played: Sequence[Played]) -> None:
    for each in played:
        line = {"given": prompt, **each.to_json()}
        print(json.dumps(json_able(line), ensure_ascii=False, allow_nan=False), flush=True)


def _writer(tokens: bool) -> Callable[[str, Sequence[Played]], None]:
    """What writes completions for people, their tokens' log-ratios too where asked for."""

    def write(prompt: str, played: Sequence[Played]) -> None:
        print(f"\n{_visible(prompt)}")
        told: set[str] = set()
        for each in played:
            print(f"\n{_heading(each)}")
            print(_folded(each.completion.text))
            if tokens and each.tokens:
                print(_folded("  ".join(_told(text, ratio) for text, ratio in each.tokens)))
            if each.note and each.policy not in told:
                told.add(each.policy)
                print(_folded(f"(no KL: {each.note})"))
        print(flush=True)

    return write


def _heading(played: Played) -> str:
    """The policy and its numbers on one line."""
    numbers = f"reward {signed(played.reward)}"
    if played.parts:
        parts = (f"{name} {signed(value)}" for name, value in played.parts.items())
        numbers += f" ({', '.join(parts)})"
    numbers += f" · gold {signed(played.gold)}"
    if played.kl is not None:
        numbers += f" · KL {number(played.kl)} nats · log-ratio {signed(played.log_ratio)}"
    count = len(played.completion.completion_ids)
    end = "ended" if played.completion.ended else "cut"
    return f"{_visible(played.policy)}: {numbers} · {count} tokens, {end}"


def _told(token: str, ratio: float) -> str:
    """A token and its log-ratio, which folding keeps together."""
    return f"{token!r} {signed(ratio)}".replace(" ", "\u00a0")


def _folded(text: str) -> str:
    width = max(40, shutil.get_terminal_size().columns - 4)
    lines = [textwrap.fill(line, width) for line in _visible(text).split("\n")]
    return textwrap.indent("\n".join(lines), "  ")


def _visible(text: str) -> str:
    """Text without control characters, which could do anything to a terminal, written out."""
    shown = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
    return shown.sub(lambda found: repr(found.group())[1:-1], text)
