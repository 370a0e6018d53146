"""Holding a policy against its plain model, before any work.

Everything here relies on four things that no class name promises: a token sees nothing of those
after it, so completions can be padded on the right and scored without a mask; sampling from
left-padded prompts with a cache is the distribution that is scored; and the pass that is trained is
the one that is measured. Each is tried on a few tokens of the model at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.words import first_line
from pipeline.errors import UserError
from pipeline.lm.decoding import Decoder
from pipeline.lm.generation import cut_at_eos, end_tokens, generate_tokens
from pipeline.lm.hardware import autocast
from pipeline.lm.models import base_of
from pipeline.lm.route import FAILS, hidden_states, lm_head

_TOKENS = 16  # in the longer of two rows, of which three eighths are sampled
_LOWEST, _HIGHEST = 1, 1000  # token ids that prompts are made of
# Largest difference of a log-probability, in standard deviations of a token's logits. Of some 120
# architectures that compute the same, float32 stays below 1e-4 and bfloat16, which rounds otherwise
# in other shapes, below 0.14 on most processors. On those that multiply by tiles (AMX) a model of
# 30 layers has 0.28, so what it rounds itself between two shapes is measured too.
_SAME = {torch.float32: 1e-3, torch.bfloat16: 0.18}
_COPIES = 16  # of one row, whose other shape changes nothing but the rounding
_OF_ROUNDING, _MOST = 3, 0.6  # times that rounding is still rounding, and up to where it can be
# A token that must not be seen changes nothing but the rounding of experts' batches: there below
# 1e-5 and 1e-4, while random models that do see it differ by 0.02 and more.
_UNSEEN = {torch.float32: 1e-4, torch.bfloat16: 5e-3}


def check_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    longest: int = 0,
    trained: bool = True,
) -> None:
    """Make sure that ``model`` samples, scores and trains one and the same distribution.

    Args:
        model: a causal LM or a PEFT model around one, prepared (no dropout), on its device.
        longest: tokens of the longest sequence to expect: sampling is tried as far as that, as some
            models do other things beyond a window.
        trained: whether it will be trained, not only sampled and scored.

    Raises:
        UserError: it does not; the message says in what.
    """
    base = base_of(model)
    training = base.training
    devices = [base.device] if base.device.type != "cpu" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            problem = next(_problems(base, tokenizer, longest, trained), None)
    except FAILS as error:
        problem = f"it fails on plain tokens ({first_line(error)})"
    finally:
        base.train(training)
    if problem is not None:
        raise UserError(
            f"model.model_name_or_path: {type(base).__name__}{_with_attention(base)} is not"
            f" supported: {problem}; use another causal language model"
            f"{' or set model.attn_implementation=null' if _with_attention(base) else ''}"
        )


def _with_attention(base: PreTrainedModel) -> str:
    """The attention, where it was chosen."""
    chosen = getattr(base, "_chosen_attention", None)
    return f" with attn_implementation {chosen}" if chosen else ""


def _problems(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int, trained: bool
) -> Iterator[str]:
    # Codes of quantised weights are whole numbers; what they stand for is computed in the others'.
    mixed = any(p.dtype in (torch.bfloat16, torch.float16) for p in base.parameters())
    dtype = torch.bfloat16 if mixed else torch.float32
    whole_row = min(_TOKENS, longest or _TOKENS)
    new = max(1, whole_row * 3 // 8)
    lengths = (max(1, (whole_row - new) // 3), whole_row - new)
    torch.manual_seed(0)
    highest = min(_HIGHEST, base.config.get_text_config().vocab_size)
    tokens = torch.randint(_LOWEST, highest, (1, lengths[1]), device=base.device)
    base.eval()
    plain = _logps(base, tokens)
    spread = float(plain.std(-1).mean())
    same, unseen = _SAME[dtype] * spread, _UNSEEN[dtype] * spread
    if mixed:
        rounding = _apart(_logps(base, tokens.expand(_COPIES, -1)), plain)
        same = max(same, min(_OF_ROUNDING * rounding, _MOST * spread))
    other = tokens.clone()
    other[0, -1] = _LOWEST + (other[0, -1] - _LOWEST + 1) % (highest - _LOWEST)
    if _apart(_logps(base, other)[:-1], plain[:-1]) > unseen:
        yield "its tokens see those after them (it is no causal model, or not set to be a decoder)"
    padded = torch.cat([tokens, other[:, -new:]], dim=1)
    if _apart(_logps(base, padded)[: len(plain)], plain) > same:
        yield "tokens after a text change its probabilities"
    base.train(trained)
    if trained and max(_apart(_logps(base, tokens), plain) for _ in range(2)) > unseen:
        yield "it computes otherwise in training mode (dropout or noise that cannot be set to 0)"
    base.eval()
    prompts = [tuple(tokens[0, :length].tolist()) for length in lengths]
    difference = _sampling_difference(base, tokenizer, prompts, new)
    if longest > whole_row and difference <= same:
        far = torch.randint(_LOWEST, highest, (longest - new,)).tolist()
        prompts = [tuple(far[: len(far) // 2]), tuple(far)]
        difference = _sampling_difference(base, tokenizer, prompts, new)
    if difference > same:
        yield (
            f"what it samples after padding is not what it scores (by {difference:.2g} nats; it "
            "may count the padding as positions or keep it in its state)"
        )


def _logps(base: PreTrainedModel, tokens: Tensor, start: int = 0) -> Tensor:
    """Next-token log-probabilities ``(L − start, V)`` of one row, from ``start``, as scored.

    Of all 4,096 tokens of a row and a vocabulary of 151,936 they would take gigabytes.
    """
    with autocast(base):
        states = hidden_states(base, tokens)[0, start:]
        return lm_head(base)(states).float().log_softmax(-1)


def _apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max()) if first.numel() else 0.0


class Recorder(Decoder):
    """A decoder that keeps the logits it draws from: of each step, by row ``(V,)``."""

    def __init__(self) -> None:
        super().__init__(temperature=1.0)
        self.logits: list[dict[int, Tensor]] = []

    def choose(self, logits: Tensor, rows: int, step: int, place: Tensor) -> Tensor:
        """The token for each row, as everywhere."""
        kept = logits.float()
        self.logits.append(dict(zip(place.tolist(), kept, strict=True)))
        return super().choose(logits, rows, step, place)


def _sampling_difference(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    new_tokens: int,
) -> float:
    """The largest difference in nats between a drawn token's two log-probabilities."""
    recorder = Recorder()
    made = generate_tokens(base, tokenizer, prompts, new_tokens, recorder)
    worst = 0.0
    for row, (prompt, tokens_and_padding) in enumerate(zip(prompts, made, strict=True)):
        new, _ = cut_at_eos(tokens_and_padding, end_tokens(base))
        sequence = torch.tensor([[*prompt, *new]], device=base.device)
        scored = _logps(base, sequence, start=len(prompt) - 1)
        for step, token in enumerate(new):
            drawn = recorder.logits[step][row].log_softmax(-1)[token]
            worst = max(worst, _apart(drawn, scored[step, token]))
    return worst
