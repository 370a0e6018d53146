"""What `float32_logits` changes: a token's log-probability when sampled against when scored.

    python benchmarks/head_precision.py

Samples the embedded model in bfloat16, with a cache and left padding, scores the same tokens
without either, and prints how far the two log-probabilities are apart, with the head's matrix
product in bfloat16 and in float32.
"""

from __future__ import annotations

import time

import torch

from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.lm.check import Recorder
from pipeline.lm.generation import cut_at_eos, encode_prompt, end_tokens, generate_tokens
from pipeline.lm.hardware import autocast
from pipeline.lm.models import load_base
from pipeline.lm.route import hidden_states, lm_head, make_head_float32

PROMPTS, NEW, WORDS = 32, 20, 4


def differences(float32: bool) -> tuple[torch.Tensor, float]:
    """``(N,)`` differences in nats, and the seconds that sampling took."""
    model, tokenizer = load_base(ModelSection(dtype="bfloat16"))
    model.eval()
    if float32:
        make_head_float32(model)
    texts = [" ".join(r.text.split()[:WORDS]) for r in embedded.ratings()[:PROMPTS]]
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    recorder = Recorder()
    torch.manual_seed(0)
    begin = time.perf_counter()
    made = generate_tokens(model, tokenizer, prompts, NEW, recorder)
    seconds = time.perf_counter() - begin
    apart = []
    for row, (prompt, tokens_and_padding) in enumerate(zip(prompts, made, strict=True)):
        new, _ = cut_at_eos(tokens_and_padding, end_tokens(model))
        with torch.no_grad(), autocast(model):
            states = hidden_states(model, torch.tensor([[*prompt, *new]]))[0]
            scored = lm_head(model)(states).float().log_softmax(-1)
        for step, token in enumerate(new):
            drawn = recorder.logits[step][row].log_softmax(-1)[token]
            apart.append(float(drawn - scored[len(prompt) - 1 + step, token]))
    return torch.tensor(apart), seconds


def main() -> None:
    for float32 in (False, True):
        values, seconds = differences(float32)
        print(
            f"head in {'float32 ' if float32 else 'bfloat16'}: {len(values)} tokens,"
            f" mean {values.mean():+.5f}, spread {values.std():.5f},"
            f" largest {values.abs().max():.4f} nats; sampling took {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
