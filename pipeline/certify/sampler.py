"""A sampler outside the trainer, which draws from the policy itself and tells its probabilities."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.lm.generation import Completion, cut_at_eos, sample_tokens
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import TokenBatch, predicting_states, token_logps
from pipeline.ppo.engines import Drawn, Request


class FromThePolicy:
    """Draws from the weights of the moment, so that one update later they are μ exactly."""

    def __init__(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self._policy, self._tokenizer = policy, tokenizer

    @torch.no_grad()
    def __call__(self, request: Request) -> Drawn:
        """The completions, and the log-probability of each token."""
        rows = len(request.prompt_ids)
        drawn = sample_tokens(
            self._policy, self._tokenizer, request.prompt_ids, temperature=request.temperature,
            max_new_tokens=request.max_new_tokens, batch_size=rows, seed=request.seed,
            draws=request.draws,
        )  # fmt: skip
        made = []
        for ids, tokens in zip(request.prompt_ids, drawn, strict=True):
            kept, ended = cut_at_eos(tokens, set(request.stop))
            made.append(Completion("", tuple(ids), kept, "", ended))
        batch = TokenBatch.collate(made, 0, torch.device("cpu"))
        states = hidden_states(self._policy, batch.sequences)
        states = predicting_states(states, batch)[batch.mask]
        targets, head = batch.completion_ids[batch.mask], lm_head(self._policy)
        logps = token_logps(states, head, targets, request.temperature, len(targets))
        lengths = batch.mask.sum(1).tolist()
        said = [part.tolist() for part in logps.split(lengths)]
        return Drawn([list(completion.completion_ids) for completion in made], said)
