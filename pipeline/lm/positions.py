"""How long a sequence a model takes, asked of the model itself.

Learned position tables end, some models scale their positions by the length of the batch, and what
a config calls its positions is off by an offset in some families. So nothing is read off a config
to refuse: a row of the wanted length is taken through the first decoder layer, one row, and one
layer, because every layer's positions are those of the first. Where that row is long (a config may
speak of 131,072 positions, and their states take gigabytes) two tokens at its first and its last
position stand for it, if the model goes by the positions that it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.lm.generation import encode_prompt
from pipeline.lm.hardware import autocast
from pipeline.lm.models import decoder_layers
from pipeline.lm.route import decoder_of
from pipeline.output.console import say

_LONG = 4096  # tokens of a row beyond which two of its positions stand for it
_AT_ONCE = 1024  # texts that are made into tokens together
_SHOWN = 40  # characters of a prompt in a message


def check_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response_length: int,
    kind: str,
) -> int:
    """Make sure that every prompt leaves the model room for a completion.

    Beyond a limit that cannot be passed (see :func:`tokens_taken`) this is an error. Beyond the
    positions that a model was made for and computes on all the same (rotary ones), a warning.

    Args:
        response_length: tokens that may follow each. kind: what the prompts are called.

    Returns:
        tokens of the longest prompt.

    Raises:
        UserError: a prompt does not fit; it is named with its tokens, the limit and the mend.
    """
    longest = _longest(tokenizer, prompts)
    wanted = longest + response_length
    limit = tokens_taken(model, wanted)
    name = type(model).__name__
    if limit < wanted:
        lengths = _lengths(tokenizer, prompts)
        raise UserError(_too_long(prompts, lengths, response_length, limit, name, kind))
    made_for = stated_positions(model)
    if made_for is not None and wanted > made_for:
        lengths = _lengths(tokenizer, prompts)
        row = next(i for i, n in enumerate(lengths) if n + response_length > made_for)
        say(
            f"warning: {kind} prompt {row} has {lengths[row]} tokens, with {response_length} to"
            f" follow more than the {made_for} positions that {name} was made for: text gets"
            " worse there; shorten it, or lower generation.max_new_tokens"
        )
    return longest


def _lengths(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[int]:
    return [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]


def _longest(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt; texts are made into tokens together, which is far faster."""
    longest, waiting = 0, []
    for prompt in prompts:
        if not isinstance(prompt, str):
            longest = max(longest, len(encode_prompt(tokenizer, prompt)))
            continue
        waiting.append(str(prompt))
        if len(waiting) == _AT_ONCE:
            longest = max(longest, _longest_text(tokenizer, waiting))
            waiting = []
    return max(longest, _longest_text(tokenizer, waiting))


def _longest_text(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> int:
    """Tokens of the longest text, as :func:`encode_prompt` makes them."""
    rows: Any = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    longest = 0
    for text, ids in zip(texts, rows, strict=True):
        end = len(ids)
        while end and ids[end - 1] == tokenizer.eos_token_id:
            end -= 1
        longest = max(longest, end or len(encode_prompt(tokenizer, text)))  # which refuses none
    return longest


def _too_long(
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    response_length: int,
    limit: int,
    name: str,
    kind: str,
) -> str:
    over = [i for i, n in enumerate(lengths) if n + response_length > limit]
    row, many = over[0], f", the first of {len(over)}" if len(over) > 1 else ""
    prompt = prompts[row]
    start = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    start = " ".join(start.split())[:_SHOWN]
    room = limit - response_length
    lower = f"lower generation.max_new_tokens (response_length), now {response_length}"
    shorten = f"shorten or remove those of more than {room} tokens"
    both = shorten if lengths[row] >= limit else f"{shorten}, or {lower}"
    mend = both if room > 0 else lower
    return (
        f"{kind} prompt {row} ({start!r}…{many}) has {lengths[row]} tokens, and with"
        f" {response_length} to follow that is too long: {name} takes {limit} tokens; {mend}"
    )


def cut_length(model: PreTrainedModel, max_length: int | None, key: str) -> int | None:
    """The length at which training texts are cut: ``max_length``, or the model's limit below it.

    Says so where it is the model's.

    Args:
        max_length: as configured, ``None`` for no limit. key: its name in the experiment.
    """
    wanted = max_length
    if wanted is None:
        stated = stated_positions(model)
        if stated is None:
            return None
        wanted = stated + 1  # whether what is stated is also where it ends
    limit = tokens_taken(model, wanted)
    if limit == wanted or (max_length is None and limit > wanted):
        return max_length
    name = type(model).__name__
    say(f"{key}: {name} takes {limit} tokens; longer texts are cut there")
    return limit


def stated_positions(model: PreTrainedModel) -> int | None:
    """The positions that a model was made for, as its config says; ``None`` where it does not."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def tokens_taken(model: PreTrainedModel, wanted: int) -> int:
    """The longest sequence, up to ``wanted`` tokens, that ``model`` takes.

    It takes one when its forward pass does not fail, and leaves its rotary frequencies what they
    are in a short row. Where they are scaled by the length (dynamic and long rotary scaling), what
    is sampled, token by token, is not what is scored afterwards, and a row's score depends on the
    others of its batch.
    """
    decoder_of(model)  # found by whole passes, so before any is cut short
    if _takes(model, wanted) or not _takes(model, 1):  # no length is at fault there
        return wanted
    low, high = 1, wanted  # taken, not taken
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _takes(model, middle) else (low, middle)
    return low


def _takes(model: PreTrainedModel, length: int) -> bool:
    if length > _LONG and _goes_by_positions(model):
        ends = torch.tensor([[0, length - 1]], device=model.device)
        taken = _passes(model, _some_tokens(model, 2), ends)
        if taken is not None:  # else the row itself is tried: a table may grow with it
            return taken
    return bool(_passes(model, _some_tokens(model, length)))


def _passes(model: PreTrainedModel, tokens: Tensor, positions: Tensor | None = None) -> bool | None:
    """Whether frequencies stay what they are in a short row; ``None`` where the pass fails."""
    try:
        with torch.no_grad(), autocast(model), _GuardedLookups():
            _through_first_layer(model, tokens, positions)
            long = _frequencies(model)
            _through_first_layer(model, tokens[:, :1])
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError):
        return None
    short = _frequencies(model)
    same_shape = (name for name in short.keys() & long if short[name].shape == long[name].shape)
    return all(torch.equal(short[name], long[name]) for name in same_shape)


def _goes_by_positions(model: PreTrainedModel) -> bool:
    """Whether a token's position is the one that the model is given, and 0, 1, … without.

    Some have none to be given, or do not look at it, or count from another number on.
    """
    if "position_ids" not in inspect.signature(decoder_of(model).forward).parameters:
        return False
    tokens, near = _some_tokens(model, 2), torch.tensor([[0, 1]], device=model.device)
    try:
        with torch.no_grad(), autocast(model), _GuardedLookups():
            plain, same, other = (
                _through_first_layer(model, tokens, given) for given in (None, near, 2 * near)
            )
    except (IndexError, RuntimeError, ValueError):
        return False
    if plain is None or same is None or other is None:
        return False
    return torch.equal(plain, same) and not torch.equal(same, other)


def _frequencies(model: PreTrainedModel) -> dict[str, Tensor]:
    """The decoder's tables of numbers that are no weights, rotary frequencies among them."""
    buffers = decoder_of(model).named_buffers()
    return {name: buffer.clone() for name, buffer in buffers if buffer.is_floating_point()}


def _some_tokens(model: PreTrainedModel, length: int) -> Tensor:
    """``(1, length)`` different tokens without padding, which some count no position for."""
    config = model.config.get_text_config()
    tokens = torch.arange(length, device=model.device)[None] % config.vocab_size
    pad = getattr(config, "pad_token_id", None)
    if pad is None:
        return tokens
    return torch.where(tokens == pad, (pad + 1) % config.vocab_size, tokens)


class _Reached(Exception):
    """Ends a forward pass behind the first layer."""


def _through_first_layer(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor | None = None
) -> Tensor | None:
    """A forward pass up to there, or through all layers where their stack is not known.

    Args:
        positions: ``(1, L)`` of the tokens, where they are not those from 0 on.

    Returns:
        the first layer's states; ``None`` where it is not known.
    """
    states: list[Tensor] = []

    def stop(_: Any, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    try:
        hooks = [decoder_layers(model)[0].register_forward_hook(stop)]
    except UserError:
        hooks = []
    given = {} if positions is None else {"position_ids": positions}
    try:
        with suppress(_Reached):
            decoder_of(model)(input_ids=tokens, use_cache=False, **given)
    finally:
        for hook in hooks:
            hook.remove()
    return states[0] if states else None


class _GuardedLookups(TorchDispatchMode):
    """Raises IndexError for an entry that a table does not have, before it is looked up.

    On an accelerator the lookup itself would be a device assert, after which it computes no more.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        for size, index in _lookups(func, args):
            if index.numel() and not index.is_floating_point() and int(index.max()) >= size:
                raise IndexError
        return func(*args, **(kwargs or {}))


def _lookups(func: Any, args: tuple[Any, ...]) -> list[tuple[int, Tensor]]:
    """The tables' sizes and the entries that an operation looks up."""
    aten = torch.ops.aten
    if func is aten.embedding.default:
        return [(args[0].shape[0], args[1])]
    if func in (aten.index_select.default, aten.gather.default):
        return [(args[0].shape[args[1]], args[2])]
    if func is aten.index.Tensor:
        pairs = zip(args[0].shape, args[1], strict=False)
        return [(n, i) for n, i in pairs if i is not None and i.dtype is not torch.bool]
    return []
