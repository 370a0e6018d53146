"""A model as PPO needs it: checked against the plain one before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.data.records import Prompt
from pipeline.lm.check import check_policy
from pipeline.lm.compiling import compile_layers, use_liger
from pipeline.lm.hardware import use_plain_attention
from pipeline.lm.models import base_of, prepare, upcast_trained
from pipeline.lm.positions import check_prompts
from pipeline.lm.route import lm_head, make_head_float32
from pipeline.output.console import say
from pipeline.ppo.config import PPOConfig, sharded


def make_ready(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    prompts: Sequence[Prompt],
    evaluated: Sequence[Prompt] | None,
) -> int:
    """Prepare ``model`` in place, and try on it all that training will ask of it.

    Returns:
        tokens of the longest sequence to expect, prompt and completion.

    Raises:
        UserError: the model computes something else than it would by itself, or prompts are too
            long for it.
    """
    base = prepare(base_of(model), tokenizer)
    if isinstance(model, PeftModel):  # keeps one of its own, which generate() puts in place
        model.generation_config = base.generation_config  # type: ignore[assignment]
    if upcast_trained(model):
        say("PPO: the trained weights are made float32; small steps would vanish in bfloat16")
    if not sharded(args):  # FSDP places it itself
        model.to(args.device)
    lm_head(model)  # that it runs on plain tokens, before anything else is asked of it
    # V of a completion that was cut off is read at one position more.
    length = args.response_length + (args.cut_off == "bootstrap")
    longest = check_prompts(base, tokenizer, prompts, length, "training") + length
    if evaluated:
        check_prompts(base, tokenizer, evaluated, length, "evaluation")
    budget = args.microbatch_tokens
    rows = -(-budget // longest) if budget else args.per_device_train_batch_size
    use_plain_attention(base, args.device, longest, rows)
    if args.float32_logits:
        make_head_float32(model)
    use_liger(model, args)
    check_policy(model, tokenizer, longest)
    compile_layers(model, args)
    return longest
