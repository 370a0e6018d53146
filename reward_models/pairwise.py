"""A Bradley–Terry reward model from preference pairs: a scalar head, trained by trl.RewardTrainer.

The loss is −log σ(r(x, y⁺) − r(x, y⁻) − m), which at margin m = 0 is the log-likelihood of the
preferences under P(y⁺ ≻ y⁻) = σ(r⁺ − r⁻). Only differences of r within a prompt mean anything; a
penalty on (r⁺ + r⁻)² can hold their mean at zero (Eisenstein et al. 2023; trl's
``center_rewards_coefficient``).

Texts are read here the way `sentiment.SequenceClassifier` will read them when it scores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from reward_models.calling import to_stderr
from reward_models.interface import ChatPrompt, RewardError, RewardFunction
from reward_models.reading import APPENDS_EOS, Reader, length_limit
from reward_models.training import LengthGrouped, new_classifier

Pair = dict[str, Any]
"""``prompt``, ``chosen`` and ``rejected``: all texts, or all messages; and maybe a ``margin``."""


class Grouped(Sampler[int]):
    """A shuffled order of groups, in which the pairs of a group are neighbours.

    The pairs of one ranking share their answers; spread over an epoch they made InstructGPT's
    reward model overfit, and neighbours need one pass an answer, not one a pair (Ouyang et al.
    2022, section 3.5).
    """

    def __init__(self, groups: Sequence[Hashable], seed: int) -> None:
        """``groups`` of the pairs. The order is a function of ``seed`` and the epoch alone."""
        self.members: dict[Hashable, list[int]] = {}
        for index, group in enumerate(groups):
            self.members.setdefault(group, []).append(index)
        self.seed, self.epoch, self.count = seed, 0, len(groups)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the Trainer calls it, after resuming too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self.seed}/{self.epoch}")
        order = [draw.sample(members, len(members)) for members in self.members.values()]
        draw.shuffle(order)
        return (index for members in order for index in members)


class Shared:
    """Makes a batch in which a text that stands in several pairs is computed once.

    Its ``chosen`` and ``rejected`` are ``(B,)`` rows of ``input_ids`` ``(U, L)``, U ≤ 2B.
    """

    def __init__(self, pad: Any) -> None:
        self.pad = pad

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        rows: dict[tuple[int, ...], int] = {}
        batch = {
            side: torch.tensor(
                [rows.setdefault(tuple(pair[f"{side}_ids"]), len(rows)) for pair in pairs]
            )
            for side in ("chosen", "rejected")
        }
        if "margin" in pairs[0]:
            batch["margin"] = torch.tensor([pair["margin"] for pair in pairs], dtype=torch.float)
        width = max(map(len, rows))
        batch["input_ids"] = torch.tensor(
            [[*ids, *[self.pad] * (width - len(ids))] for ids in rows]
        )
        lengths = torch.tensor([len(ids) for ids in rows])
        batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        return batch


class _PairScores:
    """A model that gives the rewards of all chosen texts, then of all rejected ones, ``(2B, 1)``.

    That is what trl's loss takes.
    """

    def __init__(self, model: Any, batch: dict[str, Any]) -> None:
        self.model, self.rows = model, torch.cat([batch.pop("chosen"), batch.pop("rejected")])

    def __call__(self, *, margin: Any = None, use_cache: Any = None, **inputs: Any) -> Any:
        return SequenceClassifierOutput(logits=self.model(**inputs).logits[self.rows])


def frames_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself ends a text with a special token, as those of encoders do."""
    ids: Any = tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] in tokenizer.all_special_ids


def ready_to_read(model: Any, tokenizer: PreTrainedTokenizerBase, talks: bool) -> None:
    """Note in the model's config how it reads, which `load_reward` will follow.

    Conversations in the chat template; texts with EOS behind them, which is where a decoder's score
    is read, unless the tokenizer ends them itself.

    Raises:
        RewardError: Nothing can pad, or there are conversations and no chat template.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise RewardError("the tokenizer has neither pad nor EOS token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if talks and not tokenizer.chat_template:
        raise RewardError("the pairs are conversations, and the tokenizer has no chat template")
    ends = not frames_texts(tokenizer) and tokenizer.eos_token_id is not None
    if talks or ends:
        setattr(model.config, APPENDS_EOS, not talks)
    else:
        tokenizer.chat_template = None  # with one, the loaded model would be taken for a chat's


def encode_pairs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int | None,
    name: str = "the reward model",
    warn: Callable[[str], None] = to_stderr,
) -> list[Pair]:
    """Pairs as trl.RewardTrainer takes them: ``chosen_ids``, ``rejected_ids``, maybe ``margin``.

    A text above ``max_length`` tokens loses its beginning, and it is said.
    """
    talks = not isinstance(pairs[0]["chosen"], str)
    ending = str(tokenizer.eos_token) if getattr(model.config, APPENDS_EOS, False) else ""
    limit = length_limit(model, tokenizer, max_length)
    read = Reader(tokenizer, "chat" if talks else "text", limit, ending, name, warn)
    prompts = [_prompt(pair["prompt"]) for pair in pairs]
    sides = {
        side: read(prompts, [_answer(pair[side]) for pair in pairs])
        for side in ("chosen", "rejected")
    }
    rows = [
        {f"{side}_ids": encoded[index]["input_ids"] for side, encoded in sides.items()}
        for index in range(len(pairs))
    ]
    if "margin" in pairs[0]:
        rows = [{**row, "margin": float(p["margin"])} for row, p in zip(rows, pairs, strict=True)]
    return rows


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return ChatPrompt("\n".join(message["content"] for message in prompt), prompt)


def _answer(answer: Any) -> str:
    """The text of an answer; of messages their only one's."""
    if isinstance(answer, str):
        return answer
    if len(answer) != 1:
        raise RewardError(
            f"an answer has {len(answer)} messages; a reward model reads one behind its prompt"
        )
    return answer[0]["content"]


def pairwise_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Any,
    train: list[Pair],
    test: list[Pair],
    groups: Sequence[Hashable] | None = None,
    callbacks: Sequence[Any] = (),
) -> Any:
    """A trl.RewardTrainer; ``arguments`` are a trl.RewardConfig, pairs as from `encode_pairs`.

    Args:
        groups: Of each training pair; those of a group are then neighbours. None sorts by length
            where ``train_sampling_strategy`` says so.
    """
    from datasets import Dataset
    from trl import RewardTrainer

    class Trainer(RewardTrainer):
        """With orders that survive resuming, and each text of a batch computed once."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
            args = self.args
            if groups is not None:
                return Grouped(groups, args.seed)
            if args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in train]
            return LengthGrouped(lengths, args.train_batch_size, args.seed)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            scores: Any = _PairScores(model, inputs)
            return super().compute_loss(scores, inputs, *args, **kwargs)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super(RewardTrainer, self)._save_checkpoint(model, trial)  # TRL's adds a card to each

    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(test) if test else None,
        processing_class=tokenizer,
        data_collator=Shared(tokenizer.pad_token_id),
        callbacks=list(callbacks) or None,
    )


def train_pairwise(
    model: str | Path,
    pairs: Sequence[Pair],
    output_dir: str | Path,
    *,
    callbacks: Sequence[Any] = (),
    resume_from_checkpoint: str | None = None,
    **arguments: Any,
) -> Path:
    """Train a scalar head on ``pairs`` and return the folder that holds the reward model.

    The folder, ``output_dir/model``, is a sequence-classification checkpoint with one label, which
    `load_reward` takes.

    Args:
        model: The trunk, an encoder or a decoder: a folder or hub id. It gets a new head.
        pairs: As `Pair` says.
        output_dir: Where the checkpoints and the model go.
        callbacks: For the trainer.
        resume_from_checkpoint: A checkpoint folder to go on from.
        arguments: Fields of trl.RewardConfig.

    Raises:
        RewardError: The tokenizer cannot pad, or not write the pairs.
    """
    from trl import RewardConfig

    config = RewardConfig(output_dir=str(output_dir), **arguments)
    trunk: PreTrainedModel = new_classifier(str(model), config.seed, outputs=1)
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    ready_to_read(trunk, tokenizer, talks=not isinstance(pairs[0]["chosen"], str))
    rows = encode_pairs(trunk, tokenizer, pairs, config.max_length)
    trainer = pairwise_trainer(trunk, tokenizer, config, rows, [], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    folder = Path(output_dir) / "model"
    trainer.save_model(str(folder))
    return folder


def pair_accuracy(reward: RewardFunction, pairs: Sequence[dict[str, str]]) -> float:
    """Share of ``pairs`` (texts) whose chosen completion scores higher; a tie is half."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = reward(prompts, [pair["chosen"] for pair in pairs])
    rejected = reward(prompts, [pair["rejected"] for pair in pairs])
    wins = (0.5 * ((c > r) + (c >= r)) for c, r in zip(chosen, rejected, strict=True))
    return sum(wins) / len(pairs)
