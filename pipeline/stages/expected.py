"""How long a run will take: what its settings ask for, counted, times what a part costs here.

A part is a position (a token of a text) through a layer or the head, forward or with its gradient,
or a token that is drawn; :mod:`pipeline.lm.speed` times each on a few layers of the model. It is
an estimate, for a processor: it stands in no record and decides nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from transformers import TrainingArguments

from pipeline.compare import fluency
from pipeline.config import Experiment, is_trained_here
from pipeline.config.choices import left_out
from pipeline.config.losses import ONCE_EACH, loss_names
from pipeline.lm.speed import Speed
from pipeline.ppo.config import PPOConfig
from pipeline.stages.expected_texts import Texts, reward_arguments
from pipeline.stages.training import stage_arguments

if TYPE_CHECKING:
    from trl import DPOConfig

_AROUND = 10.0  # seconds of a stage for its libraries, and to load and save models
# TRL's head: it computes the logits once more for their gradient, and entropy and accuracy.
_OWN_HEAD = 2.0


@dataclass(frozen=True)
class Encoder:
    """Seconds for a position through the whole classifier, and for a step of its optimizer."""

    forward: float
    training: float
    step: float


class Counter:
    """Seconds of each stage of an experiment."""

    def __init__(
        self, experiment: Experiment, texts: Texts, speed: Speed, encoder: Encoder | None
    ) -> None:
        """``encoder`` is None where no classifier is trained: a reward's own time is not known."""
        self.experiment, self.texts, self.speed = experiment, texts, speed
        self.encoder = encoder or Encoder(0.0, 0.0, 0.0)
        model = experiment.model
        self.split = not model.use_peft or model.trainable_layers is not None
        """Whether the layers below the trained ones are run without gradient, and once."""

    def knows(self, stage: str) -> bool:
        """Whether the stage's time can be told from its settings."""
        return self.experiment.stage(stage).section in _KNOWN

    def seconds(self, stage: str) -> float:
        """About how long the stage takes from its beginning to its end; 0 where nobody knows."""
        if not self.knows(stage):
            return 0.0
        view = Counter(self.experiment.of(stage), self.texts, self.speed, self.encoder)
        return _AROUND + _KNOWN[self.experiment.stage(stage).section](view)

    def tokens(self, stage: str) -> float:
        """Prompt and completion tokens that the stage learns from or measures; 0 where unknown.

        PPO's count once for each episode, however often it is learned from.
        """
        section = self.experiment.stage(stage).section
        if section not in _TOKENS:
            return 0.0
        view = Counter(self.experiment.of(stage), self.texts, self.speed, self.encoder)
        return _TOKENS[section](view)

    def _sft_tokens(self) -> float:
        if self.experiment.sft.skip:
            return 0.0
        from trl import SFTConfig

        arguments = stage_arguments(self.experiment, "sft", SFTConfig)
        _, passes = _steps(arguments, self.texts.learnt)
        return passes * self.texts.learnt * fmean(self.texts.demonstrations)

    def _ppo_tokens(self) -> float:
        episodes = self._ppo_arguments().planned_episodes(self.texts.prompts)
        return episodes * (self.texts.prompt + self.texts.response)

    def _dpo_tokens(self) -> float:
        from trl import DPOConfig

        count, completions = self._pairs()
        arguments = stage_arguments(self.experiment, "dpo", DPOConfig)
        _, passes = _steps(arguments, count)
        run = 2 * count if self._every_pair() else completions
        return passes * run * self._pair_texts(arguments)

    def _own(self) -> tuple[int, Sequence[int]] | None:
        """The user's own pairs: how many, and the tokens of some texts; None where none are."""
        name = self.experiment.data.preferences_name
        return None if name is None else self.texts.own_pairs[name]

    def _every_pair(self) -> bool:
        """Whether DPO runs both sides of every pair: of own pairs and other losses, by TRL."""
        drawn = self._own() is None
        return not drawn or loss_names(self.experiment.trainer_args("dpo")) not in ONCE_EACH

    def _pair_texts(self, arguments: DPOConfig) -> float:
        """Positions of a text of a pair, with its prompt and, of own pairs, its padding."""
        if (own := self._own()) is None:
            return self.texts.prompt + self.texts.response
        longest = arguments.max_length or max(own[1])
        return _padded([min(longest, length) for length in own[1]], arguments)

    def _pairs(self) -> tuple[int, int]:
        """Pairs that DPO learns from, and completions that are drawn for them."""
        pairs, prompts = self.experiment.pairs, self.texts.prompts
        if (own := self._own()) is not None:
            return own[0], 0
        groups = pairs.groups(prompts)
        return min(pairs.max_pairs, groups * pairs.of_group), groups * pairs.samples_per_prompt

    # Positions: one text through the whole model, or its upper part, and completions drawn.

    def _upper(self) -> int:
        return self.speed.trained_layers if self.split else self.speed.layers

    def _lower(self) -> int:
        return self.speed.layers - self._upper()

    def _forward(self, positions: float, layers: int | None = None) -> float:
        return positions * self.speed.forward * (self.speed.layers if layers is None else layers)

    def _draw(self, completions: float) -> float:
        speed, texts = self.speed, self.texts
        each = texts.response * (speed.layers * speed.drawing + speed.drawing_head)
        return completions * each + self._forward(completions * texts.prompt)

    def _judge(self, completions: float, models: int | None = None) -> float:
        """The reward of so many models; None is the proxy's."""
        length = self.texts.prompt + self.texts.response
        each = completions * length * self.encoder.forward
        return each * (self.experiment.reward.members if models is None else models)

    def _judge_prefixes(self, completions: float, every: int) -> float:
        """The reward of every ``every``-th prefix: half a response long, on average."""
        length = self.texts.prompt + self.texts.response / 2
        each = completions * self.texts.response / every * length * self.encoder.forward
        return each * self.experiment.reward.members

    # Stages

    def _sft(self) -> float:
        if self.experiment.sft.skip:
            return 0.0
        from trl import SFTConfig  # takes seconds, which the stage itself then does not

        arguments, speed = stage_arguments(self.experiment, "sft", SFTConfig), self.speed
        steps, passes = _steps(arguments, self.texts.learnt)
        each = speed.training * self._upper() + _OWN_HEAD * speed.head_training
        positions = passes * self.texts.learnt * _padded(self.texts.demonstrations, arguments)
        held = _evaluations(arguments, steps, passes) * self.texts.heldout
        held *= fmean(self.texts.demonstrations)
        total = positions * each + self._forward(positions, self._lower()) + steps * speed.step
        return total + self._forward(held) + held * speed.head

    def _reward(self) -> float:
        arguments, texts = reward_arguments(self.experiment), self.texts
        length, total = fmean(texts.demonstrations), 0.0
        for rows, each in zip(texts.rated, texts.a_row or [1.0] * len(texts.rated), strict=True):
            steps, passes = _steps(arguments, rows)
            positions = passes * rows * each * length
            total += positions * self.encoder.training + steps * self.encoder.step
        if self.experiment.reward.normalizes():
            total += self._draw(self.experiment.reward.normalize_samples)
        return total

    def _ppo(self) -> float:
        arguments, texts, speed = self._ppo_arguments(), self.texts, self.speed
        whole, upper = texts.prompt + texts.response, self._upper()
        episodes = arguments.planned_episodes(texts.prompts)
        steps = episodes / arguments.rollout_batch_size * arguments.steps_per_rollout
        record = self._forward(whole, self._lower() + 2 * upper) + 2 * texts.response * speed.head
        update = whole * upper * speed.training + texts.response * speed.head_training
        if not (arguments.cache_trunk and self.split):
            update += self._forward(whole, self._lower())
            record += self._forward(whole, self._lower())
        if arguments.charges_exact_kl:  # the reference's logits and their own gradient
            update += 2 * texts.response * speed.head
        evaluated = _evaluations(arguments, int(steps), 1.0) * texts.validation
        made = episodes + evaluated
        total = self._draw(made) + self._judge(made) + made * record
        if arguments.critic == "prefix":
            total += self._judge_prefixes(episodes, arguments.prefix_every)
        return total + episodes * arguments.num_ppo_epochs * update + steps * speed.step

    def _ppo_arguments(self) -> PPOConfig:
        length = self.experiment.generation.max_new_tokens
        return stage_arguments(self.experiment, "ppo", PPOConfig, response_length=length)

    def _dpo(self) -> float:
        from trl import DPOConfig

        from pipeline.stages.dpo import batch_of_groups

        experiment, texts, speed = self.experiment, self.texts, self.speed
        arguments = stage_arguments(experiment, "dpo", DPOConfig)
        count, completions = self._pairs()
        made = self._draw(completions) + self._judge(completions)
        if self._every_pair():
            return made + self._dpo_by_trl(arguments, count)
        if (rows := batch_of_groups(experiment, arguments)) is not None:
            arguments.per_device_train_batch_size = rows
        steps, passes = _steps(arguments, count)
        whole, response = texts.prompt + texts.response, texts.response
        again = passes * (0.0 if self.split else 1.0)  # without a trunk the lower layers too
        reference = self._forward(whole) + response * speed.head
        policy = whole * self._upper() * speed.training + response * speed.head_training
        each = reference + passes * policy + again * self._forward(whole, self._lower())
        return made + completions * each + steps * speed.step

    def _dpo_by_trl(self, arguments: DPOConfig, count: int) -> float:
        """Every pair: policy and reference as a whole, in every pass."""
        speed = self.speed
        steps, passes = _steps(arguments, count)
        whole = 2 * count * self._pair_texts(arguments)
        each = speed.training * self._upper() + _OWN_HEAD * speed.head_training + speed.head
        policy = whole * each + self._forward(whole, self._lower())
        return passes * (policy + self._forward(whole)) + steps * speed.step

    def _compare(self) -> float:
        section, texts, speed = self.experiment.compare, self.texts, self.speed
        policies = len(self.experiment.methods().keys() - left_out(self.experiment).keys())
        policies += len(section.policies)
        against = texts.evaluated * section.samples_per_prompt * policies
        made = texts.evaluated * section.reference_samples + against
        whole = texts.prompt + texts.response
        read = self._forward(whole) + texts.response * speed.head
        kl = self._forward(whole, self._upper()) + texts.response * speed.head + read
        against += texts.evaluated * section.reverse_kl_samples * policies
        judged = texts.evaluated * fluency.SAMPLES * (policies + 1)
        judged = judged if fluency.named(self.experiment) else 0
        held = (policies + 1) * texts.heldout * fmean(texts.demonstrations)
        total = self._draw(made) + self._judge(made) + self._judge(made, 1) + against * kl
        return total + judged * read + self._forward(held) + held * speed.head


_KNOWN = {
    "sft": Counter._sft,
    "reward": Counter._reward,
    "ppo": Counter._ppo,
    "dpo": Counter._dpo,
    "compare": Counter._compare,
}

_TOKENS = {"sft": Counter._sft_tokens, "ppo": Counter._ppo_tokens, "dpo": Counter._dpo_tokens}


def trains_classifier(experiment: Experiment) -> bool:
    """True where the reward, or a part of it, is trained by the pipeline."""
    return any(is_trained_here(part.source) for part in experiment.reward.parts("source"))


def counts_all(experiment: Experiment) -> bool:
    """True where the time of all parts of the reward is counted, or is next to none."""
    kinds = (part.kind() for part in experiment.reward.parts("source"))
    return all(kind in ("trained", "rules") for kind in kinds)


def _steps(arguments: TrainingArguments, rows: int) -> tuple[int, float]:
    """Optimizer steps, and how often each row is seen."""
    batches = -(-rows // arguments.per_device_train_batch_size)
    epoch = max(1, -(-batches // arguments.gradient_accumulation_steps))
    steps = arguments.max_steps
    if steps <= 0:
        steps = math.ceil(arguments.num_train_epochs * epoch)
    return steps, steps / epoch


def _evaluations(arguments: TrainingArguments, steps: int, passes: float) -> float:
    """How often a stage evaluates while it trains."""
    if arguments.eval_strategy == "steps":
        every = arguments.eval_steps or arguments.logging_steps
        count = steps / every if every >= 1 else 1 / every
    else:
        count = passes if arguments.eval_strategy == "epoch" else 0.0
    return count + arguments.eval_on_start


def _padded(lengths: Sequence[int], arguments: TrainingArguments) -> float:
    """Positions a text, its padding to the longest of its batch included."""
    if arguments.train_sampling_strategy == "group_by_length":
        return fmean(lengths)
    size = min(arguments.per_device_train_batch_size, len(lengths))
    draw = random.Random(0)
    return fmean(max(draw.sample(list(lengths), size)) for _ in range(100))
