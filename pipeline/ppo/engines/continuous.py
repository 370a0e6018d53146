"""Completions by the continuous batching of transformers, from the weights that are trained.

Requests join and leave the batch token by token over a paged cache, so none waits for the longest.
Every token is chosen by the request's own random number, as in the trainer's loop, so that rows are
the same however they are batched. The cache lives for one rollout: no page outlives its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import LogitsProcessorList
from transformers.generation.continuous_batching import ContinuousBatchingManager, RequestState
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from pipeline.errors import UserError
from pipeline.lm.decoding import invert
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.ppo.engines.interface import Drawn, Request

_PAGE = 32  # tokens of a page on a processor, where no kernel asks for more
_PATIENCE = 1.0  # seconds between two looks at whether the batch still runs
_IMPOSSIBLE = -1e9  # a logit


class Choice(ContinuousBatchingLogitsProcessor):
    """Chooses each row's token by its own random number, and keeps its log-probability.

    Args:
        draws: ``(B, T)`` numbers in [0, 1).
    """

    supported_kwargs: dict[str, type] = {"row": int, "prompt": int}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, draws: Tensor, temperature: float) -> None:
        self._steps, self._temperature = draws.shape[1], temperature
        spare = draws.new_zeros(1)  # for places in the batch that no request has
        self._draws = torch.cat([draws.flatten(), spare])
        self.logps = torch.zeros_like(self._draws)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """The place of a number that nothing asks for."""
        int32_tensor.fill_(len(self._draws) - 1)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """Which of all B·T tokens each request's next is, ``(N,)``.

        A request that lost its pages begins again with what it had drawn as its prompt, so what
        counts is how much it has beyond the first one.
        """
        places = []
        for request in requests_with_new_token:
            state: RequestState = request.state
            given = state.logit_processor_kwargs
            known = len(state.initial_tokens) + state.generated_len() - given.get("prompt", 0)
            row = given.get("row")
            place = len(self._draws) - 1 if row is None else row * self._steps + known
            places.append(place)
        return torch.tensor(places, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """``(N, V)`` logits to ones of which only the chosen can be the largest."""
        place = tensor_arg[: scores.shape[0]].long()
        logps = (scores.float() / self._temperature).log_softmax(-1)
        chosen = invert(logps.exp(), self._draws[place][:, None])
        self.logps.index_copy_(0, place, logps.gather(-1, chosen).squeeze(1))
        return torch.full_like(scores, _IMPOSSIBLE).scatter_(-1, chosen, 0.0)


class Continuous:
    """``generate_batch``'s batching as an engine over the policy itself."""

    def __init__(self) -> None:
        self._policy: nn.Module | None = None

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        """Draw two short completions.

        Raises:
            UserError: the model or its attention is none that transformers batches so.
        """
        self._policy = policy
        steps = max(1, min(4, longest - 2))
        draws = torch.full((2, steps), 0.5)
        request = Request([(0, 1), (1,)], steps, 1.0, frozenset(), 0, 0, draws, 0)
        drawn = self(request)
        if [len(row) for row in drawn.tokens] != [steps, steps]:
            raise UserError("generation=continuous: stops where nothing ends; set it to loop")

    def load(self, policy: nn.Module, step: int) -> None:
        """They are the weights that are trained."""
        self._policy = policy

    @torch.no_grad()
    def __call__(self, request: Request) -> Drawn:
        """Draw all rows.

        Raises:
            UserError: transformers cannot, or did not end.
        """
        assert self._policy is not None, "begin() comes first"
        policy, model = self._policy, base_of(self._policy)
        choice = Choice(request.draws.to(model.device), request.temperature)
        with _evaluating(policy), _mixed(model, policy):
            try:
                tokens = _drawn(model, request, choice)
            except UserError:
                raise
            except Exception as error:  # whatever a model's attention makes of pages
                raise _refusal(error) from error
        table = choice.logps[:-1].view(len(tokens), -1).cpu()
        logps = [table[row, : len(ids)].tolist() for row, ids in enumerate(tokens)]
        return Drawn(tokens, logps)


def _drawn(model: Any, request: Request, choice: Choice) -> list[list[int]]:
    """The tokens of every row, in their order."""
    manager: ContinuousBatchingManager = model.init_continuous_batching(
        GenerationConfig(
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(request.stop) or -1,
            pad_token_id=model.generation_config.pad_token_id,
        ),
        _settings(model, request),
    )
    # It makes its processors of the generation config, which has no place for one of ours.
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([choice]))
    manager.logit_processor.tensors_required = 1  # the places
    made: dict[int, list[int]] = {}
    rows = {}
    manager.start()
    try:
        for row, prompt in enumerate(request.prompt_ids):
            name = manager.add_request(list(prompt), row=row, prompt=len(prompt))
            if name is None:
                raise UserError("generation=continuous: takes no more requests; set it to loop")
            rows[name] = row
        while len(made) < len(rows):
            result = manager.get_result(timeout=_PATIENCE)
            if result is None:
                if not manager.is_running():
                    raise UserError("generation=continuous: ended early; set it to loop")
                continue
            if result.error is not None:
                raise RuntimeError(result.error)
            if result.is_finished():
                made[rows[result.request_id]] = list(result.generated_tokens)
    finally:
        manager.stop(block=True, hard_stop=len(made) < len(rows))
        manager.destroy()
    return [made[row] for row in range(len(rows))]


def _settings(model: Any, request: Request) -> ContinuousBatchingConfig:
    """On a processor, pages for all rows and no more; on a card, as transformers finds room."""
    given: dict[str, Any] = {
        "use_async_batching": False,  # a request's place is known when its last token is
        "allow_block_sharing": False,
        "auto_switch_to_flash": False,  # the attention is model.attn_implementation's to choose
    }
    if model.device.type == "cpu":
        lengths = [len(ids) + request.max_new_tokens for ids in request.prompt_ids]
        given |= {
            "page_size": _PAGE,
            "num_blocks": sum(math.ceil(length / _PAGE) for length in lengths) + 1,
            "max_batch_tokens": max(256, max(map(len, request.prompt_ids))),
        }
    return ContinuousBatchingConfig(**given)


@contextmanager
def _mixed(model: Any, policy: nn.Module) -> Iterator[None]:
    """Have ``model`` compute as in the loop: autocast does not reach into the manager's thread."""
    plain, own = model.forward, vars(model).get("forward")

    @wraps(plain)
    def forward(*given: Any, **named: Any) -> Any:
        with autocast(policy):
            return plain(*given, **named)

    model.forward = forward
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


@contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    """The manager leaves the model in evaluation, where it is not to stay."""
    was_training = policy.training
    try:
        yield
    finally:
        policy.train(was_training)


def _refusal(error: Exception) -> UserError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"generation=continuous: transformers does not batch this model so ({words}); set it to"
        " loop or vllm"
    )
