"""`rlhf label`: preference pairs labelled by a judge model or by a reward (RLAIF)."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.parser import Parser
from pipeline.errors import UserError

if TYPE_CHECKING:  # they import torch
    from pipeline.config import Experiment
    from pipeline.label.labelling import Label, Labelled, Labeller
    from reward_models import RewardFunction


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError,
        prog="rlhf label",
        description="Label preference pairs with a language model as a judge, or with any reward: "
        "the better of two answers becomes `chosen`, and `probability` says how sure it is. The "
        "file is one that data.preferences_name reads. An interrupted run goes on when the same "
        "command is run again.",
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--judge", metavar="MODEL",
        help="a causal language model: a folder, a hub id or embedded:smollm2-135m-instruct",
    )  # fmt: skip
    who.add_argument(
        "--reward", metavar="SOURCE",
        help="a reward as reward.source takes it; probability is σ of the difference",
    )  # fmt: skip
    who.add_argument(
        "--config", type=Path, metavar="FILE", help="the reward of an experiment, with its settings"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the config's"
    )
    parser.add_argument(
        "--criterion", metavar="TEXT", help="what makes an answer better; for a judge"
    )
    parser.add_argument(
        "--pairs", metavar="FILE",
        help="rows of prompt and completions (two), or of prompt, chosen and rejected; with "
        "--config the default is data.preferences_name",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument(
        "--sampled", action="store_true",
        help="draw who is chosen by the probability, instead of taking the likelier: DPO on "
        "such pairs has PPO's optimum for the reward",
    )  # fmt: skip
    parser.add_argument("--seed", type=_natural, default=0, help="of these draws; default: 0")
    parser.add_argument(
        "--batch-size", type=_positive, default=8, metavar="N", help="pairs at once; default: 8"
    )
    return parser


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: the labelled file, and a summary on stdout."""
    arguments = _parser().parse_intermixed_args(argv)
    _check(arguments)
    from pipeline.config import load_experiment
    from pipeline.label.labelling import label_file, read_unlabelled
    from pipeline.output import quiet

    quiet.after_imports()
    experiment = None
    if arguments.config is not None:
        experiment = load_experiment(arguments.config, arguments.overrides)
    name, key = arguments.pairs, "--pairs"
    if name is None:
        name = experiment.data.preferences_name if experiment else None
        key = "data.preferences_name"
    if name is None:
        raise UserError("--pairs: there is nothing to label; name a file of pairs")
    pairs, labelled_before = read_unlabelled(name, key)
    labeller, described = _labeller(arguments, experiment)
    done = label_file(
        pairs,
        labeller,
        arguments.output,
        described=described,
        batch_size=arguments.batch_size,
        sampled=arguments.sampled,
        seed=arguments.seed,
    )
    print(f"{len(pairs):,} pairs labelled: {arguments.output}")
    for line in _summary(done, labelled_before):
        print(line)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.judge is not None and not (arguments.criterion or "").strip():
        raise UserError("--criterion: say what makes an answer better; a judge needs it")
    if arguments.judge is None and arguments.criterion is not None:
        raise UserError("--criterion: is for a --judge, and a reward has its own; leave it out")
    if arguments.config is None and arguments.overrides:
        raise UserError(f"{arguments.overrides[0]}: settings are for a --config; leave it out")
    if arguments.output.suffix != ".jsonl":
        raise UserError(
            f"--output: {arguments.output} must end with .jsonl, which it is written as"
        )
    _check_writable(arguments.output)


def _check_writable(output: Path) -> None:
    """Before a reward is loaded: is there nothing yet, and can the file be written there?"""
    from pipeline.label.labelling import part_of

    part = part_of(output)
    try:
        if output.exists():
            raise UserError(f"--output: {output} is there already; remove it, or name another file")
        output.parent.mkdir(parents=True, exist_ok=True)
        begun = part.exists()
        part.open("ab").close()
        if not begun:
            part.unlink()
    except OSError as error:
        raise UserError(
            f"--output: {output}: cannot be written ({error.strerror}); name another file"
        ) from None


def _labeller(
    arguments: argparse.Namespace, experiment: Experiment | None
) -> tuple[Labeller, dict[str, Any]]:
    """What labels, and what decides its labels."""
    from pipeline.config.content import content_hash
    from pipeline.lm.hardware import best_device
    from reward_models import RewardError, load_reward

    if arguments.judge is not None:
        return _judge(arguments)
    if experiment is not None:
        from pipeline.stages.reward_sources import proxy_reward

        described = _made_by(experiment)
        return _by_reward(proxy_reward(experiment)), described
    try:
        reward = load_reward(arguments.reward, device=best_device())
    except RewardError as error:
        raise UserError(f"--{error}") from error
    described = {"reward": arguments.reward, "content": content_hash(arguments.reward)}
    return _by_reward(reward), described


def _made_by(experiment: Experiment) -> dict[str, Any]:
    """What decides the labels of an experiment's reward.

    Raises:
        UserError: What is trained or measured for it is of another config, or not finished.
    """
    from pipeline.config.content import content_hash
    from pipeline.planning import in_place
    from pipeline.provenance import fingerprint, stage_inputs
    from pipeline.stages.reward_scale import scale_file
    from pipeline.stages.reward_sources import folders_of, trained_source

    scaled = any(part.normalize for part in experiment.reward.parts("source"))
    if trained_source(experiment, "proxy") is None and not scaled:
        inputs = stage_inputs(experiment)["reward"]
        return {"reward": fingerprint(inputs), "content": inputs["content"]}
    step = in_place(experiment, "reward")
    folder = experiment.stage_dir("reward")
    if step.action != "skip":
        raise UserError(f"{folder}: is not finished; run `rlhf reward` with this config")
    # The same config may have been trained anew, to other weights.
    made = [*folders_of(experiment, "proxy"), scale_file(experiment)]
    hashes = {path.name: content_hash(str(path.absolute())) for path in made}
    content = step.inputs["content"]
    return {"reward": step.fingerprint, "content": content, "trained_reward": hashes}


def _judge(arguments: argparse.Namespace) -> tuple[Labeller, dict[str, Any]]:
    from pipeline.config import ModelSection
    from pipeline.config.content import content_hash
    from pipeline.label.labelling import Label, verdict_of
    from pipeline.lm.hardware import best_device, compute_dtype
    from pipeline.lm.models import load_base
    from reward_models import RewardError
    from reward_models.judge import QUESTION, Judge

    section = ModelSection(model_name_or_path=arguments.judge)
    try:
        model, tokenizer = load_base(section)
    except UserError as error:
        reason = str(error).removeprefix("model.model_name_or_path: ")
        raise UserError(f"--judge: {reason}") from error
    model: Any = model.to(device=best_device(), dtype=compute_dtype(section))
    try:
        judge = Judge(
            model, tokenizer, arguments.criterion, batch_size=2 * arguments.batch_size,
            name=f"--judge: {arguments.judge}",
        )  # fmt: skip
    except RewardError as error:
        raise UserError(str(error)) from error

    def label(prompts: list[str], first: list[str], second: list[str]) -> list[Label]:
        try:
            verdicts = judge(prompts, first, second)
        except RewardError as error:
            raise UserError(str(error)) from error
        return [Label(verdict.probability, {}, verdict_of(verdict)) for verdict in verdicts]

    return label, {
        "judge": arguments.judge,
        "content": content_hash(arguments.judge),
        "criterion": judge.criterion,
        "question": hashlib.sha256(QUESTION.encode()).hexdigest(),
    }


def _by_reward(reward: RewardFunction) -> Labeller:
    """Bradley–Terry on a reward's scores: P(first ≻ second) = σ(r₁ − r₂)."""
    from pipeline.label.labelling import Label
    from pipeline.stages.preferences import first_wins_probability
    from reward_models import RewardError

    def label(prompts: list[str], first: list[str], second: list[str]) -> list[Label]:
        try:
            scores = reward(prompts + prompts, first + second)
        except RewardError as error:
            raise UserError(str(error)) from error
        return [
            Label(first_wins_probability(one, other), {"reward": (one, other)}, {})
            for one, other in zip(scores[: len(first)], scores[len(first) :], strict=True)
        ]

    return label


def _summary(done: Labelled, labelled_before: bool) -> list[str]:
    """How sure the labels are, how far the place mattered, and what the file itself said."""
    sure = [max(p, 1.0 - p) for p in done.probabilities]
    lines = [f"how sure: {sum(sure) / len(sure):.3f} on average, from 0.5 (not at all) to 1"]
    if labelled_before:
        agreed = [0.5 * ((p > 0.5) + (p >= 0.5)) for p in done.probabilities]
        share = sum(agreed) / len(agreed)
        error = math.sqrt(share * (1.0 - share) / len(agreed))
        lines.append(
            f"agrees with the file's own labels on {share:.1%} of the pairs (standard error "
            f"{error:.1%}; chance is 50 %)"
        )
    if all(done.verdicts):
        from reward_models.judge import Verdict, bias_of

        bias = bias_of([Verdict(**verdict) for verdict in done.verdicts])
        lines.append(
            f"position: place A gets {0.5 + bias.first_place:.3f} of the probability whatever "
            f"stands there (0.5 is fair; taken out of the labels), and {bias.flipped:.1%} of the "
            "pairs have another winner in the other order"
        )
        lines.append(
            f"letters: {bias.letters:.1%} of the judge's next token is A or B; far below 100 % it "
            "would rather say something else"
        )
    return lines
