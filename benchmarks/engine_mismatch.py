"""How far a vLLM server's distribution is from the trainer's, and how it is corrected.

    vllm serve ~/.cache/rlhf/smollm2-135m-instruct --dtype bfloat16 --max-model-len 128 …
    python benchmarks/engine_mismatch.py --server http://127.0.0.1:8000 --dtype bfloat16

Draws completions of the embedded model through the engine (docs/generation.md says how the server
is started), scores them as the trainer does, and prints what PPO logs as engine/….
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.generation import completions_of, encode_prompt, end_tokens
from pipeline.lm.hardware import autocast
from pipeline.lm.models import load_base, make_trainable
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import TokenBatch, logits_chunk, predicting_states, token_logps
from pipeline.ppo.engines import Request
from pipeline.ppo.engines.vllm import VLLM
from pipeline.ppo.rollout import importance_ratios
from pipeline.ppo.upkeep.metrics import engine_metrics

CAP = 2.0  # ppo.importance_cap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--server", required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=20)
    given = parser.parse_args()
    section = ModelSection(dtype=given.dtype, use_peft=True, trainable_layers=None)
    base, tokenizer = load_base(section)
    policy = make_trainable(base, section)
    generator = torch.Generator().manual_seed(0)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:  # as after some training: adapters that do something
            weight.data.normal_(0, 0.01, generator=generator)
    texts = [" ".join(r.text.split()[:4]) for r in embedded.ratings()[: given.prompts]]
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    stop = end_tokens(policy)
    draws = torch.zeros(len(prompts), given.tokens)
    with tempfile.TemporaryDirectory() as folder:
        engine = VLLM(given.server, Path(folder), tolerance=1.0)
        engine.begin(policy, tokenizer, max(map(len, prompts)) + given.tokens)
        engine.load(policy, 0)
        begin = time.perf_counter()
        drawn = engine(Request(prompts, given.tokens, 1.0, frozenset(stop), 1, 0, draws, 0))
        seconds = time.perf_counter() - begin
    made = completions_of(tokenizer, texts, prompts, drawn.tokens, stop, drawn.logps)
    batch = TokenBatch.collate(made, 0, base.device)
    with torch.no_grad(), autocast(policy):
        states = predicting_states(hidden_states(policy, batch.sequences), batch)[batch.mask]
        targets, chunk = batch.completion_ids[batch.mask], logits_chunk(base.device)
        scored = token_logps(states, lm_head(policy), targets, 1.0, chunk).float()
    logps = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, scored)
    ratios = importance_ratios(made, logps, batch.mask)
    assert ratios is not None
    tokens = int(batch.mask.sum())
    print(f"{given.dtype}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} a second")
    for name, value in engine_metrics(ratios, batch.mask, CAP, lambda sums: sums).items():
        print(f"  {name:24} {value:.3g}")
    print(f"  {'largest |log π − log μ|':24} {float(ratios[batch.mask].log().abs().max()):.3g}")


if __name__ == "__main__":
    main()
