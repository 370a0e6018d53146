"""What an accelerator is asked for: numbers go to it once a rollout, and few answers are awaited.

The device is torch's ``meta``: every operation runs without its numbers, so a copy between it and
the processor, and a number that Python asks for, can be counted on any machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.lm import check
from pipeline.lm.decoding import _LOOK, Decoder
from pipeline.lm.models import prepare
from pipeline.ppo.rollout import Microbatch
from pipeline.ppo.upkeep.metrics import UpdateMetrics
from tests.pipeline.ppo.test_metrics import config, some_rollout


class Counted(TorchDispatchMode):
    """Counts copies to the device and waits for it; each number that is asked for is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.waits += 1
            return 0
        out = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, Tensor)]
        if isinstance(out, Tensor) and any(x.is_meta != out.is_meta for x in given):
            self.copies += 1
        return out


def counts(tokens: int, attention: str) -> tuple[int, int]:
    """Copies and waits of ``tokens`` steps, none of which ends a row."""
    model: Any = prepare(toy_language_model(0), toy_tokenizer()).eval()
    model.to("meta")
    model.set_attn_implementation(attention)
    prompt = torch.ones(3, 4, dtype=torch.long, device="meta")
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=1, pad_token_id=0, use_cache=True
    )
    decoder = Decoder(0.7, torch.rand(3, tokens))
    with Counted() as counted:
        model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings,
            custom_generate=decoder,
        )  # fmt: skip
    return counted.copies, counted.waits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_random_numbers_go_to_the_device_once(attention: str) -> None:
    assert counts(8, attention)[0] == counts(40, attention)[0] == 1


def test_the_device_is_waited_for_once_in_many_tokens() -> None:
    few, many = (counts(tokens, "eager")[1] for tokens in (_LOOK, 4 * _LOOK))
    assert many - few == 3
    # The mask of torch's fused attention is transformers' own, which asks whether it is needed.
    few, many = (counts(tokens, "sdpa")[1] for tokens in (_LOOK, 4 * _LOOK))
    assert many - few == 3 + 3 * _LOOK


def test_update_metrics_do_not_wait() -> None:
    rollout = some_rollout(6, seed=2)
    old, index = rollout.old, torch.arange(6, device="meta")
    batch = type(rollout.batch)(*(x.to("meta") for x in vars(rollout.batch).values()))
    columns = (old.logps, old.ref_logps, old.values, rollout.advantages, rollout.returns)
    given = [column.to("meta") for column in columns]
    data = Microbatch(batch, index, None, *given, normalizer=1.0)
    metrics = UpdateMetrics("meta")
    with Counted() as counted:
        for _ in range(3):
            metrics.begin_minibatch()
            metrics.add(config(), data, given[0], given[1], given[1], given[2])
            metrics.add_norms(given[0].sum(), given[1].sum())
            metrics.minibatch_kl(lambda sums: sums)
    assert (counted.copies, counted.waits) == (0, 0)


def test_the_check_makes_no_logits_of_a_whole_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4,096 tokens and a vocabulary of 151,936 they would be 2.5 GB each."""
    model = prepare(toy_language_model(0), toy_tokenizer())
    most, plain = [0], check.lm_head

    def watched(base: Any) -> Any:
        def head(states: Tensor) -> Tensor:
            most[0] = max(most[0], len(states))
            return plain(base)(states)

        return head

    monkeypatch.setattr(check, "lm_head", watched)
    check.check_policy(model, toy_tokenizer(), longest=200)
    assert 0 < most[0] <= 16
