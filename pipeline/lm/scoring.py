"""Log-probabilities, entropies and KL of tokens, with the LM head on completion tokens only.

Sequences are prompt then completion, padded on the right: a causal decoder then needs no attention
mask, because no real token can see the padding. Logits exist for one chunk of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from pipeline.lm.generation import Completion
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.lm.positions import tokens_taken
from pipeline.lm.route import hidden_states, lm_head
from pipeline.output.terminal import progress

Head = Callable[[Tensor], Tensor]
"""Logits ``(N, V)`` of final hidden states ``(N, d)``."""

AT_ONCE = 32_768
"""Tokens of a batch that is only scored: 64 rows of 512, or 8 of 4,096."""


def logits_chunk(device: torch.device) -> int:
    """Tokens whose logits exist at once: few enough for a processor's cache, many for a GPU.

    At a vocabulary of 49,152 the passes over the logits are bound by memory; on a processor 128
    tokens at once take half the time of 1,024.
    """
    return 128 if device.type == "cpu" else 2048


@dataclass(frozen=True)
class TokenBatch:
    """B completions as tensors.

    Attributes:
        sequences: ``(B, L)`` prompt and completion tokens, padded on the right.
        prompt_lengths: ``(B,)``.
        completion_ids: ``(B, T)``, padded on the right.
        mask: bool ``(B, T)``, True on completion tokens up to and including EOS. Made from
            lengths, never from token ids: the pad token may be the EOS token.
    """

    sequences: Tensor
    prompt_lengths: Tensor
    completion_ids: Tensor
    mask: Tensor

    @classmethod
    def collate(
        cls, completions: Sequence[Completion], pad_token_id: int, device: torch.device
    ) -> TokenBatch:
        """Lay ``completions`` out as tensors on ``device``."""
        rows = [c.prompt_ids + c.completion_ids for c in completions]
        lengths = torch.tensor([len(c.completion_ids) for c in completions])
        steps = int(lengths.max())
        return cls(
            _pad(rows, max(map(len, rows)), pad_token_id).to(device),
            torch.tensor([len(c.prompt_ids) for c in completions], device=device),
            _pad([c.completion_ids for c in completions], steps, pad_token_id).to(device),
            (torch.arange(steps)[None] < lengths[:, None]).to(device),
        )

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows ``index``, trimmed to their own longest sequence and completion."""
        mask = self.mask[index]
        lengths = mask.sum(1)
        width = int((self.prompt_lengths[index] + lengths).max())
        steps = int(lengths.max())
        return TokenBatch(
            self.sequences[index, :width],
            self.prompt_lengths[index],
            self.completion_ids[index, :steps],
            mask[:, :steps],
        )


def _pad(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])


def predicting_states(hidden: Tensor, batch: TokenBatch) -> Tensor:
    """Final hidden states that predict the completion's tokens.

    Args:
        hidden: ``(B, L, d)``.

    Returns:
        ``(B, T, d)``; entry t is the state just before completion token t, so it also is the
        state whose value is V(s_t).
    """
    steps = torch.arange(batch.mask.shape[1], device=hidden.device)
    positions = (batch.prompt_lengths[:, None] - 1 + steps).clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def _logits(hidden: Tensor, head: Head, temperature: float) -> Tensor:
    """Float32 logits ``(N, V)`` of ``(N, d)`` states, divided by ``temperature``."""
    logits = head(hidden).float()
    return logits if temperature == 1.0 else logits / temperature


def _logps(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> Tensor:
    logits = _logits(hidden, head, temperature)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _logps_and_entropy(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = _logits(hidden, head, temperature)
    normalizer = logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
    entropy = normalizer - (logits.softmax(-1) * logits).sum(-1)
    return logps, entropy


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities, and KL to a reference, whose gradients are taken while logits exist.

    For a frozen head without bias, logits W h / T, p = softmax(W h / T) and a reference's q,

    .. math:: \\nabla_h \\log p_y = \\sum_v (1_{v = y} - p_v) W_v / T, \\qquad
              \\nabla_h KL(p \\| q) = \\sum_v p_v (\\log p_v - \\log q_v - KL) W_v / T

    need nothing of the loss, so they are computed in the forward pass and kept as ``(N, d)``: no
    logits are kept and none are computed again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        head: nn.Linear,
        targets: Tensor,
        temperature: float,
        chunk: int,
        reference: Callable[[int, int], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``reference`` gives log q ``(n, V)`` of the tokens from a first to before a last one."""
        logps, slopes, kls, kl_slopes = [], [], [], []

        def to_states(per_token: Tensor) -> Tensor:
            return (per_token.to(head.weight.dtype) @ head.weight).float() / temperature

        for start in range(0, len(hidden), chunk):
            tokens = targets[start : start + chunk]
            logits = _logits(hidden[start : start + chunk], head, temperature)
            normalizer = logits.logsumexp(-1)
            logps.append(logits.gather(-1, tokens[:, None]).squeeze(-1) - normalizer)
            logits.sub_(normalizer[:, None])
            if reference is not None:
                excess = logits - reference(start, start + chunk)
                surplus = logits.exp_()
                kls.append((surplus * excess).sum(-1))
                kl_slopes.append(to_states(excess.sub_(kls[-1][:, None]).mul_(surplus)))
                del excess
            else:
                surplus = logits.exp_()  # p − 1_y
            # Before rounding: in bfloat16 a p near 1 is 1, and the difference 0.
            surplus.scatter_add_(-1, tokens[:, None], surplus.new_full((len(tokens), 1), -1.0))
            slopes.append(-to_states(surplus))
        kept = [torch.cat(each).to(hidden.dtype) for each in (slopes, kl_slopes) if each]
        ctx.save_for_backward(*kept)
        return torch.cat(logps), torch.cat(kls) if kls else None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        slopes = ctx.saved_tensors
        parts = [g[:, None] * s for g, s in zip(gradients, slopes, strict=False)]
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return total.to(slopes[0].dtype), None, None, None, None, None


def _is_frozen_matrix(head: Head) -> bool:
    plain = type(head) is nn.Linear and head.bias is None
    return plain and not head.weight.requires_grad


def token_logps(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float, chunk: int
) -> Tensor:
    """Log-probabilities of ``targets``, differentiable.

    Logits are never kept for the backward pass: a frozen head's gradient is taken at once
    (:class:`_FrozenHead`), a trained one's are recomputed beyond one chunk.

    Args:
        hidden: ``(N, d)``, targets: ``(N,)``; chunk: tokens whose logits exist at once.

    Returns:
        ``(N,)`` float32, in nats.
    """
    if torch.is_grad_enabled() and hidden.requires_grad and _is_frozen_matrix(head):
        return _FrozenHead.apply(hidden, head, targets, temperature, chunk)[0]  # type: ignore
    if hidden.shape[0] <= chunk:
        return _logps(hidden, head, targets, temperature)
    parts = []
    for states, tokens in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        parts.append(checkpoint(_logps, states, head, tokens, temperature, use_reentrant=False))
    return torch.cat(parts)  # type: ignore[arg-type]


def token_logps_and_entropy(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Like :func:`token_logps`, with the entropy of each next-token distribution, ``(N,)`` nats."""
    pieces = [
        checkpoint(_logps_and_entropy, h, head, t, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logps, entropies = zip(*pieces, strict=True)  # type: ignore[misc]
    return torch.cat(logps), torch.cat(entropies)


def token_logps_and_kl(
    hidden: Tensor,
    ref_hidden: Tensor,
    head: Head,
    ref_head: Head,
    targets: Tensor,
    temperature: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Like :func:`token_logps`, with the exact KL(π‖π_ref) of each next token, ``(N,)`` nats.

    Both are differentiable in π; the reference's logits are made again from its final states.

    Args:
        hidden, ref_hidden: ``(N, d)`` final hidden states of policy and reference.
    """

    @torch.no_grad()
    def reference(start: int, stop: int) -> Tensor:
        return _logits(ref_hidden[start:stop], ref_head, temperature).log_softmax(-1)

    if torch.is_grad_enabled() and hidden.requires_grad and _is_frozen_matrix(head):
        return _FrozenHead.apply(hidden, head, targets, temperature, chunk, reference)  # type: ignore

    def part(states: Tensor, tokens: Tensor, start: int) -> tuple[Tensor, Tensor]:
        logps = _logits(states, head, temperature).log_softmax(-1)
        kl = (logps.exp() * (logps - reference(start, start + len(tokens)))).sum(-1)
        return logps.gather(-1, tokens[:, None]).squeeze(-1), kl

    pieces = [
        checkpoint(part, h, t, i * chunk, use_reentrant=False)
        for i, (h, t) in enumerate(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    ]
    logps, kls = zip(*pieces, strict=True)  # type: ignore[misc]
    return torch.cat(logps), torch.cat(kls)


class TokenStatistics(NamedTuple):
    """What two next-token distributions say about each token; all ``(N,)`` float32, in nats."""

    logps: Tensor
    entropy: Tensor
    ref_logps: Tensor
    exact_kl: Tensor


@torch.no_grad()
def token_statistics(
    hidden: Tensor,
    ref_hidden: Tensor,
    head: Head,
    ref_head: Head,
    targets: Tensor,
    temperature: float,
    chunk: int,
) -> TokenStatistics:
    """Both models' log-probabilities of ``targets``, π's entropy and the exact KL(π‖π_ref).

    Each model's logits are computed once, a chunk at a time. Where π has ids that π_ref has not,
    it is taken given that none of them is drawn; where π_ref has more, π never draws those.

    Args:
        hidden, ref_hidden: ``(N, d)`` final hidden states of policy and reference.
        targets: ``(N,)`` tokens that both have.
    """
    pieces = []
    for ours, theirs, tokens in zip(
        hidden.split(chunk), ref_hidden.split(chunk), targets.split(chunk), strict=True
    ):
        own_logits = _logits(ours, head, temperature)
        ref_logps = _logits(theirs, ref_head, temperature).log_softmax(-1)
        if own_logits.shape[-1] != ref_logps.shape[-1]:
            common = min(own_logits.shape[-1], ref_logps.shape[-1])
            own_logits, ref_logps = own_logits[:, :common], ref_logps[:, :common]
        logps = own_logits.log_softmax(-1)
        del own_logits
        chosen = (x.gather(-1, tokens[:, None]).squeeze(-1) for x in (logps, ref_logps))
        p = logps.exp()
        entropy = -(p * logps).sum(-1)
        own, ref = chosen
        pieces.append((own, entropy, ref, (p * logps.sub_(ref_logps)).sum(-1)))
        del logps, ref_logps, p  # or they would lie beside the next chunk's
    return TokenStatistics(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def by_length(lengths: Sequence[int], batch_size: int, label: str | None) -> Iterator[list[int]]:
    """Batches of indices of ``lengths``, the shortest first; a progress bar under ``label``.

    Each has at most ``batch_size`` rows, and at most `AT_ONCE` tokens, padding included, unless a
    row alone has more.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        rows = len(batches[-1]) + 1 if batches else 0
        if 0 < rows <= batch_size and rows * lengths[i] <= AT_ONCE:
            batches[-1].append(i)
        else:
            batches.append([i])
    yield from progress(batches, label, len(batches)) if label else batches


@torch.no_grad()
def text_nll(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
) -> tuple[float, int]:
    """Total negative log-likelihood of ``texts`` (EOS included) in nats, and the tokens counted.

    The first token, which nothing predicts, is not counted, nor is what the model has no positions
    for.
    """
    eos: Any = tokenizer.eos_token_id
    rows = [tuple(tokenizer(text)["input_ids"]) for text in texts]  # type: ignore[arg-type]
    rows = [row if row[-1:] == (eos,) else (*row, eos) for row in rows]
    limit = tokens_taken(base_of(model), max(map(len, rows), default=0))
    rows = [row[:limit] for row in rows]
    documents = [Completion("", row[:1], row[1:], "", True) for row in rows if len(row) > 1]
    device, head = base_of(model).device, lm_head(model)
    total, count = 0.0, 0
    for index in by_length([len(row) for row in rows if len(row) > 1], batch_size, None):
        batch = TokenBatch.collate([documents[i] for i in index], 0, device)
        with autocast(model):
            hidden = predicting_states(hidden_states(model, batch.sequences), batch)[batch.mask]
            targets = batch.completion_ids[batch.mask]
            logps = token_logps(hidden, head, targets, 1.0, logits_chunk(device))
        total -= float(logps.double().sum())
        count += len(logps)
    return total, count
