"""What completions are given before anything is learned from them: scores, the record of every
token by policy, critic and reference, and what each is paid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.lm.generation import Completion
from pipeline.lm.scored import score_completions
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.actor_critic import TokenRecord
from pipeline.ppo.cut_off import beyond_the_end
from pipeline.ppo.drawing import DrawingTrainer
from pipeline.ppo.prefix import prefixes
from pipeline.ppo.rollout import (
    dense_scores,
    per_deviation,
    record_in_parts,
    scaled_scores,
    shaped_scores,
    token_rewards,
    whitened,
)
from pipeline.ppo.upkeep.guards import failed_reward
from reward_models import RewardCall, RewardError, Scores


class RecordingTrainer(DrawingTrainer):
    """The trainer's part that scores, records and pays completions.

    A subclass sets ``reward`` before it calls ``__init__``, and ``_kept_on`` before it trains.
    """

    reward: RewardCall
    _kept_on: torch.device | None
    """Where activations that later passes start from lie; ``None`` is the model's device."""

    def _reward(self, completions: Sequence[Completion], judge: RewardCall | None = None) -> Scores:
        """What the reward, or the judge, says of the completions.

        Raises:
            FailedReward: there are none; the batch with what the function returned is saved.
        """
        try:
            return score_completions(judge or self.reward, completions)
        except RewardError as error:
            step = self.state.global_step
            raise failed_reward(error, completions, self.args, step) from error

    def _column(self, values: Sequence[float | None]) -> Tensor:
        """One number a completion as ``(B,)``, NaN for None."""
        numbers = [math.nan if value is None else value for value in values]
        return torch.tensor(numbers, dtype=torch.float32, device=self.args.device)

    def _parts(self, said: Scores) -> dict[str, Tensor]:
        return {name: self._column(scores) for name, scores in said.parts.items()}

    def _prefix_scores(self, completions: Sequence[Completion]) -> Tensor:
        """Scores ``(B, T)`` of the text before each token; what is beyond the end is no score."""
        texts, index = prefixes(completions, self.tokenizer, self.args.prefix_every)
        self.reward_queries += len(texts)
        return self._column(self._reward(texts).total)[index.to(self.args.device)]

    def _record(
        self, completions: Sequence[Completion], rows: int, keep_states: bool = False
    ) -> tuple[TokenBatch, TokenRecord, Tensor | None, Tensor | None]:
        """The completions as tensors, and :func:`record_in_parts` of them.

        Args:
            rows: at once, where ``microbatch_tokens`` does not say it.
        """
        pad: Any = self.tokenizer.pad_token_id
        model, measure = self.actor_critic, self.memory.measure
        lengths = [len(c.prompt_ids) + len(c.completion_ids) for c in completions]
        most, least = self.args.microbatch_tokens or rows, measure.smallest(lengths)

        def record(limit: int) -> tuple[TokenRecord, Tensor | None, Tensor | None]:
            def cut(lengths: list[int]) -> list[int]:
                sizes = measure.cut(lengths, limit)
                if not measure.tokens:
                    return sizes
                # As many passes in every process: each waits for the others' parts of the weights.
                return measure.cut(lengths, limit, int(-self._lowest(-len(sizes))))

            return record_in_parts(model, batch, cut, keep_states, self._kept_on)

        with self.accelerator.autocast():
            batch = TokenBatch.collate(completions, pad, self.args.device)
            recorded = self.memory.fit("evaluating", most, record, least=least, unit=measure.unit)
        return batch, *recorded

    def _lowest(self, value: float) -> float:
        """The lowest of every process's."""
        return float(self.gather_rows(torch.tensor([value], dtype=torch.float64)).min())

    def _paid(
        self,
        scores: Tensor,
        said: Scores,
        old: TokenRecord,
        mask: Tensor,
        ended: Tensor,
        counted: Tensor,
    ) -> tuple[Tensor, float]:
        """What each token is paid, ``(B, T)``, and β on its scale for a token's own exact KL.

        Args:
            scores: of the completions ``(B,)``, as ``said``. counted: tokens that are learned from.
        """
        args, everyone = self.args, self.sum_over_processes
        shaped = shaped_scores(scores, ended, args, self.score_deviation, everyone)
        if said.tokens is not None:
            shaped = dense_scores(said.tokens, mask, ended, args, self.score_deviation)
        beta = self.kl_control.coefficient if args.kl_in == "reward" else 0.0
        rewards = token_rewards(shaped, old, mask, beta, args.kl_estimator)
        price = beta if args.charges_exact_kl else 0.0  # which the loss charges
        if args.whiten_rewards:
            price *= per_deviation(rewards, counted, everyone) if price else 1.0
            rewards = whitened(rewards, counted, everyone, keep_mean=True)
        return rewards, price

    def _beyond(
        self, batch: TokenBatch, trunk: Tensor | None, ended: Tensor, scores: Tensor, price: float
    ) -> Tensor | None:
        """V of the state after a completion that was cut off ``(B,)``, 0 after one that ended.

        Its parts are those of :meth:`_known_values`, and the head's. ``None`` where nothing is
        bootstrapped.
        """
        args, model = self.args, self.actor_critic
        if args.cut_off != "bootstrap":
            return None
        lengths = batch.prompt_lengths + batch.mask.sum(1)
        order = lengths.argsort(stable=True)
        # Where weights are split every process makes as many passes, whatever was cut off.
        cut = order if args.world_size > 1 else order[~ended[order]]
        rows = args.per_device_train_batch_size
        if args.microbatch_tokens is not None:
            rows = max(1, int(self._lowest(args.microbatch_tokens // int(lengths.max()))))
        with self.accelerator.autocast():
            head, kl = self.memory.fit(
                "looking beyond",
                rows,
                lambda rows: beyond_the_end(model, batch, trunk, cut, rows),
            )
        line = torch.zeros_like(head)
        if args.critic == "prefix":
            line = self.prefix_critic.beyond(scaled_scores(scores, args, self.score_deviation))
        return torch.where(ended, 0.0, head - price * kl + line)
