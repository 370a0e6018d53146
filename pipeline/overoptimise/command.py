"""`rlhf overoptimise`: proxy and gold as optimisation goes on, by best-of-n and by PPO."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.parser import Parser
from common.words import clock
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Experiment
    from pipeline.overoptimise.work import Work


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError,
        prog="rlhf overoptimise",
        description="Optimise proxies that learned from few and many ratings, alone and as"
        " ensembles, by best-of-n and by PPO, and ask the gold judge along the way (Gao et al."
        " 2022; Coste et al. 2023). SFT and the rewards are made first where they are not there."
        " Every piece is kept: a run that was stopped goes on where it was.",
        epilog="The config's section overoptimise says how much; 'overoptimise.betas=[]' is"
        " best-of-n alone. The page is <output_dir>/overoptimise/report/index.html, its numbers"
        " results.json beside it.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    return parser


@dataclass(frozen=True)
class Piece:
    """Something to do: what, about how many seconds on two cores, and whether it is done."""

    name: str
    cost: float
    done: bool
    do: Callable[[], Any]


# Seconds on two cores with the quickstart's models; they only divide the time that is left.
_STEP, _SAMPLE, _SCORE, _EPISODE = 0.4, 0.02, 0.004, 0.13


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is not done yet, write the page and print where it is.

    Raises:
        UserError: the config has no proxies to train, or fewer texts than one is to learn from.
    """
    arguments = _parser().parse_intermixed_args(argv)
    from pipeline.config import load_experiment

    experiment = load_experiment(arguments.config, arguments.overrides)
    _check(experiment)
    from pipeline import runner
    from pipeline.output import quiet
    from pipeline.overoptimise.work import Work

    quiet.after_imports()
    work = Work(experiment)
    work.check_sizes()
    for stage in ("sft", "reward"):
        runner.run(experiment, stage)
    with runner.lock(experiment.output_dir):
        _run(work)


def _check(experiment: Experiment) -> None:
    """UserError where no proxies can be trained on rated texts.

    Where they can there is a judge of its own: the one that `reward.gold` names, or one that
    learns from the other half of the ratings.
    """
    from pipeline.config import TRAINED_HERE

    source = experiment.reward.source
    if source != TRAINED_HERE:
        raise UserError(
            f"reward.source: overoptimise trains its proxies on few and many ratings, which"
            f" {experiment.reward.shown('source')} is not; set reward.source={TRAINED_HERE}"
        )


def _run(work: Work) -> None:
    from pipeline.output.console import say
    from pipeline.overoptimise import page

    todo = pieces(work)
    left = [piece for piece in todo if not piece.done]
    say(f"overoptimise: {len(todo)} pieces, {len(todo) - len(left)} of them there already")
    start, done, total = time.monotonic(), 0.0, sum(piece.cost for piece in left)
    for piece in todo:
        piece.do()  # one that is done is only looked at: whether it was made with these settings
        if piece.done:
            continue
        done += piece.cost
        spent = time.monotonic() - start
        rest = spent / done * (total - done)
        say(f"overoptimise: {piece.name} done, {clock(spent)} so far, about {clock(rest)} left")
    say(f"overoptimise: {page.write(work)}")


def pieces(work: Work) -> list[Piece]:
    """All of the work, in order."""
    from pipeline.overoptimise.grid import proxies
    from pipeline.overoptimise.work import LEAST_STEPS

    section, data = work.section, work.data
    reward = work.experiment.trainer_args("reward")
    batch = reward.get("per_device_train_batch_size", 32)
    samples = section.samples * len(data.eval_prompts)
    made: list[Piece] = []
    for proxy in proxies(section):
        texts = len(work.texts(proxy))
        steps = max(1.3 * LEAST_STEPS, reward.get("num_train_epochs", 2) * texts / batch)
        made.append(
            Piece(f"proxy {proxy.name}", _STEP * steps, work.has(proxy), _bind(work.train, proxy))
        )
    made.append(Piece("sampling", _SAMPLE * samples, work.has_samples(), work.sample))
    for proxy in [*proxies(section), None]:
        name = "gold" if proxy is None else f"proxy {proxy.name}"
        cost, there = _SCORE * samples, work.has_scores(proxy)
        made.append(Piece(f"scoring by {name}", cost, there, _bind(work.scores, proxy)))
    for size in section.ppo_sizes if section.betas else ():
        for beta in section.betas:
            for how in section.ppo_rewards:
                cost = _EPISODE * section.episodes
                run = (size, how, beta)
                name = f"PPO {size}-{how} at β = {beta:g}"
                made.append(Piece(name, cost, work.has_run(*run), _bind(work.run, *run)))
    return made


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)
